"""Our SCAN against numbers recorded from the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsrn.config import ModelConfig, ScanConfig
from vsrn.model.losses import matching_loss
from vsrn.model.scan import SCAN, similarities

DIRECTIONS = {"t2i": ("text_to_image", 9.0, 6.0), "i2t": ("image_to_text", 4.0, 5.0)}
AGGREGATIONS = {"LogSumExp": "logsumexp", "Mean": "mean", "Max": "max", "Sum": "sum"}
FIRST_NORMS = ["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"]


class ScanRecording:
    """The recorded model and what it said."""

    def __init__(self, folder: Path) -> None:
        self.reference: dict[str, Any] = dict(np.load(folder / "reference.npz"))
        images, captions = torch.load(folder / "weights.pth", weights_only=True)["model"]
        words, word_dim = captions["embed.weight"].shape
        joint_dim, feature_dim = images["fc.weight"].shape
        self.model = SCAN(ModelConfig("scan", feature_dim, joint_dim, word_dim), words).eval()
        self.model.region_encoder.projection.load_state_dict(without_prefix(images, "fc."))
        self.model.word_encoder.embedding.load_state_dict(without_prefix(captions, "embed."))
        self.model.word_encoder.gru.load_state_dict(without_prefix(captions, "rnn."))

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.reference[name])

    def similarities(self, config: ScanConfig) -> torch.Tensor:
        regions = self.model.region_encoder(self.tensor("images")).vectors
        words = self.model.word_encoder(self.tensor("captions"), self.tensor("lengths"))
        return similarities(regions, words, self.tensor("lengths"), None, config)


def without_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@pytest.fixture
def recording(golden: Path) -> ScanRecording:
    return ScanRecording(golden / "scan")


def config_of(direction: str, aggregation: str, first_norm: Any) -> ScanConfig:
    asks, temperature, factor = DIRECTIONS[direction]
    chosen: Any = {"direction": asks, "aggregation": AGGREGATIONS[aggregation]}
    return ScanConfig(**chosen, first_norm=first_norm, inverse_temperature=temperature, logsumexp_factor=factor)


@torch.no_grad()
def test_regions_and_words(recording: ScanRecording) -> None:
    regions = recording.model.region_encoder(recording.tensor("images")).vectors
    words = recording.model.word_encoder(recording.tensor("captions"), recording.tensor("lengths"))
    assert_close(regions, recording.tensor("region_embeddings"))
    assert_close(words, recording.tensor("word_embeddings"))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("first_norm", FIRST_NORMS)
@torch.no_grad()
def test_every_recorded_table_of_scores(
    recording: ScanRecording, direction: str, aggregation: str, first_norm: str
) -> None:
    scores = recording.similarities(config_of(direction, aggregation, first_norm))
    assert_close(scores, recording.tensor(f"scores_{direction}_{aggregation}_{first_norm}"))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregation", ["LogSumExp", "Mean"])
@pytest.mark.parametrize("negatives", ["max", "sum"])
@torch.no_grad()
def test_every_recorded_loss(recording: ScanRecording, direction: str, aggregation: str, negatives: str) -> None:
    scores = recording.similarities(config_of(direction, aggregation, "clipped_l2norm"))
    loss = matching_loss(scores, margin=0.2, hardness=float(negatives == "max"))
    torch.testing.assert_close(loss, recording.tensor(f"loss_{direction}_{aggregation}_{negatives}"), rtol=1e-5, atol=0)


def test_every_recording_is_compared(recording: ScanRecording) -> None:
    scores = [name for name in recording.reference if name.startswith("scores_")]
    losses = [name for name in recording.reference if name.startswith("loss_")]
    assert (len(scores), len(losses)) == (2 * len(AGGREGATIONS) * len(FIRST_NORMS), 8) == (40, 8)


def assert_close(ours: torch.Tensor, recorded: torch.Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=1e-5)
