"""Reading many captions at once: what begins alike is read once.

A one-directional GRU's state after a prefix depends on the prefix alone, so captions are walked as a tree, one
level a step. Of real captions, a quarter to a third of the tokens share their whole prefix with another caption.
The first layer's input product depends on the word alone and is taken once per different word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vsrn.data.region_store import IntArray
from vsrn.data.vocabulary import PAD


class GRULayer:
    """One layer of a GRU (Cho et al. 2014, with torch's order of gates: reset, update, new), for inference.

    Everything is computed in `dtype`, or in the weights' own. Shapes: B rows, I input size, D state size.
    """

    def __init__(self, gru: nn.GRU, number: int = 0, dtype: torch.dtype | None = None) -> None:
        def rounded(name: str) -> torch.Tensor:
            tensor: torch.Tensor = getattr(gru, f"{name}_l{number}")
            return tensor.detach().to(dtype)

        self.weight_ih, self.bias_ih = rounded("weight_ih"), rounded("bias_ih")
        self.weight_hh, self.bias_hh = rounded("weight_hh"), rounded("bias_hh")
        self.dim = gru.hidden_size

    def gates(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) inputs -> (..., 3D), what they say of the three gates."""
        return functional.linear(inputs.to(self.weight_ih.dtype), self.weight_ih, self.bias_ih)

    def step(self, gates: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, 3D) what the input says of the gates, (B, D) states before -> (B, D) states after."""
        dim = self.dim
        recurrent = functional.linear(state, self.weight_hh, self.bias_hh)
        reset, update = recurrent[:, : 2 * dim].add_(gates[:, : 2 * dim]).sigmoid_().chunk(2, dim=1)
        new = torch.addcmul(gates[:, 2 * dim :], reset, recurrent[:, 2 * dim :]).tanh_()
        return new.lerp_(state, update)

    def first_state(self, rows: int) -> torch.Tensor:
        """(rows, D) zeros."""
        return self.weight_hh.new_zeros(rows, self.dim)


@dataclass(frozen=True)
class Level:
    """Distinct prefixes of one length.

    parents  (nodes,) which node of the level before each one continues
    tokens   (nodes,) the word it continues with
    ended    (captions that end here,) their places in the batch
    ends     (captions that end here,) the node each ends at
    """

    parents: IntArray
    tokens: IntArray
    ended: IntArray
    ends: IntArray


def prefix_tree(captions: Sequence[IntArray]) -> list[Level]:
    """Token ids of each caption -> the levels of the tree of their prefixes, shortest first.

    >>> levels = prefix_tree([np.array([1, 5, 2]), np.array([1, 5, 7, 2])])
    >>> [len(level.tokens) for level in levels]
    [1, 1, 2, 1]
    """
    lengths = np.array([len(tokens) for tokens in captions])
    padded = np.full((len(captions), lengths.max()), PAD)
    for row, tokens in enumerate(captions):
        padded[row, : len(tokens)] = tokens
    # Sorted as in a dictionary, captions that begin alike are neighbours.
    order = np.lexsort(padded.T[::-1])
    padded, lengths = padded[order], lengths[order]
    levels, node_of_caption = [], np.zeros(len(captions), dtype=np.int64)
    for place in range(padded.shape[1]):
        active = np.flatnonzero(lengths > place)
        before, tokens = node_of_caption[active], padded[active, place]
        new = np.ones(len(active), dtype=bool)
        new[1:] = (before[1:] != before[:-1]) | (tokens[1:] != tokens[:-1])
        node_of_caption[active] = np.cumsum(new) - 1
        ending = np.flatnonzero(lengths == place + 1)
        levels.append(Level(before[new], tokens[new], order[ending], node_of_caption[ending]))
    return levels


def last_states(
    gru: nn.GRU, embedding: nn.Embedding, captions: Sequence[IntArray], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The last layer's state at the last token of each caption: (num_captions, D) without gradients."""
    layers = [GRULayer(gru, number, dtype) for number in range(gru.num_layers)]
    used = np.unique(np.concatenate(captions))
    by_word = layers[0].gates(embedding(torch.from_numpy(used).to(embedding.weight.device)))  # (words used, 3D)
    last = by_word.new_empty(len(captions), gru.hidden_size)
    states = [layer.first_state(1) for layer in layers]
    for level in prefix_tree(captions):
        parents = torch.from_numpy(level.parents).to(last.device)
        gates = by_word[torch.from_numpy(np.searchsorted(used, level.tokens)).to(last.device)]
        for number, layer in enumerate(layers):
            if number:
                gates = layer.gates(states[number - 1])
            states[number] = layer.step(gates, states[number][parents])
        last[torch.from_numpy(level.ended)] = states[-1][torch.from_numpy(level.ends)]
    return last
