"""Fingerprints of models never change: indexes and exports on disk name them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, model_fingerprint

SIZES = ModelConfig(feature_dim=4, joint_dim=6, word_dim=3, reasoning_layers=1)
CAPTIONER = CaptionerConfig(hidden_dim=3, word_dim=2)
VSEPP = ModelConfig(kind="vsepp", feature_dim=4, joint_dim=6, word_dim=3)
POOLED = replace(SIZES, aggregator="gpo", caption_aggregator="gpo", caption_bidirectional=True, captioner=CAPTIONER)
# Recorded before parts were registered by name.
RECORDED = {
    "77e9069eb8e192b2e5bebf36d135d5268c7737252ca483892888b3a5c89e2977": replace(SIZES, captioner=CAPTIONER),
    "48c0fed14a1ef523d272442aed63b07914ea0e0443f7b8ae0f53e8d9ae6465eb": replace(SIZES, normalisation="flickr30k"),
    "ddd0581089f8ee724458f992c89444174217044e7a0852f1aa98df579362fc96": replace(
        SIZES, aggregator="mean", normalisation="none"
    ),
    "943a1fb2398d4894fdd886251643bd69c5ece95afcbc0f37fc3802d01a4c06f5": POOLED,
    "d1ec6024c741ca03c938e9eab49dea0a5abd5658ed5f9cff2b8b1ab89a1a7411": replace(
        SIZES, similarity="order", absolute=True, image_norm=False
    ),
    "f98bb858cde9af0b1deeb33606dea3143a9051c5a9dadc5a629cacb8ffc5452f": VSEPP,
}


def fingerprint(config: Config) -> str:
    """That of a model whose weights are counted off."""
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog", "cat"])
    model = build_model(config, vocabulary)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) / 8)
    return model_fingerprint(StoredModel(config, vocabulary, model))


@pytest.mark.parametrize(("recorded", "model"), RECORDED.items())
def test_a_fingerprint_is_the_recorded_one(recorded: str, model: ModelConfig) -> None:
    order = "reversed" if model is POOLED else "stored"
    assert fingerprint(Config(data=DataConfig(region_order=order), model=model)) == recorded  # type: ignore[arg-type]


def test_a_setting_that_shows_in_no_weight_changes_the_fingerprint() -> None:
    plain = replace(SIZES, normalisation="none", aggregator="mean")
    changed = [
        replace(plain, image_norm=False),
        replace(plain, absolute=True),
        replace(plain, caption_aggregator="mean"),
    ]
    assert len({fingerprint(Config(model=model)) for model in [plain, *changed]}) == 4
