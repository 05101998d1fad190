"""VSE++'s named settings against recordings: what it shares with VSRN was recorded, its image path never was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vsrn.config import ModelConfig, read_config
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.model.losses import SIMILARITIES, hardness_after, matching_loss
from vsrn.model.vsepp import PhotoEncoder, build_vsepp

CONFIGS = Path(__file__).parent.parent.parent / "src/vsrn/configs/vsepp"
# What the recordings call each setting's loss, and what was published of it.
SETTINGS = {
    "vse0": ("retrieval_loss_cosine_sum", 0.2, 2e-4),
    "vsepp": ("retrieval_loss_cosine_max", 0.2, 2e-4),
    "order0": ("retrieval_loss_order_sum", 0.05, 1e-3),
    "orderpp": ("retrieval_loss_order_max", 0.05, 1e-3),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("recording", ["f30k", "order"])
def test_each_setting_has_the_loss_that_was_recorded_for_it(golden: Path, name: str, recording: str) -> None:
    config, (recorded, margin, learning_rate) = read_config(CONFIGS / f"{name}.toml"), SETTINGS[name]
    assert (config.loss.margin, config.train.learning_rate) == (margin, learning_rate)
    assert config.model.absolute == name.startswith("order")
    assert config.model.image_norm == (name != "vse0")
    reference = np.load(golden / recording / "reference.npz")
    images, captions = (torch.from_numpy(reference[f"{side}_embeddings"]) for side in ("image", "caption"))
    # The recordings have margin 0.2 whatever the setting's own.
    loss = matching_loss(
        SIMILARITIES[config.model.similarity](images, captions), 0.2, hardness_after(config.loss, math.inf)
    )
    torch.testing.assert_close(loss, torch.from_numpy(reference[recorded]), rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("recording", ["f30k", "order", "options"])
def test_captions_are_encoded_as_recorded(golden: Path, recording: str) -> None:
    legacy = read_checkpoint(golden / recording / "checkpoint.pth.tar")
    theirs = legacy.config.model
    config = ModelConfig(
        kind="vsepp",
        feature_dim=7,
        **{name: getattr(theirs, name) for name in ("joint_dim", "word_dim", "caption_layers", "absolute")},
    )
    model = build_vsepp(config, legacy.vocabulary_size).eval()
    own = {name: tensor for name, tensor in legacy.weights.items() if name.startswith("caption_encoder.")}
    loaded = model.load_state_dict(own, strict=False)
    assert all(name.startswith("image_encoder.") for name in loaded.missing_keys)
    reference = np.load(golden / recording / "reference.npz")
    ours = model.caption_encoder(torch.from_numpy(reference["captions"]), torch.from_numpy(reference["lengths"]))
    torch.testing.assert_close(ours, torch.from_numpy(reference["caption_embeddings"]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("image_norm", [True, False])
def test_a_photo_becomes_its_features_projected(absolute: bool, image_norm: bool) -> None:
    """Against the formula in float64: unit length, projection, unit length if asked, signs off if asked."""
    config = ModelConfig(kind="vsepp", joint_dim=8, word_dim=4, absolute=absolute, image_norm=image_norm)
    config = replace(config, network=replace(config.network, name="resnet18", weights="random"))
    encoder = build_vsepp(config, vocabulary_size=9).eval().image_encoder
    assert isinstance(encoder, PhotoEncoder)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    features = encoder.get_submodule("network")(pixels).double().numpy()
    features /= np.sqrt((features**2).sum(axis=1, keepdims=True))
    projected = features @ encoder.projection.weight.double().numpy().T + encoder.projection.bias.double().numpy()
    if image_norm:
        projected /= np.sqrt((projected**2).sum(axis=1, keepdims=True))
    expected = np.abs(projected) if absolute else projected
    np.testing.assert_allclose(encoder(pixels).embeddings.numpy(), expected, atol=1e-5)
