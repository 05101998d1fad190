"""A GRU over sequences of different lengths, with a backward pass of its own on the CPU.

torch's CPU kernel slices the packed inputs at every step. The gradient of each slice is as large as all inputs and
nearly all zeros, so its backward pass takes time that grows with the length of the longest sequence. Here the backward
pass is written out (back-propagation through time), with one product for the gradient of the recurrent weights of all
steps. On other devices torch's kernels do the same, and are used.

Shapes: T steps, B rows, I input size, D state size, P real steps of all rows together, packed as torch packs them: the
first step of every row, the second of those that have one, and so on, longest row first. Gates are in torch's order:
reset, update, new.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vsrn.data.vocabulary import PAD

# Where torch keeps what is called around a module's `forward`.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module may be computed from its weights without being called.

    It is of exactly this type, and nobody added hooks, a parametrization, weights of another tensor type or another
    `forward`; an adapter or a wrapper in its place is of another type.
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        and all(type(weight) is nn.Parameter for weight in module.parameters(recurse=False))
    )


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of a module's first weights, whatever wraps them: what its inputs are brought to."""
    weights = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    return next(weights, torch.get_default_dtype())


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 where it is bf16 or float16; float32 and float64 are returned unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def l2_normalise(vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Vectors of unit length along `dim`, in float32 or float64; there is no epsilon, so zeros become NaN."""
    vectors = at_least_float32(vectors)
    return vectors / vectors.pow(2).sum(dim=dim, keepdim=True).sqrt()


def mask_of(rows: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor | None:
    """(B, N, ...) padded rows, (B,) real ones of each -> (B, N) True where a row is real; None where all are."""
    return None if counts is None else torch.arange(rows.shape[1], device=counts.device) < counts[:, None]


def state_at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B,) places -> (B, D) the state of each row at its place; ONNX has this operation too."""
    return states.gather(1, places[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


def pad_tokens(tokens: Sequence[npt.NDArray[np.integer]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of B captions -> (B, T) padded with <pad>, and (B,) lengths."""
    lengths = torch.tensor([len(ids) for ids in tokens])
    padded = torch.full((len(tokens), int(lengths.max())), PAD)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    return padded, lengths


def read_sequences(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T, I) inputs, (B,) real steps of each or None for all -> (B, T, D or 2D) the GRU's states, 0 after the end.

    The forward direction's last state is that of the last real step, the backward direction's that of step 0.
    """
    steps = inputs.shape[1]
    plain = is_plain(gru, nn.GRU)
    if plain and inputs.device.type == "cuda":
        return _padded_states(gru, inputs, lengths)
    if lengths is None and not (plain and inputs.device.type == "cpu" and torch.is_grad_enabled()):
        # torch's own kernel is as fast without a backward pass, and can be exported.
        states: torch.Tensor = gru(inputs)[0]
        return states
    ends = torch.full((len(inputs),), steps) if lengths is None else lengths.cpu()
    packed = pack_padded_sequence(inputs, ends, batch_first=True, enforce_sorted=False)
    if inputs.device.type != "cpu" or not plain:
        return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=steps)[0]
    mirrored = _mirrored(packed) if gru.bidirectional else None
    states = packed.data
    for layer in range(gru.num_layers):
        forward = _direction(gru, f"l{layer}", states, packed)
        if mirrored is None:
            states = forward
        else:
            backward = _direction(gru, f"l{layer}_reverse", states[mirrored], packed)
            states = torch.cat([forward, backward[mirrored]], dim=-1)
    return pad_packed_sequence(packed._replace(data=states), batch_first=True, total_length=steps)[0]


def _padded_states(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """What `read_sequences` gives, by kernels that read the padding too: (B, T, I), (B,) or None -> (B, T, D or 2D).

    A step never sees a later one, so padding at the end changes nothing before it; backwards, each row is mirrored
    within its own length first.
    """
    places = torch.arange(inputs.shape[1], device=inputs.device)
    if lengths is None:
        lengths = places.new_full((len(inputs),), inputs.shape[1])
    lengths = lengths.to(inputs.device, non_blocking=True)
    real = (places < lengths[:, None])[..., None]
    mirrored = (lengths[:, None] - 1 - places).clamp(min=0)[..., None]
    states = inputs
    for layer in range(gru.num_layers):
        forward = _padded_direction(gru, f"l{layer}", states)
        if gru.bidirectional:
            backward = _padded_direction(gru, f"l{layer}_reverse", states.gather(1, mirrored.expand_as(states)))
            forward = torch.cat([forward, backward.gather(1, mirrored.expand_as(backward))], dim=-1)
        states = forward * real
    return states


def _padded_direction(gru: nn.GRU, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """One direction of one layer, named as torch does ("l0", "l1_reverse"): (B, T, I) -> (B, T, D).

    Under autocast torch would compute it in float16, whatever precision autocast has; gradients overflow there.
    """
    kind = inputs.device.type
    weights = [getattr(gru, f"{part}_{name}") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
    first = torch.zeros(1, len(inputs), gru.hidden_size, dtype=dtype, device=inputs.device)
    with torch.autocast(kind, enabled=False), warnings.catch_warnings():
        # Weights that are not one piece of memory are copied together, which costs less than a step.
        warnings.filterwarnings("ignore", message="RNN module weights")
        rounded = [weight.to(dtype) for weight in weights]
        states: torch.Tensor = torch._VF.gru(inputs.to(dtype), first, rounded, True, 1, 0.0, gru.training, False, True)[
            0
        ]
    return states


def _mirrored(packed: PackedSequence) -> torch.Tensor:
    """(P,) for each packed step, the place of the step as far from the end of its row as this is from the beginning."""
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
    gates = functional.linear(inputs.to(weight_ih.dtype), weight_ih, bias_ih)
    states: torch.Tensor = _Recurrence.apply(gates, weight_hh, bias_hh, packed.batch_sizes)
    return states


class _Recurrence(torch.autograd.Function):
    """The steps of one layer and direction, with their gradient.

    gates   (P, 3D) the inputs' share of the gates: W_ih x + b_ih
    weight  (3D, D) recurrent weights; bias (3D,)
    rows    number of rows at each step
    states  (P, D), the result

    reset, update = sigmoid(gates + recurrent)     recurrent = W h + b
    new           = tanh(gates + reset recurrent)
    h'            = new + update (h - new)

    Products are computed in the precision of the gates (bf16 under autocast), states in float32 or float64.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """(P, D) states; what each step computed is kept for the backward pass."""
        of_products, of_states = gates.dtype, torch.promote_types(gates.dtype, torch.float32)
        P, D = len(gates), weight.shape[1]
        rounded, rounded_bias = weight.to(of_products).t(), bias.to(of_products)
        opened = torch.empty(P, 2 * D, dtype=of_states)
        before, new, offered, states = (torch.empty(P, D, dtype=of_states) for _ in range(4))
        state = torch.zeros(int(rows[0]), D, dtype=of_states)
        with torch.autocast("cpu", enabled=False):
            for start, end in _spans(rows):
                state = state[: end - start]
                before[start:end] = state
                recurrent = torch.addmm(rounded_bias, state.to(of_products), rounded)
                torch.add(gates[start:end, : 2 * D], recurrent[:, : 2 * D], out=opened[start:end]).sigmoid_()
                reset, update = opened[start:end].chunk(2, dim=1)
                offered[start:end] = recurrent[:, 2 * D :]
                new[start:end] = gates[start:end, 2 * D :]
                new[start:end].addcmul_(reset, offered[start:end]).tanh_()
                state = torch.lerp(new[start:end], state, update, out=states[start:end])
        ctx.save_for_backward(weight, rows, before, opened, new, offered)
        ctx.of_products = of_products
        return states

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """(P, D) gradient of the states -> those of gates, weights and bias."""
        weight, rows, before, opened, new, offered = ctx.saved_tensors
        D = weight.shape[1]
        rounded = weight.to(ctx.of_products)
        # Whatever does not depend on later steps is computed for all steps at once.
        reset, update = opened.chunk(2, dim=1)
        to_new = (1 - update).mul_(1 - new * new)
        to_update = (before - new).mul_(update).mul_(1 - update)
        to_reset = (offered * reset).mul_(1 - reset)
        of_gates, of_recurrent = (torch.empty(len(new), 3 * D, dtype=ctx.of_products) for _ in range(2))
        of_last = torch.zeros(int(rows[0]), D, dtype=new.dtype)
        with torch.autocast("cpu", enabled=False):
            for start, end in reversed(_spans(rows)):
                of_state = of_last[: end - start]
                of_state += gradient[start:end]
                of_new = of_state * to_new[start:end]
                of_gates[start:end, :D] = of_new * to_reset[start:end]
                of_gates[start:end, D : 2 * D] = of_state * to_update[start:end]
                of_gates[start:end, 2 * D :] = of_new
                of_recurrent[start:end, : 2 * D] = of_gates[start:end, : 2 * D]
                of_recurrent[start:end, 2 * D :] = of_new.mul_(reset[start:end])
                of_state.mul_(update[start:end]).add_(of_recurrent[start:end] @ rounded)
            of_weight = of_recurrent.t() @ before.to(ctx.of_products)
            of_bias = of_recurrent.sum(dim=0, dtype=new.dtype)
        return of_gates, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _spans(rows: torch.Tensor) -> list[tuple[int, int]]:
    """Start and end of each step's rows among the packed ones."""
    return list(pairwise([0, *rows.cumsum(0).tolist()]))
