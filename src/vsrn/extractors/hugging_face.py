"""Patches of any vision model in Hugging Face's layout as regions: `hf:openai/clip-vit-base-patch32`.

CLIP, SigLIP, DINOv2 and whatever else `transformers.AutoModel` opens (`pip install '.[hub]'`). Weights are read from
safetensors only. No code that comes with a model runs: transformers would ask a person at a terminal whether it may,
and would fetch the kernels that a config names.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from vsrn.errors import ConfigError
from vsrn.extractors.base import ExtractorFiles
from vsrn.extractors.whole_photo import Grid, PixelRules, WholePhotoExtractor, patch_grid
from vsrn.tensors import from_hub, not_here

FAMILY = "hf"


def make(argument: str, files: ExtractorFiles) -> WholePhotoExtractor:
    """What `--extractor hf:NAME [--weights FOLDER]` asks for: the folder holds config, preprocessor and weights.

    Without a folder they come from the hub's cache, or where `files.download` allows it from the hub. Raises
    `ConfigError` where transformers is not installed, the model is not here, the hub does not answer, or the model
    brings code of its own or does not look at images in patches.
    """
    if not argument:
        raise ConfigError(f"'{FAMILY}:' wants the name of a model, as in {FAMILY}:facebook/dinov2-base.")
    name = f"{FAMILY}:{argument}"
    transformers = _import_transformers()
    source = argument if files.weights is None else str(_folder(files.weights))

    if files.weights is None and not files.download and not _is_here(source):
        raise not_here(name)

    def load() -> tuple[Any, Any]:
        rules = {"local_files_only": files.weights is not None or not files.download, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(source, **rules)
        _check_no_kernels(name, config)
        processor = transformers.AutoImageProcessor.from_pretrained(source, **rules)
        model = transformers.AutoModel.from_pretrained(source, config=config, use_safetensors=True, **rules)
        return processor, model

    processor, model = from_hub(name, load)
    vision = vision_part(model)
    patch = _patch_size(name, vision)
    rules = pixel_rules(processor)
    cells = (rules.height // patch, rules.width // patch)
    return WholePhotoExtractor(name, files, vision, lambda pixels: grid_of(vision, pixels, *cells), rules)


def vision_part(model: Any) -> nn.Module:
    """The half of a model that looks at images; of a model of images alone, all of it."""
    part: nn.Module = getattr(model, "vision_model", model)
    return part


def grid_of(vision: Any, pixels: torch.Tensor, height: int, width: int) -> Grid:
    """(B, 3, H, W) scaled pixels -> the last layer's patch tokens, without those in front of them."""
    return Grid(patch_grid(vision(pixel_values=pixels).last_hidden_state, height, width), patches=True)


def pixel_rules(processor: Any) -> PixelRules:
    """What a model's own image processor says, but that photos are squashed where it would crop them."""
    size: dict[str, int] = dict(processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)
    side = size.get("shortest_edge") or 0
    height, width = size.get("height") or side, size.get("width") or side
    if min(height, width) < 1:
        raise ConfigError(f"the model's preprocessor_config.json does not say how large photos are made: {size}.")
    resample = processor.resample if processor.resample is not None else Image.Resampling.BICUBIC
    return PixelRules(height, width, tuple(processor.image_mean), tuple(processor.image_std), int(resample))


def _is_here(source: str) -> bool:
    """Whether a model's config lies in a folder of this name, or in the hub's cache; the hub is not asked."""
    if Path(source).is_dir():
        return True
    cached = importlib.import_module("huggingface_hub").try_to_load_from_cache
    try:
        return isinstance(cached(source, "config.json"), str)
    except ValueError:
        # No name of a repository.
        return False


def _check_no_kernels(name: str, config: Any) -> None:
    """Raise `ConfigError` where a config, or a part of it, names a repository of compiled code to compute with."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    for part in parts:
        for field in ("_attn_implementation", "_experts_implementation"):
            wanted = str(getattr(part, field, None) or "")
            if "/" in wanted:
                raise ConfigError(
                    f"'{name}' wants to compute with code from '{wanted}', and no code of a model runs here; take"
                    " attn_implementation and experts_implementation out of its config.json."
                )


def _patch_size(name: str, vision: nn.Module) -> int:
    size = getattr(getattr(vision, "config", None), "patch_size", None)
    if not isinstance(size, int):
        raise ConfigError(f"'{name}' does not look at images in patches; give it as timm:NAME, or use another model.")
    return size


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; --weights names the folder of a Hugging Face model, with its config.")
    return path


def _import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"'{FAMILY}:' needs the package transformers ({error}); run `pip install '.[hub]'` in the checkout."
        ) from error
