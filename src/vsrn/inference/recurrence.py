"""A GRU layer at inference, one step at a time, with its weights rounded once rather than at every step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


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
