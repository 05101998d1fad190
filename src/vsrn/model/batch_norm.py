"""BatchNorm over the regions of a batch, with a backward pass of its own.

torch's CPU kernel takes regions as (B, D, N), a transposed view, whose backward pass took 12% of a training step. Here
they stay (B, N, D), and no shape depends on how many are real, so that nothing waits for a device to say.

Shapes: B images, N regions, D channels. `mask` (B, N) is True where a region is real, None where all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vsrn.model.gru import at_least_float32, is_plain


def norm_of_real(norm: nn.Module, regions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, N, D) regions -> (B, N, D): what a BatchNorm makes of the real ones, 0 where padded.

    Padding never moves the statistics of a batch. A BatchNorm that is not torch's own is called on the real regions.
    """
    if norm.training and is_plain(norm, nn.BatchNorm1d) and isinstance(norm, nn.BatchNorm1d):
        return norm_of_batch(norm, regions, mask)
    if mask is not None and (norm.training or regions.device.type == "cpu"):
        real = norm(regions[mask])
        normed: torch.Tensor = real.new_zeros(regions.shape)
        normed[mask] = real
        return normed
    normed = norm(regions.flatten(0, 1)).view_as(regions)
    return normed if mask is None else normed * mask[..., None]


def norm_of_batch(
    norm: nn.BatchNorm1d,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda part: part,
) -> torch.Tensor:
    """(..., D) values -> (..., D) by the statistics of their batch, which move the running ones as torch moves them.

    mask   (...) True where a value is real, or None; the others become 0
    total  the sum over all processes of what each has, where several share a batch
    """
    rows = values.flatten(0, -2)
    real = None if mask is None else mask.flatten()[:, None].to(at_least_float32(rows[:0]).dtype)
    normed: torch.Tensor
    normed, mean, variance, samples = _BatchNorm.apply(rows, norm.weight, norm.bias, real, norm.eps, total)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked += 1
        momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
        norm.running_var.lerp_((variance * (samples / (samples - 1))).to(norm.running_var), momentum)
    return normed.view_as(values)


class _BatchNorm(torch.autograd.Function):
    """Rows by the mean and variance of the real ones, scaled and shifted, with their gradient.

    rows      (S, D); real (S, 1) of ones and zeros, or None where all are real; weight and bias (D,)
    normed    (S, D) weight (rows - mean) / sqrt(variance + eps) + bias in float32 or float64, 0 where not real
    mean      (D,); variance (D,) divided by the number of samples; samples (), how many are real
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        real: torch.Tensor | None,
        eps: float,
        total: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalise; the rows are kept for the backward pass as they came, in bf16 where they are bf16."""
        values = at_least_float32(rows)
        samples = total(values.new_full((), len(values)) if real is None else real.sum())
        # Sums of squares of what is centred first are as exact as torch.var_mean, in a seventh of its time.
        mean = total((values if real is None else values * real).sum(dim=0)) / samples
        centred = values - mean
        if real is not None:
            centred.mul_(real)
        variance = total(centred.square().sum(dim=0)) / samples
        inverse = (variance + eps).rsqrt()
        normed = centred.mul_(inverse * weight).add_(bias)
        if real is not None:
            normed.mul_(real)
        ctx.save_for_backward(rows, weight, mean, inverse, real, samples)
        ctx.mark_non_differentiable(mean, variance, samples)
        ctx.total = total
        return normed, mean, variance, samples

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """(S, D) gradient of `normed` -> those of rows, weight and bias."""
        rows, weight, mean, inverse, real, samples = ctx.saved_tensors
        if real is not None:
            gradient = gradient * real
        whitened = (at_least_float32(rows) - mean).mul_(inverse)
        of_bias = gradient.sum(dim=0)
        of_weight = (gradient * whitened).sum(dim=0)
        of_rows = gradient - whitened.mul_(ctx.total(of_weight) / samples)
        of_rows.sub_(ctx.total(of_bias) / samples).mul_(inverse * weight)
        if real is not None:
            of_rows.mul_(real)
        return of_rows.to(rows.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None
