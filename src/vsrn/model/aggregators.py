"""Aggregators: how the vectors of regions, or of words, become one vector. `vsrn.register_aggregator` adds one.

Shapes: B images or captions, N regions or words of the longest, D joint size. `mask` (B, N) is True where a vector is
real, which are the first of each row, and None where all are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vsrn.model.gru import at_least_float32, dtype_of, read_sequences, state_at

POSITION_DIM = 32
TEMPERATURE = 0.1


class GlobalSemanticReasoning(nn.Module):
    """VSRN's aggregator (section 3.3): a GRU reads the regions in their stored order; its last state is the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        inputs = regions.to(dtype_of(self.gru))
        states = read_sequences(self.gru, inputs)
        last = states[:, -1] if mask is None else state_at(states, mask.sum(dim=1) - 1)
        return last.to(inputs.dtype)


class MeanPooling(nn.Module):
    """The mean of the regions: VSE++'s aggregator, and the paper's baseline without reasoning."""

    def __init__(self, _dim: int = 0) -> None:
        super().__init__()

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, D)."""
        if mask is None:
            return regions.mean(dim=1)
        return (regions * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class MeanOfStates(MeanPooling):
    """A GRU reads the regions in their order; the image is the mean of its states, not the last one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        # What the GRU makes of padding comes after the real states, and the mean leaves it out.
        return super().forward(at_least_float32(read_sequences(self.gru, regions.to(dtype_of(self.gru)))), mask)


class LastStateAndMean(GlobalSemanticReasoning):
    """The GRU's last state added to the mean of the regions, as a residual connection around the GRU."""

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        last = super().forward(regions, mask)
        return at_least_float32(last) + MeanPooling()(at_least_float32(regions), mask)


class BothDirections(nn.Module):
    """Two GRUs read the regions, in their order and from the end; the image is the mean of their last states."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forwards, self.backwards = GlobalSemanticReasoning(dim), GlobalSemanticReasoning(dim)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        if mask is None:
            mirrored = regions.flip(1)
        else:  # Within each image, so that padding comes last for both.
            places = mirrored_places(mask.sum(dim=1), regions.shape[1])
            mirrored = regions.gather(1, places[..., None].expand(-1, -1, regions.shape[2]))
        ahead, back = self.forwards(regions, mask), self.backwards(mirrored, mask)
        return (at_least_float32(ahead) + at_least_float32(back)) / 2


class GeneralisedPooling(nn.Module):
    """VSE-infinity's aggregator (Chen et al., *Learning the Best Pooling Strategy ...*, CVPR 2021): weights of a sort.

    pooled = sum_k theta_k max_k(features)     max_k is the k-th largest of a channel over the regions or words

    The weights depend on the number n of features alone: a bidirectional GRU decodes the places 1 to n into them. Mean,
    maximum and mean of the K largest are weights that it can learn.
    """

    def __init__(self, _dim: int = 0) -> None:
        super().__init__()
        # The two directions are separate GRUs: the forward one gives a place the same state whatever n is.
        self.forwards = nn.GRU(POSITION_DIM, POSITION_DIM, batch_first=True)
        self.backwards = nn.GRU(POSITION_DIM, POSITION_DIM, batch_first=True)
        self.score = nn.Linear(POSITION_DIM, 1, bias=False)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) features -> (B, D)."""
        # In float32 under bf16 autocast too: it costs next to nothing, and the temperature would magnify rounding.
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            longest = features.shape[1]
            if mask is None:
                lengths = torch.full((1,), longest, device=features.device)
                weights = self.weights(lengths, longest).to(features.dtype)
                return (weights @ features.sort(dim=1, descending=True).values)[:, 0]
            # The weights of every length there may be, of which each row takes its own: to ask which there are would
            # wait for a GPU, and its graph of a whole step could not be recorded.
            every = self.weights(torch.arange(1, longest + 1, device=features.device), longest)
            # Padding sorts last; its infinities must become 0 before they meet a weight of 0.
            falling = features.masked_fill(~mask[..., None], -torch.inf).sort(dim=1, descending=True).values
            weights = functional.embedding(mask.sum(dim=1) - 1, every.to(features.dtype))[:, None]
            return (weights @ falling.masked_fill(~mask[..., None], 0))[:, 0]

    def weights(self, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """(L,) numbers of features -> (L, longest) weights of the places of the sort; 0 from each length on."""
        places = torch.arange(longest, device=lengths.device)
        positions = position_encodings(places).to(dtype_of(self.score))
        mirrored = mirrored_places(lengths, longest)
        ahead, _ = self.forwards(positions[None])
        back, _ = self.backwards(positions[mirrored])
        back = back.gather(1, mirrored[..., None].expand(-1, -1, POSITION_DIM))
        scores = self.score((ahead + back) / 2)[..., 0]
        return (scores.masked_fill(places >= lengths[:, None], -torch.inf) / TEMPERATURE).softmax(dim=1)


def mirrored_places(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """(B,) lengths -> (B, longest): which place is k-th from each end, n - 1 - k; 0 after the end."""
    return (lengths[:, None] - 1 - torch.arange(longest, device=lengths.device)).clamp(min=0)


def position_encodings(places: torch.Tensor) -> torch.Tensor:
    """(N,) places from 0 -> (N, 32) sines at even and cosines at odd numbers (Vaswani et al. 2017, section 3.5)."""
    rates = 10_000 ** (-torch.arange(0, POSITION_DIM, 2, device=places.device) / POSITION_DIM)
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
