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
from vsrn.model.losses import Epochs

TOKENS_TOGETHER = 8
RECORD_AT = 3
# What torch says where its sync debug mode is set for the first time: no word about this code, and no wait.
SYNC_DEBUG_WARNING = "Synchronization debug mode is a prototype feature"


class StepInputs(NamedTuple):
    """What a step reads, all on the GPU.

    batch   with the lengths on the GPU too, tokens padded to a width of `padded_width`
    images  (B,) number of each caption's image, or None
    epochs  trained so far: a tensor () where the step may be recorded, else a number
    """

    batch: Batch
    images: torch.Tensor | None
    epochs: Epochs

    def tensors(self) -> list[torch.Tensor]:
        """Those that are there, in one order."""
        return [part for part in (*self.batch, self.images, self.epochs) if isinstance(part, torch.Tensor)]

    def copied(self) -> StepInputs:
        """The same in memory of its own."""
        features, tokens, lengths, counts = self.batch
        copied = Batch(features.clone(), tokens.clone(), lengths.clone(), None if counts is None else counts.clone())
        epochs = self.epochs.clone() if isinstance(self.epochs, torch.Tensor) else self.epochs
        return StepInputs(copied, None if self.images is None else self.images.clone(), epochs)


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    losses: torch.Tensor


# Inputs -> (2,) matching and generation loss, with gradients added to the parameters'.
Passes = Callable[[StepInputs], torch.Tensor]


class GraphedPasses:
    """Runs the passes of a step, from the `RECORD_AT`th batch of a width on by a graph.

    failure  why nothing is recorded any more; empty while all goes well
    """

    def __init__(self, passes: Passes, module: nn.Module) -> None:
        """Wrap the passes of a step.

        module  all that they compute with: model and loss, whose gradients stay where they are in memory from now on
        """
        self.passes, self.module = passes, module
        self.forget()

    def forget(self) -> None:
        """Drop all graphs, as when other parameters learn than before."""
        self.failure = ""
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, _Recorded] = {}
        self._pool: Any = None
        self._places: tuple[int, ...] = ()

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        """(2,) matching and generation loss; gradients are added to those that the parameters have."""
        places = self._where()
        if self._graphs and places != self._places:
            # A graph has addresses. `module.to(device)` moves the weights of a GRU even to where they are.
            self.forget()
        self._places = places
        width = inputs.batch.tokens.shape[1]
        self._seen[width] += 1
        if width not in self._graphs and not self.failure and self._seen[width] >= RECORD_AT:
            self._record(width, inputs)
        recorded = self._graphs.get(width)
        if recorded is None:
            return self._watched(inputs) if self._seen.total() == 1 else self.passes(inputs)
        for ours, given in zip(recorded.inputs.tensors(), inputs.tensors(), strict=True):
            ours.copy_(given, non_blocking=True)
        recorded.graph.replay()
        return recorded.losses.clone()

    def _where(self) -> tuple[int, ...]:
        """Addresses of whatever a graph reads and writes: weights, buffers and gradients."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return tuple(tensor.data_ptr() for tensor in (*parameters, *self.module.buffers(), *gradients))

    def _watched(self, inputs: StepInputs) -> torch.Tensor:
        """The passes of a batch, where it is seen whether they wait for the device; such cannot be recorded."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", SYNC_DEBUG_WARNING)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.passes(inputs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [str(warning.message) for warning in seen if "synchroniz" in str(warning.message)]
        self.failure = waits[0].partition("\n")[0] if waits else ""
        return losses

    def _record(self, width: int, inputs: StepInputs) -> None:
        """Record the passes for batches of this width, without running them."""
        graph, kept = torch.cuda.CUDAGraph(), inputs.copied()
        stream = torch.cuda.current_stream()
        try:
            # Threads that make batches pin memory meanwhile, which is no mistake of this one.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                losses = self.passes(kept)
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
