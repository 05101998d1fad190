"""Generalised pooling against recordings of VSE-infinity's, against loops, and inside the two encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vsrn.config import ModelConfig
from vsrn.encoders.torch_backend import encode_tokens
from vsrn.model.aggregators import POSITION_DIM, GeneralisedPooling, position_encodings
from vsrn.model.gru import pad_tokens
from vsrn.model.vsrn import ImageEncoder, TextEncoder

D, V = 6, 9
CAPTION_ENCODERS: list[dict[str, Any]] = [
    {"caption_bidirectional": True},
    {"caption_aggregator": "gpo"},
    {"caption_bidirectional": True, "caption_aggregator": "gpo"},
    {"caption_bidirectional": True, "caption_layers": 2},
    {"caption_bidirectional": True, "caption_layers": 2, "caption_aggregator": "gpo"},
]
captions = st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=7), min_size=1, max_size=9)


def in_one_gru(pooling: GeneralisedPooling) -> nn.GRU:
    """The decoder of the weights as the paper has it: one bidirectional GRU."""
    gru = nn.GRU(POSITION_DIM, POSITION_DIM, batch_first=True, bidirectional=True)
    ahead = pooling.forwards.state_dict()
    back = {f"{name}_reverse": tensor for name, tensor in pooling.backwards.state_dict().items()}
    gru.load_state_dict(ahead | back)
    return gru.to(pooling.score.weight)


def recorded_pooling(golden: Path) -> GeneralisedPooling:
    recorded = torch.load(golden / "gpo" / "weights.pth", weights_only=True)
    directions = {"forwards": "_l0", "backwards": "_l0_reverse"}
    weights = {
        f"{ours}.{kind}_l0": recorded[f"gru.{kind}{theirs}"]
        for ours, theirs in directions.items()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    pooling = GeneralisedPooling()
    pooling.load_state_dict(weights | {"score.weight": recorded["linear.weight"]})
    return pooling


@torch.no_grad()
def test_pooling_and_its_weights_are_what_was_recorded(golden: Path) -> None:
    pooling, reference = recorded_pooling(golden), np.load(golden / "gpo" / "reference.npz")
    features, lengths = torch.from_numpy(reference["features"]), torch.from_numpy(reference["lengths"])
    longest = features.shape[1]
    assert features[1, lengths[1] :].any(), "the recording's padding is not zero"
    mask = torch.arange(longest) < lengths[:, None]
    np.testing.assert_allclose(pooling(features, mask), reference["pooled"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pooling.weights(lengths, longest), reference["weights"], rtol=0, atol=1e-5)
    whole = features[lengths == longest]
    np.testing.assert_allclose(pooling(whole), reference["pooled"][lengths == longest], rtol=0, atol=1e-5)


def test_positions_are_sines_and_cosines() -> None:
    ours = position_encodings(torch.arange(40))
    for place in range(40):
        for pair in range(POSITION_DIM // 2):
            angle = place / 10_000 ** (2 * pair / POSITION_DIM)
            assert ours[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert ours[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_pooling_is_a_sort_of_each_channel_weighed_by_one_packed_gru(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    pooling, counts = GeneralisedPooling().double(), torch.tensor(lengths)
    longest = max(lengths)
    # Few values, so that there are ties.
    features = torch.randint(-3, 4, (len(lengths), longest, D)).double()
    with torch.no_grad():
        ours = pooling(features, torch.arange(longest) < counts[:, None])
    positions = position_encodings(torch.arange(longest)).double().expand(len(lengths), -1, -1)
    packed = pack_padded_sequence(positions, counts, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(in_one_gru(pooling)(packed)[0], batch_first=True)
    scores = pooling.score((states[..., :POSITION_DIM] + states[..., POSITION_DIM:]) / 2)[..., 0].detach()
    for row, length in enumerate(lengths):
        weights = (scores[row, :length] / 0.1).softmax(0)
        for channel in range(D):
            falling = sorted(features[row, :length, channel].tolist(), reverse=True)
            wanted = sum(float(weight) * value for weight, value in zip(weights, falling, strict=True))
            assert ours[row, channel].item() == pytest.approx(wanted, abs=1e-10)


def test_padding_is_neither_seen_nor_given_a_gradient() -> None:
    pooling, counts = GeneralisedPooling(), torch.tensor([1, 4, 6])
    features = torch.randn(3, 6, D).requires_grad_()
    pooling(features, torch.arange(6) < counts[:, None]).sum().backward()
    assert features.grad is not None
    padding = torch.arange(6) >= counts[:, None]
    assert not features.grad[padding].any()
    # Weights sum to 1, and each goes to some region.
    torch.testing.assert_close(features.grad.sum(dim=1), torch.ones(3, D))
    for parameter in pooling.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


def test_half_precision_products_leave_the_weights_alone() -> None:
    pooling, rounded = GeneralisedPooling(), torch.randn(2, 5, D).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = pooling(rounded)
    assert torch.equal(ours, pooling(rounded.float()))


def test_an_image_pooled_so_has_no_order() -> None:
    config = ModelConfig(feature_dim=5, joint_dim=D, reasoning_layers=0, aggregator="gpo", normalisation="none")
    encoder, regions = ImageEncoder(config).double().eval(), torch.randn(3, 7, 5).double()
    with torch.no_grad():
        torch.testing.assert_close(encoder(regions).embeddings, encoder(regions.flip(1)).embeddings)


@pytest.mark.parametrize("fields", CAPTION_ENCODERS)
@settings(max_examples=20, deadline=None)
@given(written=captions)
def test_a_caption_among_others_is_what_its_words_alone_give(fields: dict[str, Any], written: list[list[int]]) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(ModelConfig(joint_dim=D, word_dim=4, **fields), V).eval()
    arrays = [np.array(tokens) for tokens in written]
    with torch.no_grad():
        alone = torch.stack([embedding_by_hand(encoder, torch.tensor([tokens])) for tokens in written])
        together = encoder(*pad_tokens(arrays))
        further = encoder(nn.functional.pad(pad_tokens(arrays)[0], (0, 3), value=V - 1), pad_tokens(arrays)[1])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(further, alone, rtol=0, atol=1e-6)
    # No prefix says what a whole caption does; without a tree of them, each must still come out.
    np.testing.assert_allclose(encode_tokens(encoder, arrays), alone, rtol=0, atol=1e-6)


def embedding_by_hand(encoder: TextEncoder, tokens: torch.Tensor) -> torch.Tensor:
    """(1, T) tokens without padding -> (D,)."""
    states = encoder.gru(encoder.embedding(tokens))[0][0]
    ahead, back = (states[:, :D], states[:, D:]) if encoder.gru.bidirectional else (states, states)
    if encoder.aggregator is None:
        pooled = (ahead[-1] + back[0]) / 2
    else:
        pooled = encoder.aggregator(((ahead + back) / 2)[None])[0]
    return pooled / pooled.norm()


@pytest.mark.parametrize("fields", CAPTION_ENCODERS)
def test_captions_rounded_to_half_precision_are_near(fields: dict[str, Any]) -> None:
    encoder = TextEncoder(ModelConfig(joint_dim=64, word_dim=32, **fields), V).eval()
    generator = np.random.default_rng(0)
    written = [generator.integers(1, V, size=size) for size in generator.integers(1, 20, size=600)]
    heard: list[int] = []
    exact = encode_tokens(encoder, written, heard.append)
    assert sum(heard) == 600
    rounded = encode_tokens(encoder, written, dtype=torch.bfloat16)
    assert rounded.dtype == np.float32
    assert (exact * rounded).sum(axis=1).min() > 0.999
    assert not np.array_equal(exact, rounded)
