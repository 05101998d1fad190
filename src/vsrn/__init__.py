"""Visual semantic reasoning for image-text matching (VSRN, ICCV 2019).

import vsrn
model = vsrn.load("runs/flickr8k")                  # a run, a converted model, or an exported folder
model.encode_images(["beach.jpg"])                  # (1, D) unit vectors
model.encode_captions(["two dogs play on a beach"]) # (1, D)
model.encode_regions(features)                      # (B, N, F) -> (B, D)
model.explain("beach.jpg", "two dogs")              # boxes with weights, heat map
index = vsrn.build_index(model, "photos/", "idx/")  # resumable; later: vsrn.open_index("idx/")
index.search("two dogs play on a beach", k=5)       # [Hit(id, score, path), ...]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

# What vsrn's dependencies would report to their makers. Each of them reads its variable when it is first imported or
# started, and every process that runs a module of vsrn imports this one before any of them: spawned processes and Ray's
# workers too. A variable that the user has set is kept. docs/security.md lists what each one stops.
SWITCHED_OFF = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
for _variable, _value in SWITCHED_OFF.items():
    os.environ.setdefault(_variable, _value)

if TYPE_CHECKING:
    from vsrn.encoders.exported import ExportedEncoder
    from vsrn.encoders.torch_backend import Encoder
    from vsrn.extractors.base import register_extractor
    from vsrn.search.index import Hit, Index
    from vsrn.search.records import Where

__version__ = "0.1.0"
__all__ = ["Hit", "Index", "Where", "__version__", "build_index", "load", "open_index", "register_extractor"]


def load(folder: Path | str, device: str = "auto") -> Encoder | ExportedEncoder:
    """A run, a converted model, an exported folder or a packaged model's name, ready to encode.

    device  `cpu`, `cuda`, `mps` or `auto`; exported encoders run on the CPU, without torch until a photo is read

    Raises `CheckpointError` where the folder cannot be used.
    """
    # torch takes seconds to import, and most of the package does without it.
    from vsrn.pretrained import find_model  # noqa: PLC0415

    folder = find_model(folder)
    if (folder / "export.json").is_file():
        from vsrn.encoders.exported import ExportedEncoder  # noqa: PLC0415

        return ExportedEncoder.load(folder)
    from vsrn.encoders.torch_backend import Encoder  # noqa: PLC0415

    return Encoder.load(folder, device)


def build_index(model: Encoder | ExportedEncoder | Path | str, photos: Path | str, folder: Path | str) -> Index:
    """Index a folder of photos, or bring its index in step with it; resumable. The CLI's `vsrn index` has options.

    Raises what `vsrn.search.build.update_index` and `open_index` raise.
    """
    from vsrn.search.build import update_index  # noqa: PLC0415

    update_index(photos, folder, model)
    return open_index(folder)


def open_index(folder: Path | str) -> Index:
    """Open an index to search it; sentences need no torch.

    Raises `SearchError` where the folder is no index or is broken.
    """
    from vsrn.search.index import open_index  # noqa: PLC0415

    return open_index(folder)


def __getattr__(name: str) -> object:
    # Whoever imports vsrn does not wait for the packages behind these.
    if name in ("Hit", "Index", "Where"):
        from vsrn.search import index  # noqa: PLC0415

        return getattr(index, name)
    if name == "register_extractor":
        from vsrn.extractors.base import register_extractor  # noqa: PLC0415

        return register_extractor
    raise AttributeError(f"module 'vsrn' has no attribute '{name}'")
