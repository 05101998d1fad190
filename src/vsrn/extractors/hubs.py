"""Other people's networks as extractors: timm's backbones, and Hugging Face's vision models and detectors.

    timm:resnet50.a1_in1k                  a map, pooled to 6 x 6 windows
    timm:vit_base_patch16_224.augreg_in21k a transformer's patches, which are regions as they are
    hf:openai/clip-vit-base-patch32        CLIP, SigLIP, DINOv2 and whatever else `transformers.AutoModel` opens
    hf-detector:facebook/detr-resnet-50    DETR, RT-DETR, YOLOS and their kin

Of Hugging Face's models, weights are read from safetensors only, and no code that comes with a model runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from timm.data.config import resolve_data_config

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import ConfigError, did_you_mean, one_line
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.extractors.grid import Grid, PixelRules, WholePhotoExtractor, patch_grid
from vsrn.tensors import downloaded_before, fingerprint_of, from_hub, load_tensors, not_here

MOST = 36
_EXAMPLES = {"hf": "hf:facebook/dinov2-base", "hf-detector": "hf-detector:facebook/detr-resnet-50"}


def make_timm(argument: str, files: ExtractorFiles) -> WholePhotoExtractor:
    """What `--extractor timm:NAME [--weights FILE]` asks for.

    Without a file, the weights come from the caches of timm's hubs, or where `files.download` allows it from the hubs.
    Raises `ConfigError` where timm has no such network, the weights are not here or the hub does not answer, and
    `CheckpointError` where a file does not fit.
    """
    name, known = f"timm:{argument}", timm.list_models()
    if argument.partition(".")[0] not in known:
        raise ConfigError(
            f"timm has no network '{argument}'; write 'timm:' and a name of `timm.list_models()`."
            f"{did_you_mean(argument, known)}"
        )
    options: dict[str, Any] = {"pretrained": files.weights is None, "num_classes": 0}
    if files.weights is None and not files.download:
        cached = _timm_downloaded_before(argument)
        if cached is None:
            raise not_here(name)
        # timm reads this file in place of asking the hub.
        options["pretrained_cfg_overlay"] = {"file": str(cached)}
    network: Any = from_hub(name, lambda: timm.create_model(argument, **options))
    if files.weights is not None:
        # Regions are read before the classifier.
        names = network.pretrained_cfg.get("classifier") or ()
        classifier = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
        load_tensors(network, files.weights, ignored=classifier)
    config = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    resample = Image.Resampling[config["interpolation"].upper()]
    rules = PixelRules(height, width, tuple(config["mean"]), tuple(config["std"]), int(resample))

    def grid_of(pixels: torch.Tensor) -> Grid:
        output: torch.Tensor = network.forward_features(pixels)
        if output.ndim == 3:
            return Grid(patch_grid(output, *network.patch_embed.grid_size), patches=True)
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return Grid(output.permute(0, 3, 1, 2) if channels_last else output, patches=False)

    return WholePhotoExtractor(name, files, network, grid_of, rules)


def _timm_downloaded_before(argument: str) -> Path | None:
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


def make_hugging_face(argument: str, files: ExtractorFiles) -> WholePhotoExtractor:
    """What `--extractor hf:NAME [--weights FOLDER]` asks for: the folder holds config, preprocessor and weights.

    Raises what `open_hugging_face` raises, and `ConfigError` where the model does not look at images in patches.
    """
    name = f"hf:{argument}"
    processor, model = open_hugging_face(name, files, "AutoModel")
    # The half that looks at images; of a model of images alone, all of it.
    vision = getattr(model, "vision_model", model)
    patch = getattr(getattr(vision, "config", None), "patch_size", None)
    if not isinstance(patch, int):
        raise ConfigError(f"'{name}' does not look at images in patches; give it as timm:NAME, or use another model.")
    rules = _processor_rules(processor)

    def grid_of(pixels: torch.Tensor) -> Grid:
        tokens = vision(pixel_values=pixels).last_hidden_state
        return Grid(patch_grid(tokens, rules.height // patch, rules.width // patch), patches=True)

    return WholePhotoExtractor(name, files, vision, grid_of, rules)


class QueryDetectorExtractor:
    """The 36 most confident queries of a detector, falling.

    Each of a fixed number of queries answers with a box, a class and the numbers that both are read from.
    """

    has_scores: ClassVar[bool] = True
    photo_size: ClassVar[None] = None

    def __init__(self, name: str, files: ExtractorFiles, processor: Any, network: Any) -> None:
        """Wrap a detector and its image processor. Raises `ConfigError` where it is none of the DETR kind."""
        check_no_names(name, files)
        self.name, self.files, self.processor = name, files, processor
        self.device = pick_device(files.device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        labels: dict[int, str] = network.config.id2label
        self.names = RegionNames(classes=[labels.get(number, "") for number in range(max(labels, default=-1) + 1)])
        self.fingerprint = fingerprint_of(f"{name}, {MOST}, {processor.to_json_string()}, v1", network.state_dict())
        try:
            answers = self._answers(self.prepare(Image.new("RGB", (64, 64))))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"'{name}' is no detector of the DETR kind ({one_line(error)}); use another model."
            ) from error
        self.num_regions, self.feature_dim = answers.features.shape

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (3, H, W) float32, as the detector's own processor makes it."""
        return np.asarray(self.processor(images=photo, return_tensors="np")["pixel_values"][0])

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(3, H, W) float32 arrays -> `Regions` of each, one photo at a time: hardly two have the same size."""
        return [self._answers(photo) for photo in prepared]

    def _answers(self, photo: Prepared) -> Regions:
        """(3, H, W) float32 -> the most confident queries, falling."""
        with torch.inference_mode():
            said = self.network(pixel_values=torch.from_numpy(photo)[None].to(self.device))
            logits, boxes = said.logits[0].float().cpu(), said.pred_boxes[0].float().cpu()
        # One class more than there are names is that of nothing; otherwise each class is a question of its own.
        without = logits.shape[1] == len(self.names.classes) + 1
        confidences = logits.softmax(dim=1)[:, :-1] if without else logits.sigmoid()
        best, classes = confidences.max(dim=1)
        rows = best.sort(descending=True, stable=True).indices[:MOST]
        # Before its queries a transformer of patches has the patches.
        described = said.last_hidden_state[0, -len(logits) :].float().cpu()
        centre, size = boxes[rows, :2], boxes[rows, 2:]
        return Regions(
            features=described[rows].numpy(),
            boxes=torch.cat([centre - size / 2, centre + size / 2], dim=1).clamp(0, 1).numpy(),
            scores=best[rows].numpy(),
            classes=classes[rows].numpy(),
        )


def make_hugging_face_detector(argument: str, files: ExtractorFiles) -> QueryDetectorExtractor:
    """What `--extractor hf-detector:NAME [--weights FOLDER]` asks for. Raises what `open_hugging_face` raises."""
    name = f"hf-detector:{argument}"
    processor, network = open_hugging_face(name, files, "AutoModelForObjectDetection")
    return QueryDetectorExtractor(name, files, processor, network)


def open_hugging_face(name: str, files: ExtractorFiles, kind: str) -> tuple[Any, Any]:
    """The image processor and the model of an extractor's name, `hf:someone/model`.

    kind  of model, as transformers calls it: AutoModel, AutoModelForObjectDetection

    Without a folder in `files.weights` they come from the hub's cache, or where `files.download` allows it from the
    hub. Raises `ConfigError` where transformers is not installed, the model is not here, the hub does not answer, or
    the model brings code of its own.
    """
    family, _, source = name.partition(":")
    if not source:
        raise ConfigError(f"'{family}:' wants the name of a model, as in {_EXAMPLES[family]}.")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"'{family}:' needs the package transformers ({error}); run `pip install '.[hub]'` in the checkout."
        ) from error
    if files.weights is not None:
        source = str(files.weights)
        if not files.weights.is_dir():
            raise ConfigError(f"{source} is no folder; --weights names the folder of a Hugging Face model.")
    elif not files.download and not _is_here(source):
        raise not_here(name)

    def load() -> tuple[Any, Any]:
        rules = {"local_files_only": files.weights is not None or not files.download, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(source, **rules)
        _check_no_kernels(name, config)
        if hasattr(config, "use_pretrained_backbone"):
            # The model's own weights have those of its backbone.
            config.use_pretrained_backbone = False
        processor = transformers.AutoImageProcessor.from_pretrained(source, **rules)
        opened = getattr(transformers, kind).from_pretrained(source, config=config, use_safetensors=True, **rules)
        return processor, opened

    return from_hub(name, load)


def _processor_rules(processor: Any) -> PixelRules:
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
    try:
        return Path(source).is_dir() or isinstance(try_to_load_from_cache(source, "config.json"), str)
    except ValueError:
        # No name of a repository.
        return False


def _check_no_kernels(name: str, config: Any) -> None:
    """Raise `ConfigError` where a config, or a part of it, names a repository of compiled code to compute with."""
    for part in (config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))):
        for field in ("_attn_implementation", "_experts_implementation"):
            wanted = str(getattr(part, field, None) or "")
            if "/" in wanted:
                raise ConfigError(
                    f"'{name}' wants to compute with code from '{wanted}', and no code of a model runs here; take"
                    " attn_implementation and experts_implementation out of its config.json."
                )
