"""Which encoder goes with which kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsrn.encoders.encoded import SplitEncoder
from vsrn.encoders.scan_encoder import SetEncoder
from vsrn.encoders.torch_backend import Encoder
from vsrn.model.base import MatchingModel
from vsrn.model.saved import StoredModel, read_any_model
from vsrn.model.scan import SCAN
from vsrn.model.vsrn import VSRN

# VSE++ is a VSRN with other images.
ENCODERS: dict[type[MatchingModel], Callable[[StoredModel[Any], str], SplitEncoder]] = {
    VSRN: Encoder,
    SCAN: SetEncoder,
}


def encoder_of(stored: StoredModel[MatchingModel], device: str = "auto") -> SplitEncoder:
    """What encodes splits by a model, of whatever kind."""
    make = next(make for kind, make in ENCODERS.items() if isinstance(stored.model, kind))
    return make(stored, device)


def load_encoder(folder: Path | str, device: str = "auto") -> SplitEncoder:
    """The same for a run or a converted model. Raises `CheckpointError` where it cannot be used."""
    return encoder_of(read_any_model(folder), device)
