"""The two operations that every part of the model relies on for its precision."""

from __future__ import annotations

import torch


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def l2_normalise(vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Unit length along `dim`, without an epsilon, in float32 or wider."""
    vectors = widen(vectors)
    return vectors / vectors.pow(2).sum(dim=dim, keepdim=True).sqrt()
