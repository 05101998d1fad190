"""A GRU over sequences of different lengths, with a backward pass of its own on the CPU.

torch's CPU kernel slices the packed inputs at every step, and the gradient of each slice is as large as all inputs and
nearly all zeros. Here back-propagation through time is written out, with one product for the gradient of the recurrent
weights of all steps. On other devices torch's kernels do the same, and are used.

Shapes: T steps, B rows, I input size, D state size, P real steps of all rows together, packed as torch packs them: the
first step of every row, the second of those that have one, and so on, longest row first. Gates are in torch's order:
reset, update, new.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


def for_products(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision that autocast gives to matrix products where it is; unchanged without autocast.

    Autocast would round it at every use, and widen the gradient of each.
    """
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


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
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    real = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(real.shape, PAD, np.int64)
    # Rows are filled in their order: 0.04 ms for 128 captions. A copy for each took 0.9 ms, with Python's lock held.
    padded[real] = np.concatenate(tokens)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def read_sequences(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T, I) inputs, (B,) real steps of each or None for all -> (B, T, D or 2D) the GRU's states, 0 after the end.

    The forward direction's last state is that of the last real step, the backward direction's that of step 0.
    """
    steps, kind = inputs.shape[1], inputs.device.type
    plain = is_plain(gru, nn.GRU)
    if plain and kind == "cuda":
        return _padded_states(gru, inputs, lengths)
    if lengths is None and not (plain and kind == "cpu" and torch.is_grad_enabled()):
        # torch's own kernel is as fast without a backward pass, and can be exported.
        states: torch.Tensor = gru(inputs)[0]
        return states
    if lengths is None:
        return _layers(gru, inputs, _direction, lambda states: states.flip(1))
    packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    if kind != "cpu" or not plain:
        return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=steps)[0]
    assert packed.sorted_indices is not None
    starts = packed.batch_sizes.cumsum(0) - packed.batch_sizes
    step = torch.repeat_interleave(torch.arange(len(starts)), packed.batch_sizes)
    row = torch.arange(len(step)) - starts[step]  # longest first
    # For each packed step, the place of the one as far from the end of its row as this is from the beginning.
    mirrored = starts[lengths.cpu()[packed.sorted_indices][row] - 1 - step] + row if gru.bidirectional else None
    direction = functools.partial(_direction, rows=packed.batch_sizes)
    states = _layers(gru, packed.data, direction, lambda states: states[mirrored])
    # torch's own unpacking copies the gradient of all states wherever a row ends: 16 times for 128 captions.
    padded = states.new_zeros(len(inputs) * steps, states.shape[1])
    return padded.index_copy(0, packed.sorted_indices[row] * steps + step, states).view(len(inputs), steps, -1)


def _layers(
    gru: nn.GRU,
    states: torch.Tensor,
    direction: Callable[[nn.GRU, str, torch.Tensor], torch.Tensor],
    mirror: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The inputs of the first layer -> the states of the last, where `mirror` turns the steps of each row round.

    direction  computes one direction of one layer, named as torch does: "l0", "l1_reverse"
    """
    for layer in range(gru.num_layers):
        forward = direction(gru, f"l{layer}", states)
        if gru.bidirectional:
            backward = mirror(direction(gru, f"l{layer}_reverse", mirror(states)))
            forward = torch.cat([forward, backward], dim=-1)
        states = forward
    return states


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
    states = _layers(gru, inputs, _padded_direction, lambda states: states.gather(1, mirrored.expand_as(states)))
    return states * real


def _padded_direction(gru: nn.GRU, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """One direction of one layer: (B, T, I) -> (B, T, D).

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
        states: torch.Tensor
        states, _ = torch._VF.gru(inputs.to(dtype), first, rounded, True, 1, 0.0, gru.training, False, True)
    return states


def _direction(gru: nn.GRU, name: str, inputs: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """One direction of one layer: (P, I) -> (P, D) with so many rows at each step; (B, T, I) -> (B, T, D) without."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        getattr(gru, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    gates = functional.linear(inputs.to(weight_ih.dtype), weight_ih, bias_ih)
    states: torch.Tensor = _Recurrence.apply(gates, weight_hh, bias_hh, rows)
    return states


class Cell(NamedTuple):
    """What a GRU's steps compute, one row a step and sequence, kept for the backward pass: (S, D) each.

    before   the state that the step begins with
    opened   (S, 2D) the reset and the update gate
    offered  the recurrent product's share of the new state, before the reset gate
    new      the new state, before the update gate
    states   the state that the step ends with

    reset, update = sigmoid(given + recurrent)      given      the inputs' share of the gates
    new           = tanh(given + reset recurrent)   recurrent  W h + b
    h'            = new + update (h - new)
    """

    before: torch.Tensor
    opened: torch.Tensor
    offered: torch.Tensor
    new: torch.Tensor
    states: torch.Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> Cell:
        """Room for steps, of which there are so many as `shape` says."""
        return cls(*(torch.empty(*shape, dim * (1 + (name == "opened")), dtype=dtype) for name in cls._fields))

    def step(self, given: torch.Tensor, recurrent: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, 3D), (B, 3D), (B, D) -> (B, D) the next state, where these are the rows of one step."""
        dim = state.shape[1]
        torch.add(given[:, : 2 * dim], recurrent[:, : 2 * dim], out=self.opened).sigmoid_()
        reset, update = self.opened.chunk(2, dim=1)
        self.offered.copy_(recurrent[:, 2 * dim :])
        self.new.copy_(given[:, 2 * dim :]).addcmul_(reset, self.offered)
        # tanh(x) = 2 sigmoid(2x) - 1: torch takes a sixth of the time for a sigmoid.
        self.new.mul_(2).sigmoid_().mul_(2).sub_(1)
        return torch.lerp(self.new, state, update, out=self.states)

    def slopes(self) -> Slopes:
        """The derivatives, whatever the gradient of the states will be."""
        reset, update = self.opened.chunk(2, dim=-1)
        return Slopes(
            to_new=(1 - update).mul_(1 - self.new * self.new),
            to_update=(self.before - self.new).mul_(update).mul_(1 - update),
            to_reset=(self.offered * reset).mul_(1 - reset),
            reset=reset,
            update=update,
        )


class Slopes(NamedTuple):
    """Derivatives of a GRU's steps, (S, D) each: of the new state's and the update gate's sums by the state's
    gradient, of the reset gate's sum by that of the new state's; and the gates.
    """

    to_new: torch.Tensor
    to_update: torch.Tensor
    to_reset: torch.Tensor
    reset: torch.Tensor
    update: torch.Tensor

    def back(self, of_state: torch.Tensor, of_given: torch.Tensor, of_recurrent: torch.Tensor) -> None:
        """(B, D) gradient of the states after a step -> what it is of `given` and `recurrent`, written into (B, 3D)s.

        `of_state` becomes the gradient of the states before, but for the share that comes through `recurrent`.
        """
        dim = of_state.shape[1]
        of_new = of_state * self.to_new
        of_given[:, :dim] = of_new * self.to_reset
        of_given[:, dim : 2 * dim] = of_state * self.to_update
        of_given[:, 2 * dim :] = of_new
        of_recurrent[:, : 2 * dim] = of_given[:, : 2 * dim]
        of_recurrent[:, 2 * dim :] = of_new.mul_(self.reset)
        of_state.mul_(self.update)


class _Recurrence(torch.autograd.Function):
    """The steps of one layer and direction, with their gradient.

    gates   (P, 3D) the inputs' share of the gates: W_ih x + b_ih; or (B, T, 3D) where all rows are as long
    weight  (3D, D) recurrent weights; bias (3D,)
    rows    number of rows at each step; None where all rows are as long
    states  (P, D) or (B, T, D), the result

    Products are computed in the precision of the gates (bf16 under autocast), states in float32 or float64.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """States; what each step computed is kept for the backward pass."""
        of_products, of_states = gates.dtype, torch.promote_types(gates.dtype, torch.float32)
        dim = weight.shape[1]
        rounded, rounded_bias = weight.to(of_products).t(), bias.to(of_products)
        cell = Cell.empty(gates.shape[:-1], dim, of_states)
        state = torch.zeros(len(gates) if rows is None else int(rows[0]), dim, dtype=of_states)
        with torch.autocast("cpu", enabled=False):
            for given, *parts in zip(*(steps_of(part, rows) for part in (gates, *cell)), strict=True):
                step = Cell(*parts)
                state = state[: len(given)]
                step.before.copy_(state)
                state = step.step(given, torch.addmm(rounded_bias, state.to(of_products), rounded), state)
        ctx.save_for_backward(weight, rows, *cell[:-1])
        ctx.of_products = of_products
        return cell.states

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Gradient of the states -> those of gates, weights and bias."""
        weight, rows, *parts = ctx.saved_tensors
        cell, dim = Cell(*[*parts, gradient]), weight.shape[1]
        rounded = weight.to(ctx.of_products)
        # Whatever does not depend on later steps is computed for all steps at once.
        slopes = cell.slopes()
        of_gates, of_recurrent = (torch.empty(*gradient.shape[:-1], 3 * dim, dtype=ctx.of_products) for _ in range(2))
        of_last = torch.zeros(len(gradient) if rows is None else int(rows[0]), dim, dtype=cell.new.dtype)
        with torch.autocast("cpu", enabled=False):
            steps = zip(*(steps_of(part, rows) for part in (gradient, of_gates, of_recurrent, *slopes)), strict=True)
            for given, to_given, to_recurrent, *derivatives in reversed(list(steps)):
                of_state = of_last[: len(given)]
                of_state += given
                Slopes(*derivatives).back(of_state, to_given, to_recurrent)
                of_state += to_recurrent @ rounded
            flat = of_recurrent.flatten(0, -2)
            of_weight = flat.t() @ cell.before.flatten(0, -2).to(ctx.of_products)
            of_bias = sum_of_rows(flat)
        return of_gates, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def sum_of_rows(rows: torch.Tensor) -> torch.Tensor:
    """(S, D) -> (D,), as a product with ones, which adds in float32 and takes a third of the time of torch's sum."""
    return (rows.new_ones(1, len(rows)) @ rows)[0]


def steps_of(tensor: torch.Tensor, rows: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Views of each step's rows: of packed ones (P, ...), as many as `rows` says; of (B, T, ...) where it is None."""
    return tensor.unbind(1) if rows is None else torch.split(tensor, rows.tolist())
