"""Which encoder goes with which kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from vsrn.encoders.encoded import SplitEncoder
from vsrn.encoders.scan_encoder import SetEncoder
from vsrn.encoders.torch_backend import Encoder
from vsrn.errors import CheckpointError
from vsrn.model.base import BaseModel, MatchingModel
from vsrn.model.saved import StoredModel, read_any_model
from vsrn.model.scan import SCAN


def encoder_of(stored: StoredModel[BaseModel], device: str = "auto") -> SplitEncoder:
    """What encodes splits by a model of any kind. Raises `CheckpointError` where nothing encodes this kind."""
    if isinstance(stored.model, MatchingModel):
        return Encoder(cast("StoredModel", stored), device)
    if isinstance(stored.model, SCAN):
        return SetEncoder(cast("StoredModel[SCAN]", stored), device)
    raise CheckpointError(
        f'a model of kind "{stored.config.model.kind}" has no vectors; make it a vsrn.model.base.MatchingModel.'
    )


def load_encoder(folder: Path | str, device: str = "auto") -> SplitEncoder:
    """The same for a run or a converted model. Raises `CheckpointError` where it cannot be used."""
    return encoder_of(read_any_model(folder), device)
