"""Region relationship reasoning (section 3.2) and global semantic reasoning (section 3.3).

Shapes: B images, N regions, D joint size. `mask` (B, N) is True where a region is real and None
where all are; padded regions neither send nor receive anything and stay zero.
"""

from __future__ import annotations

import torch
from torch import nn

from vsrn.model.numerics import l2_normalise


def normalise_channels(regions: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, N, D): each *channel* gets unit length over the regions of its image.

    The 2019 code meant to normalise each region and normalised along the wrong axis; its published
    weights depend on what it did, so this is kept under the name of what it does.
    """
    return l2_normalise(regions, dim=1)


class RegionRelationshipReasoning(nn.Module):
    """Section 3.2: one graph convolution over the regions of an image (Eqs. 2-3).

    R  = theta(V) phi(V)^T / N        affinity of every pair of regions
    V* = W_r(R V W_g) + V             each region adds what its neighbours say
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.theta, self.phi = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.w_g, self.w_r = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        # A fresh layer changes nothing: V* = V.
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, N, D) relation-aware regions."""
        affinity = self.theta(regions) @ self.phi(regions).mT  # (B, N, N)
        if mask is None:
            messages = self.w_r(affinity / regions.shape[1] @ self.w_g(regions))
            return regions + self.norm(messages.mT).mT
        affinity = affinity * mask[:, None, :] / mask.sum(dim=1)[:, None, None]
        messages = self.w_r(affinity @ self.w_g(regions))
        # BatchNorm sees real regions only, so that padding never moves its statistics.
        update = torch.zeros_like(regions)
        update[mask] = self.norm(messages[mask]).to(update.dtype)
        return regions + update


class GlobalSemanticReasoning(nn.Module):
    """Section 3.3: a GRU reads the regions in their stored order; its last state is the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) reasoned regions -> (B, D)."""
        states, last = self.gru(regions)
        if mask is None:
            return last[0]
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


class MeanPooling(nn.Module):
    """The aggregator of VSE++ on regions: their mean. The paper's baseline without reasoning."""

    def forward(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, D)."""
        if mask is None:
            return regions.mean(dim=1)
        return (regions * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
