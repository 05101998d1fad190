"""A GRU over sequences of different lengths, on a CPU without what torch's own spends its backward pass on.

torch slices the packed inputs at every step, and the gradient of each slice is as large as all of them and nearly all
zeros: time that grows with the length of the longest. Here the backward pass is written out (back-propagation through
time), and the gradient of the recurrent weights is one product for all steps. Elsewhere torch's kernels do so too.

Shapes: T steps, B rows, I input size, D state size, P real steps of all rows together, packed as torch packs them: the
first step of every row, the second of those that have one, and so on, longest row first. Gates are in torch's order:
reset, update, new.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def l2_normalise(vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Unit length along `dim`, without an epsilon, in float32 or wider."""
    vectors = widen(vectors)
    return vectors / vectors.pow(2).sum(dim=dim, keepdim=True).sqrt()


def read_sequences(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T, I) inputs, (B,) real steps of each or None for all -> (B, T, D or 2D) the GRU's states, 0 behind the end.

    A direction's last state stands at the end of the real steps, the backward one's at step 0.
    """
    steps = inputs.shape[1]
    ends = torch.full((len(inputs),), steps) if lengths is None else lengths.cpu()
    packed = pack_padded_sequence(inputs, ends, batch_first=True, enforce_sorted=False)
    if inputs.device.type != "cpu":
        return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=steps)[0]
    mirrored = _mirrored(packed) if gru.bidirectional else None
    states = packed.data
    for layer in range(gru.num_layers):
        ahead = _direction(gru, f"l{layer}", states, packed)
        if mirrored is None:
            states = ahead
        else:
            back = _direction(gru, f"l{layer}_reverse", states[mirrored], packed)
            states = torch.cat([ahead, back[mirrored]], dim=-1)
    return pad_packed_sequence(packed._replace(data=states), batch_first=True, total_length=steps)[0]


def _mirrored(packed: PackedSequence) -> torch.Tensor:
    """(P,) which packed step is as far from its row's end as each is from its row's beginning."""
    rows, starts = packed.batch_sizes, packed.batch_sizes.cumsum(0) - packed.batch_sizes
    step = torch.repeat_interleave(torch.arange(len(rows)), rows)
    row = torch.arange(len(step)) - starts[step]
    length = (rows[:, None] > torch.arange(int(rows[0]))).sum(dim=0)
    return starts[length[row] - 1 - step] + row


def _direction(gru: nn.GRU, name: str, inputs: torch.Tensor, packed: PackedSequence) -> torch.Tensor:
    """One direction of one layer, named as torch does ("l0", "l1_reverse"): (P, I) -> (P, D)."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        getattr(gru, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    gates = functional.linear(inputs, weight_ih, bias_ih)
    states: torch.Tensor = _Recurrence.apply(gates, weight_hh, bias_hh, packed.batch_sizes)
    return states


class _Recurrence(torch.autograd.Function):
    """(P, 3D) what the inputs say of the gates, recurrent weights (3D, D) and bias (3D,), rows a step -> (P, D) states.

    reset, update = sigmoid(gates + recurrent)     recurrent = W h + b
    new           = tanh(gates + reset recurrent)
    h'            = new + update (h - new)

    Products have the precision of the gates; states are float32 or wider.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Keeps what each step computed on its way, for the backward pass."""
        narrow, wide = gates.dtype, torch.promote_types(gates.dtype, torch.float32)
        P, D = len(gates), weight.shape[1]
        rounded, rounded_bias = weight.to(narrow).t(), bias.to(narrow)
        opened = torch.empty(P, 2 * D, dtype=wide)
        before, new, offered, states = (torch.empty(P, D, dtype=wide) for _ in range(4))
        state = torch.zeros(int(rows[0]), D, dtype=wide)
        with torch.autocast("cpu", enabled=False):
            for start, end in _spans(rows):
                state = state[: end - start]
                before[start:end] = state
                recurrent = torch.addmm(rounded_bias, state.to(narrow), rounded)
                torch.add(gates[start:end, : 2 * D], recurrent[:, : 2 * D], out=opened[start:end]).sigmoid_()
                reset, update = opened[start:end].chunk(2, dim=1)
                offered[start:end] = recurrent[:, 2 * D :]
                new[start:end] = gates[start:end, 2 * D :]
                new[start:end].addcmul_(reset, offered[start:end]).tanh_()
                state = torch.lerp(new[start:end], state, update, out=states[start:end])
        ctx.save_for_backward(weight, rows, before, opened, new, offered)
        ctx.narrow = narrow
        return states

    @staticmethod
    def backward(ctx: Any, of_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """(P, D) gradient of the states -> those of gates, weights and bias."""
        weight, rows, before, opened, new, offered = ctx.saved_tensors
        D = weight.shape[1]
        rounded = weight.to(ctx.narrow)
        # Everything that does not depend on later steps, for all steps at once.
        reset, update = opened.chunk(2, dim=1)
        to_new = (1 - update).mul_(1 - new * new)
        to_update = (before - new).mul_(update).mul_(1 - update)
        to_reset = (offered * reset).mul_(1 - reset)
        of_gates, of_recurrent = (torch.empty(len(new), 3 * D, dtype=ctx.narrow) for _ in range(2))
        of_last = torch.zeros(int(rows[0]), D, dtype=new.dtype)
        with torch.autocast("cpu", enabled=False):
            for start, end in reversed(_spans(rows)):
                of_state = of_last[: end - start]
                of_state += of_states[start:end]
                of_new = of_state * to_new[start:end]
                of_gates[start:end, :D] = of_new * to_reset[start:end]
                of_gates[start:end, D : 2 * D] = of_state * to_update[start:end]
                of_gates[start:end, 2 * D :] = of_new
                of_recurrent[start:end, : 2 * D] = of_gates[start:end, : 2 * D]
                of_recurrent[start:end, 2 * D :] = of_new.mul_(reset[start:end])
                of_state.mul_(update[start:end]).add_(of_recurrent[start:end] @ rounded)
            of_weight = of_recurrent.t() @ before.to(ctx.narrow)
            of_bias = of_recurrent.sum(dim=0, dtype=new.dtype)
        return of_gates, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _spans(rows: torch.Tensor) -> list[tuple[int, int]]:
    """Where each step begins and ends among the packed ones."""
    return list(pairwise([0, *rows.cumsum(0).tolist()]))
