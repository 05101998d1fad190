"""Models at work: one `Encoder` (base.py), run by torch or by onnxruntime; captions, explanations and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsrn.errors import CheckpointError

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder
    from vsrn.model.saved import StoredModel


def load_encoder(folder: Path | str, device: str = "auto") -> Encoder:
    """A run, a converted model or an exported folder, of any kind, ready to use.

    device  where torch computes: `cpu`, `cuda`, `mps` or `auto`; exported encoders run on the CPU

    Raises `CheckpointError` where the folder cannot be used, and `ConfigError` where the device is not there.
    """
    # torch takes seconds to import, and an exported model does without it until it reads a photo.
    if (Path(folder) / "export.json").is_file():
        from vsrn.encoders.onnx_backend import OnnxEncoder  # noqa: PLC0415

        return OnnxEncoder.load(folder, device=device)
    from vsrn.model.saved import read_any_model  # noqa: PLC0415

    return encoder_of(read_any_model(folder), device)


def encoder_of(stored: StoredModel[Any], device: str = "auto") -> Encoder:
    """What runs a model that is already read.

    Raises `ConfigError` where the device is not there, and `CheckpointError` where a registered kind of model has no
    embeddings.
    """
    from vsrn.encoders.scan_encoder import ScanEncoder  # noqa: PLC0415 - as above
    from vsrn.encoders.torch_backend import TorchEncoder  # noqa: PLC0415 - as above
    from vsrn.model.base import MatchingModel  # noqa: PLC0415 - as above
    from vsrn.model.scan import SCAN  # noqa: PLC0415 - as above

    if isinstance(stored.model, SCAN):
        return ScanEncoder(stored, device)
    if not isinstance(stored.model, MatchingModel):
        raise CheckpointError(
            f'a model of kind "{stored.config.model.kind}" has no embeddings; make it a vsrn.model.base.MatchingModel.'
        )
    return TorchEncoder(stored, device)
