"""Models at work: one `Encoder` (base.py), run by torch or by onnxruntime; captions, explanations and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder
    from vsrn.encoders.torch_backend import Precision


def load_encoder(folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """The model of a folder, as `vsrn.load` opens it; neither a packaged model's name nor one of the hub is known here.

    Raises `CheckpointError` where the folder cannot be used, and `ConfigError` where the device or the precision is not
    there.
    """
    # torch takes seconds to import, and an exported model does without it until it reads a photo.
    if (Path(folder) / "export.json").is_file():
        if precision != "fp32":
            raise ConfigError(f"{folder} is an export, which computes in fp32 only; load the run it was made from.")
        from vsrn.encoders.onnx_backend import OnnxEncoder  # noqa: PLC0415

        return OnnxEncoder(folder, device=device)
    from vsrn.encoders.scan_encoder import encoder_of  # noqa: PLC0415
    from vsrn.model.saved import read_any_model  # noqa: PLC0415

    return encoder_of(read_any_model(folder), device, precision)
