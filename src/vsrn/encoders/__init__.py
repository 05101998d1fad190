"""Models at work: one `Encoder` (base.py), run by torch or by onnxruntime; captions, explanations and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder, Precision


def load_encoder(folder: Path | str, device: str = "auto", precision: Precision = "fp32") -> Encoder:
    """A run, a converted model or an exported folder, of any kind, ready to use.

    device     where torch computes: `cpu`, `cuda`, `mps` or `auto`; exported encoders run on the CPU
    precision  "bf16" for weights and products rounded to it, which is faster; exported encoders and SCAN compute in
               "fp32" all the same

    Raises `CheckpointError` where the folder cannot be used, and `ConfigError` where the device is not there.
    """
    # torch takes seconds to import, and an exported model does without it until it reads a photo.
    if (Path(folder) / "export.json").is_file():
        from vsrn.encoders.onnx_backend import OnnxEncoder  # noqa: PLC0415

        return OnnxEncoder(folder, device=device)
    from vsrn.encoders.torch_backend import encoder_of  # noqa: PLC0415
    from vsrn.model.saved import read_any_model  # noqa: PLC0415

    return encoder_of(read_any_model(folder), device, precision)
