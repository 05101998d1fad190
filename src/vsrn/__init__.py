"""Visual semantic reasoning for image-text matching (VSRN, ICCV 2019).

import vsrn
model = vsrn.load("runs/flickr8k")                  # a run, a converted model, or an exported folder
images = model.encode_images(["beach.jpg"])         # (1, D) unit vectors
captions = model.encode_captions(["two dogs play"]) # (1, D)
model.similarity(images, captions)                  # (1, 1)
model.encode_regions(features)                      # (B, N, F) -> (B, D)
model.explain("beach.jpg", "two dogs")              # boxes with weights, heat map
print(vsrn.evaluate(model, split="val"))            # Recall@K, as the field's table
vsrn.recall(similarities, image_of_caption)         # the same for anybody's similarities
index = vsrn.build_index(model, "photos/", "idx/")  # resumable; later: vsrn.open_index("idx/")
index.search("two dogs play on a beach", k=5)       # [Hit(id, score, path), ...]
vsrn.train("flickr8k", output="runs/flickr8k")      # or a TOML file, a dict, a Config
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# What vsrn's dependencies would report to their makers. Each of them reads its variable when it is first imported or
# started, and every process that runs a module of vsrn imports this one before any of them: spawned processes and Ray's
# workers too. A variable that the user has set is kept. docs/security.md lists what each one stops.
SWITCHED_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}
for _variable, _value in SWITCHED_OFF.items():
    os.environ.setdefault(_variable, _value)

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder
    from vsrn.encoders.torch_backend import Precision
    from vsrn.errors import VsrnError
    from vsrn.evaluation.measure import evaluate, recall
    from vsrn.extractors.base import register_extractor
    from vsrn.model.registry import register_aggregator, register_loss, register_model, register_text_encoder
    from vsrn.search.index import Hit, Index
    from vsrn.search.where import Where
    from vsrn.training.loggers import register_logger
    from vsrn.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "Hit",
    "Index",
    "VsrnError",
    "Where",
    "__version__",
    "build_index",
    "evaluate",
    "load",
    "open_index",
    "recall",
    "register_aggregator",
    "register_extractor",
    "register_logger",
    "register_loss",
    "register_model",
    "register_text_encoder",
    "train",
]


def load(folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """A run, a converted model, an exported folder or a packaged model's name, ready to use.

    folder     that folder or name; or "user/name" of a model on Hugging Face's hub, which is asked only where no folder
               of that name, and none called "user", is here (`Encoder.from_pretrained` has more options)
    device     where torch computes: `cpu`, `cuda`, `mps` or `auto`, photos included; exported encoders themselves run
               on the CPU, without torch until a photo is read or a caption written
    precision  "fp32", or "bf16", which rounds weights and products: faster, with a cosine to "fp32" above 0.999

    A SCAN has no embeddings: of it `compare`, `similarity` and `encode_split` work.

    Raises `CheckpointError` where the folder cannot be used or the hub does not have it, and `ConfigError` where the
    device or the precision is not there.
    """
    from vsrn.encoders import load_encoder  # noqa: PLC0415 - whoever imports vsrn waits for nothing
    from vsrn.encoders.hub import fetch  # noqa: PLC0415

    return load_encoder(fetch(folder), device, precision)


def build_index(
    model: Encoder | Path | str, photos: Path | str | Sequence[Path | str] | None, folder: Path | str
) -> Index:
    """Index folders of photos, or bring their index in step with them; resumable. The CLI's `vsrn index` has options.

    photos  folders to add to those that the index is of; None for no other

    Raises what `vsrn.search.build.update_index` and `open_index` raise.
    """
    from vsrn.search.build import update_index  # noqa: PLC0415

    update_index(photos, folder, model)
    return open_index(folder)


def open_index(folder: Path | str, *, uri: str = "", device: str = "auto") -> Index:
    """Open an index to search it; sentences need no torch.

    uri     where an index keeps its vectors in Milvus outside of its folder: that server or file, to be named again
    device  where photos that are searched by are extracted: `cpu`, `cuda`, `mps` or `auto`

    Raises `SearchError` where the folder is no index or is broken.
    """
    from vsrn.search.index import Index  # noqa: PLC0415

    return Index(folder, uri, device)


_PLACES = {
    "Encoder": "vsrn.encoders.base",
    "Hit": "vsrn.search.index",
    "Index": "vsrn.search.index",
    "VsrnError": "vsrn.errors",
    "Where": "vsrn.search.where",
    "evaluate": "vsrn.evaluation.measure",
    "recall": "vsrn.evaluation.measure",
    "register_aggregator": "vsrn.model.registry",
    "register_extractor": "vsrn.extractors.base",
    "register_logger": "vsrn.training.loggers",
    "register_loss": "vsrn.model.registry",
    "register_model": "vsrn.model.registry",
    "register_text_encoder": "vsrn.model.registry",
    "train": "vsrn.training.train",
}


def __getattr__(name: str) -> object:
    # Whoever imports vsrn does not wait for the packages that these need.
    place = _PLACES.get(name)
    if place is not None:
        return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module 'vsrn' has no attribute '{name}'")
