"""Region relationship reasoning: graph convolutions over the regions of an image (section 3.2).

Shapes: B images, N regions, D joint size. `mask` (B, N) is True where a region is real and None where all are; padded
regions neither send nor receive anything and stay zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from vsrn.model.batch_norm import norm_of_real
from vsrn.model.gru import dtype_of, for_products, is_plain, l2_normalise

# Folding costs a product of D x D weights and saves products over B x N regions: it pays from here on.
FOLD_AT = 2


def normalise_channels(regions: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, N, D): each *channel* gets unit length over the regions of its image.

    The 2019 code meant to normalise each region; its published weights depend on what it did.
    """
    return l2_normalise(regions, dim=1)


class FoldedProducts(NamedTuple):
    """A layer's products of weights with weights, computed once: half the arithmetic, the same numbers.

    theta(V) phi(V)^T  = (V A + a) V^T + (V b + c) 1^T    with A = W_theta^T W_phi
    W_r(R V W_g)       = R (V G + g) + shift              with G = W_g^T W_r^T

    weight (2D, D) and bias (2D,) hold A with a, then G with g; row (D,) is b; constant () is c; shift (D,)
    """

    weight: torch.Tensor
    bias: torch.Tensor
    row: torch.Tensor
    constant: torch.Tensor
    shift: torch.Tensor

    def messages(self, regions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, N, D) regions -> (B, N, D) the message to each region, before BatchNorm."""
        regions = for_products(regions)
        queries, sent = functional.linear(regions, self.weight, self.bias).chunk(2, dim=-1)
        affinity = of_pairs(queries, regions.to(queries.dtype)) + (regions @ self.row + self.constant)[..., None]
        return _shares(affinity, mask).to(sent.dtype) @ sent + self.shift


class RegionRelationshipReasoning(nn.Module):
    """Section 3.2: one graph convolution over the regions of an image (Eqs. 2-3).

    R  = theta(V) phi(V)^T / N        affinity of every pair of regions
    V* = W_r(R V W_g) + V             each region adds the messages of its neighbours
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
        inputs = regions.to(dtype_of(self.theta))
        if self.foldable and inputs.shape[0] * inputs.shape[1] >= FOLD_AT * inputs.shape[2]:
            messages = self.folded().messages(inputs, mask)
        else:
            messages = self.w_r(self.affinity(inputs, mask) @ self.w_g(inputs))
        return regions + norm_of_real(self.norm, messages, mask)

    def affinity(self, regions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) regions -> (B, N, N) R of Eq. 2: how much of each region's message (columns) a region takes (rows).

        Divided by the number of an image's real regions; columns of padded regions are 0.
        """
        inputs = regions.to(dtype_of(self.theta))
        return _shares(of_pairs(self.theta(inputs), self.phi(inputs)), mask)

    @property
    def foldable(self) -> bool:
        """Whether the products may be folded: with a hook, an adapter or a wrapper, each layer has to be called."""
        layers = (self.theta, self.phi, self.w_g, self.w_r)
        return all(is_plain(layer, nn.Linear) and layer.bias is not None for layer in layers)

    def folded(self) -> FoldedProducts:
        """The layer's products of weights with weights, with gradients to those weights."""
        return FoldedProducts(
            weight=torch.cat([self.phi.weight.mT @ self.theta.weight, self.w_r.weight @ self.w_g.weight]),
            bias=torch.cat([self.theta.bias @ self.phi.weight, self.w_r.weight @ self.w_g.bias]),
            row=self.phi.bias @ self.theta.weight,
            constant=self.theta.bias @ self.phi.bias,
            shift=self.w_r.bias,
        )


def _shares(affinity: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, N, N) affinity divided by the number of real regions; padded ones send nothing."""
    if mask is None:
        return affinity / affinity.shape[1]
    return affinity * mask[:, None, :] / mask.sum(dim=1)[:, None, None]


def of_pairs(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(B, N, D), (B, N, D) -> (B, N, N) inner products of every query (rows) with every key of its image."""
    if queries.device.type != "cpu" or not torch.is_grad_enabled():
        return queries @ keys.transpose(1, 2)  # an export knows no mT
    products: torch.Tensor = _PairProducts.apply(queries, keys)
    return products


class _PairProducts(torch.autograd.Function):
    """`queries @ keys.mT` whose gradients come as (B, N, D) in memory; torch's come as (B, D, N) and are copied."""

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(B, N, D), (B, N, D) -> (B, N, N)."""
        ctx.save_for_backward(queries, keys)
        return queries @ keys.mT

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, N) -> the gradients of queries and keys, (B, N, D) each."""
        queries, keys = ctx.saved_tensors
        gradient = gradient.to(queries.dtype)
        return gradient @ keys, gradient.mT @ queries
