"""Visual semantic reasoning for image-text matching (VSRN, ICCV 2019).

import vsrn
model = vsrn.load("runs/flickr8k")                  # a run, a converted model, or an exported folder
model.encode_images(["beach.jpg"])                  # (1, D) unit vectors
model.encode_captions(["two dogs play on a beach"]) # (1, D)
model.encode_regions(features)                      # (B, N, F) -> (B, D)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsrn.inference.encoder import Encoder
    from vsrn.inference.exported import ExportedEncoder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: Path | str, device: str = "auto") -> Encoder | ExportedEncoder:
    """A run, a converted model or an exported folder, ready to encode.

    device  `cpu`, `cuda`, `mps` or `auto`; exported encoders run on the CPU, without torch until a photo is read

    Raises `CheckpointError` where the folder cannot be used.
    """
    # torch takes seconds to import, and most of the package does without it.
    if (Path(folder) / "export.json").is_file():
        from vsrn.inference.exported import ExportedEncoder  # noqa: PLC0415

        return ExportedEncoder.load(folder)
    from vsrn.inference.encoder import Encoder  # noqa: PLC0415

    return Encoder.load(folder, device)
