"""Any backbone of timm as an extractor: `timm:resnet50.a1_in1k`, `timm:vit_base_patch16_224.augreg_in21k`.

Convolutional maps are pooled to 6 x 6 windows; a transformer's patches are regions as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from timm.data.config import resolve_data_config

from vsrn.errors import ConfigError, did_you_mean
from vsrn.extractors.base import ExtractorFiles
from vsrn.extractors.whole_photo import Grid, PixelRules, WholePhotoExtractor, patch_grid
from vsrn.tensors import downloaded_before, from_hub, load_tensors, not_here

FAMILY = "timm"


def make(argument: str, files: ExtractorFiles) -> WholePhotoExtractor:
    """What `--extractor timm:NAME [--weights FILE]` asks for.

    Without a file, the weights come from the caches of timm's hubs, or where `files.download` allows it from the hubs.
    Raises `ConfigError` where timm has no such network, the weights are not here or the hub does not answer, and
    `CheckpointError` where a file does not fit.
    """
    name = f"{FAMILY}:{argument}"
    _check_known(argument)
    fetched = files.weights is None
    # What timm is told of a file that was downloaded before, it reads in place of asking the hub.
    overlay = None
    if fetched and not files.download:
        cached = _downloaded_before(argument)
        if cached is None:
            raise not_here(name)
        overlay = {"file": str(cached)}
    network = from_hub(
        name,
        lambda: timm.create_model(argument, pretrained=fetched, num_classes=0, pretrained_cfg_overlay=overlay),
    )
    if files.weights is not None:
        load_tensors(network, files.weights, ignored=_classifier_of(network))
    return WholePhotoExtractor(name, files, network, lambda pixels: grid_of(network, pixels), pixel_rules(network))


def pixel_rules(network: Any) -> PixelRules:
    """The size and scale that a network's weights were trained for."""
    config = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    resample = Image.Resampling[config["interpolation"].upper()]
    return PixelRules(height, width, tuple(config["mean"]), tuple(config["std"]), int(resample))


def grid_of(network: Any, pixels: torch.Tensor) -> Grid:
    """(B, 3, height, width) scaled pixels -> the network's map, or its patches."""
    output: torch.Tensor = network.forward_features(pixels)
    if output.ndim == 3:
        height, width = network.patch_embed.grid_size
        return Grid(patch_grid(output, height, width), patches=True)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        output = output.permute(0, 3, 1, 2)
    return Grid(output, patches=False)


def _classifier_of(network: Any) -> tuple[str, ...]:
    """What the names of a network's classifier begin with; regions are read before it."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _downloaded_before(argument: str) -> Path | None:
    """The file of a network's published weights in the caches of timm's hubs, or None; the hubs are not asked."""
    published = timm.get_pretrained_cfg(argument, allow_unregistered=True)
    if published is None:
        return None
    if published.hf_hub_id:
        names = [published.hf_hub_filename] if published.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        repository, _, revision = published.hf_hub_id.partition("@")
        for name in names:
            found = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    return downloaded_before(published.url) if isinstance(published.url, str) else None


def _check_known(argument: str) -> None:
    known = timm.list_models()
    if argument.partition(".")[0] not in known:
        raise ConfigError(
            f"timm has no network '{argument}'; write '{FAMILY}:' and a name of `timm.list_models()`."
            f"{did_you_mean(argument, known)}"
        )
