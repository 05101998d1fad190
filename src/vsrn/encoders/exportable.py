"""The encoders in operations that ONNX has: no packing, no indexing by tensors, every length free."""

from __future__ import annotations

import torch
from torch import nn

from vsrn.encoders.folding import fold
from vsrn.model.aggregators import GlobalSemanticReasoning, mirrored_places
from vsrn.model.image_encoder import ImageEncoder
from vsrn.model.text_encoder import TextEncoder


class ExportableImages(nn.Module):
    """Features and counts -> embeddings and reasoned regions: the image encoder, folded, as ONNX can say it."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = fold(encoder)
        if isinstance(self.encoder.aggregator, GlobalSemanticReasoning):
            self.encoder.aggregator = _LastRegion(self.encoder.aggregator.gru)

    def forward(self, features: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, F) features, (B,) real regions of each -> (B, D), (B, N, D)."""
        encoded = self.encoder(features, counts)
        return encoded.embeddings, encoded.reasoned_regions


class ExportableCaptions(nn.Module):
    """Tokens and lengths -> embeddings: the caption encoder, reading past the end instead of packing."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        gru = encoder.gru
        self.both_ways = nn.ModuleList(_BothWays(gru, layer) for layer in range(gru.num_layers * gru.bidirectional))

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, D)."""
        states = self.encoder.embedding(tokens)
        if self.encoder.gru.bidirectional:
            mirrored = mirrored_places(lengths, tokens.shape[1])
            for layer in self.both_ways:
                states = layer(states, mirrored)
        else:
            states, _ = self.encoder.gru(states)
        if self.encoder.aggregator is not None:
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            return self.encoder.embed(self.encoder.aggregator(self.encoder.mean_of_directions(states), mask))
        last = _state_at(states, lengths - 1)
        if self.encoder.gru.bidirectional:
            dim = self.encoder.gru.hidden_size
            last = (last[:, :dim] + states[:, 0, dim:]) / 2
        return self.encoder.embed(last)


class _LastRegion(nn.Module):
    """`GlobalSemanticReasoning` on masked regions, without indexing by tensors."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, regions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(regions)
        return _state_at(states, mask.sum(dim=1) - 1)


class _BothWays(nn.Module):
    """One layer of a bidirectional GRU; the backward direction is a forward one that reads captions mirrored."""

    def __init__(self, gru: nn.GRU, layer: int) -> None:
        super().__init__()
        self.ahead, self.back = (_direction(gru, f"l{layer}{suffix}") for suffix in ("", "_reverse"))

    def forward(self, inputs: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """(B, T, I) inputs, (B, T) `mirrored_places` -> (B, T, 2D) states."""
        ahead, _ = self.ahead(inputs)
        back, _ = self.back(_at(inputs, mirrored))
        return torch.cat([ahead, _at(back, mirrored)], dim=-1)


def _direction(gru: nn.GRU, name: str) -> nn.GRU:
    """One direction of one layer, named as torch does ("l0", "l1_reverse"), as a GRU of its own."""
    weights = {kind: getattr(gru, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    single = nn.GRU(weights["weight_ih"].shape[1], gru.hidden_size, batch_first=True)
    single.load_state_dict({f"{kind}_l0": tensor for kind, tensor in weights.items()})
    return single


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, P) places -> (B, P, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))


def _state_at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B,) places -> (B, D). A GRU reads forwards: what follows a place cannot change its state."""
    return _at(states, places[:, None])[:, 0]
