"""Captions read as a tree against captions read one by one through the module they were trained with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsrn.config import ModelConfig
from vsrn.encoders.folding import prefix_tree
from vsrn.encoders.torch_backend import encode_tokens
from vsrn.model.vsrn import TextEncoder

WORDS = 7
# Few words, so that captions often share prefixes, repeat each other, or are one another's prefix.
captions = st.lists(st.lists(st.integers(1, WORDS - 1), min_size=1, max_size=6), min_size=1, max_size=12)


@pytest.mark.parametrize("layers", [1, 2])
@given(written=captions)
def test_a_tree_of_captions_gives_what_each_gives_alone(layers: int, written: list[list[int]]) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(ModelConfig(joint_dim=5, word_dim=4, caption_layers=layers), WORDS).eval()
    with torch.no_grad():
        alone = [encoder(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0].numpy() for tokens in written]
    together = encode_tokens(encoder, [np.array(tokens) for tokens in written])
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@given(written=captions)
def test_every_distinct_prefix_is_one_node(written: list[list[int]]) -> None:
    levels = prefix_tree([np.array(tokens) for tokens in written])
    prefixes = {tuple(tokens[: end + 1]) for tokens in written for end in range(len(tokens))}
    assert [len(level.tokens) for level in levels] == [
        len([prefix for prefix in prefixes if len(prefix) == length]) for length in range(1, len(levels) + 1)
    ]
    assert sorted(place for level in levels for place in level.ended) == list(range(len(written)))
