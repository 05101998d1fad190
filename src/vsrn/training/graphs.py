"""Forward and backward pass of a training step on a GPU, recorded once as a CUDA graph and played again.

Most of a step of these models is recurrent: thousands of small kernels, each quicker than the Python that starts it.
A graph starts them all at once. It needs one shape: batches are padded to a multiple of `TOKENS_TOGETHER` tokens, and
each such width has a graph of its own, recorded when it comes the `RECORD_AT`th time; before that, and where a model
cannot be recorded, the step runs as usual. The numbers are the same either way.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from vsrn.model.base import Batch

TOKENS_TOGETHER = 8
RECORD_AT = 3


class StepInputs(NamedTuple):
    """What a step reads, all on the GPU.

    batch   with the lengths on the GPU too, tokens padded to a width of `padded_width`
    images  (B,) number of each caption's image, or None
    """

    batch: Batch
    images: torch.Tensor | None

    def tensors(self) -> list[torch.Tensor]:
        """Those that are there, in one order."""
        return [tensor for tensor in (*self.batch, self.images) if tensor is not None]

    def copied(self) -> StepInputs:
        """The same in memory of its own."""
        copies = [None if tensor is None else tensor.clone() for tensor in (*self.batch, self.images)]
        return StepInputs(Batch(*copies[:4]), copies[4])  # type: ignore[arg-type]


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    losses: torch.Tensor


# (inputs, epochs trained so far) -> (2,) matching and generation loss, with gradients added to the parameters'.
Passes = Callable[[StepInputs, float], torch.Tensor]


class GraphedPasses:
    """Runs the passes of a step, from the `RECORD_AT`th batch of a width on by a graph.

    failure  why nothing is recorded any more; empty while all goes well
    """

    def __init__(self, passes: Passes, parameters: list[nn.Parameter]) -> None:
        """Wrap the passes of a step.

        parameters  all that may learn: their gradients stay where they are in memory from now on
        """
        self.passes, self.parameters = passes, parameters
        self.forget()

    def forget(self) -> None:
        """Drop all graphs, as when other parameters learn than before."""
        self.failure = ""
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, _Recorded] = {}
        self._pool: Any = None
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, inputs: StepInputs, epochs: float, *, steady: bool) -> torch.Tensor:
        """(2,) matching and generation loss; gradients are added to those that the parameters have.

        steady  whether the step computes the same for any number of epochs, so that it may be recorded
        """
        width = inputs.batch.tokens.shape[1]
        self._seen[width] += steady
        if width not in self._graphs and not self.failure and self._seen[width] >= RECORD_AT:
            self._record(width, inputs, epochs)
        recorded = self._graphs.get(width) if steady else None
        if recorded is None:
            first = steady and not self._seen.total() > 1
            return self._watched(inputs, epochs) if first else self.passes(inputs, epochs)
        for ours, given in zip(recorded.inputs.tensors(), inputs.tensors(), strict=True):
            ours.copy_(given, non_blocking=True)
        recorded.graph.replay()
        return recorded.losses.clone()

    def _watched(self, inputs: StepInputs, epochs: float) -> torch.Tensor:
        """The passes of a batch, where it is seen whether they wait for the device; such cannot be recorded."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                losses = self.passes(inputs, epochs)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        waits = [str(warning.message) for warning in seen if "synchroniz" in str(warning.message)]
        self.failure = waits[0].partition("\n")[0] if waits else ""
        return losses

    def _record(self, width: int, inputs: StepInputs, epochs: float) -> None:
        """Record the passes for batches of this width, without running them."""
        graph, kept = torch.cuda.CUDAGraph(), inputs.copied()
        stream = torch.cuda.current_stream()
        try:
            # Threads that make batches pin memory meanwhile, which is no mistake of this one.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                losses = self.passes(kept, epochs)
        except RuntimeError as error:
            # A model or a loss of a plugin may ask the device for a number in the middle of a step.
            self.failure = str(error).partition("\n")[0]
            return
        self._pool = graph.pool()
        self._graphs[width] = _Recorded(graph, kept, losses)


def padded_width(tokens: int) -> int:
    """The width that batches whose longest caption has so many tokens are padded to.

    >>> [padded_width(tokens) for tokens in (3, 16, 17)]
    [8, 16, 24]
    """
    return -(-tokens // TOKENS_TOGETHER) * TOKENS_TOGETHER


def with_padded_tokens(batch: Batch) -> Batch:
    """The batch with its tokens padded with <pad>, which is 0, to a width that many batches share."""
    missing = padded_width(batch.tokens.shape[1]) - batch.tokens.shape[1]
    return batch._replace(tokens=functional.pad(batch.tokens, (0, missing)))
