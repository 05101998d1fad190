"""Forward and backward pass of a training step, on a GPU recorded once as a CUDA graph and played again.

A step is thousands of small kernels, each quicker than the Python that starts it; a graph starts them all at once. It
needs one shape: batches are padded to a multiple of `TOKENS_TOGETHER` tokens, and each width has a graph, recorded when
it comes the `RECORD_AT`th time. Before that, and where a model cannot be recorded, the step runs as usual.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from vsrn.config import Config
from vsrn.model.base import BaseModel, Batch, Losses, MatchingLoss
from vsrn.model.losses import ContrastiveLoss, Epochs, TripletLoss
from vsrn.training import distributed

TOKENS_TOGETHER = 8
RECORD_AT = 3
# What torch says where its sync debug mode is set for the first time: no word about this code, and no wait.
SYNC_DEBUG_WARNING = "Synchronization debug mode is a prototype feature"


class Passes:
    """The passes of a batch: losses out, gradients added to those of the parameters."""

    def __init__(self, model: BaseModel, loss: nn.Module, config: Config, device: torch.device) -> None:
        """Wrap a model and its loss, which are on the device already."""
        self.config, self.device = config, device
        self.step = _Step(model, loss, mask_same_image=config.loss.mask_same_image)
        self.graphs: GraphedPasses | None = None
        one_gpu = device.type == "cuda" and distributed.world_size() == 1
        # Another loss may ask for the number of epochs, which a recorded step does not have.
        ours = type(loss) in (TripletLoss, ContrastiveLoss)
        if one_gpu and config.train.cuda_graphs and ours and model.takes_lengths_anywhere:
            self.graphs = GraphedPasses(self._run, self.step)
        self.begin_anew()

    def stream(self) -> contextlib.AbstractContextManager[object]:
        """Context of a run: on a GPU a stream of its own, since nothing can be recorded on the default one."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def begin_anew(self) -> None:
        """Notice that other parameters learn than before."""
        self.step.zero_grad(set_to_none=True)
        # Processes share the gradients of the parameters that learn now.
        self.parallel = DistributedDataParallel(self.step) if distributed.world_size() > 1 else self.step
        if self.graphs is not None:
            self.graphs.forget()

    def __call__(self, batch: Batch, epochs: float) -> torch.Tensor:
        """(2,) matching and generation loss of a batch, after so many epochs."""
        given = batch if self.graphs is None else with_padded_tokens(batch)
        sent = given.map(lambda tensor: tensor.to(self.device, non_blocking=True))
        if self.graphs is None:
            return self._run(sent._replace(lengths=batch.lengths), epochs)
        return self.graphs(sent, torch.full((), epochs, device=self.device))

    def _run(self, batch: Batch, epochs: Epochs) -> torch.Tensor:
        """(2,) matching and generation loss, once the gradients are added to the parameters'."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            losses: Losses = self.parallel(batch, epochs)
        (losses.joint / self.config.train.accumulate).backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.matching.detach(), losses.generation.detach()])


class _Step(nn.Module):
    """Model and loss as one module, so that several processes average the gradients of both.

    mask_same_image  whether captions of one image are no negatives of each other
    """

    def __init__(self, model: BaseModel, loss: nn.Module, *, mask_same_image: bool) -> None:
        super().__init__()
        self.model, self.loss, self.mask_same_image = model, loss, mask_same_image

    def forward(self, batch: Batch, epochs: Epochs) -> Losses:
        """The losses of a batch, after so many epochs."""
        loss: MatchingLoss = self.loss
        if self.mask_same_image:
            assert batch.images is not None, "training's batches say which image a caption is of"
            of_all = torch.cat(distributed.of_all(batch.images))
            same = (of_all[:, None] == of_all[None, :]).fill_diagonal_(False)

            def loss(similarities: torch.Tensor, epochs: Epochs) -> torch.Tensor:
                # A similarity of minus infinity violates no margin and weighs nothing in a cross entropy.
                masked: torch.Tensor = self.loss(similarities.masked_fill(same, -torch.inf), epochs)
                return masked

        losses: Losses = self.model(batch, loss, distributed.gather_batch, epochs)
        return losses


class _Recorded(NamedTuple):
    """A graph, the memory that it reads its batch and the epochs from, and that it writes its losses to."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    epochs: torch.Tensor
    losses: torch.Tensor


class GraphedPasses:
    """Runs the passes of a step, from the `RECORD_AT`th batch of a width on by a graph.

    passes   batch, epochs so far () -> (2,) matching and generation loss, with gradients added to the parameters'
    module   all that they compute with: model and loss, whose gradients stay where they are in memory
    failure  why nothing is recorded any more; empty while all goes well
    """

    def __init__(self, passes: Callable[[Batch, torch.Tensor], torch.Tensor], module: nn.Module) -> None:
        self.passes, self.module = passes, module
        self.forget()

    def forget(self) -> None:
        """Drop all graphs, as when other parameters learn than before."""
        self.failure = ""
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, _Recorded] = {}
        self._pool: Any = None
        self._places: tuple[int, ...] = ()

    def __call__(self, batch: Batch, epochs: torch.Tensor) -> torch.Tensor:
        """The passes of a batch that is on the GPU, lengths too, with tokens padded by `with_padded_tokens`."""
        places = self._where()
        if self._graphs and places != self._places:
            # A graph has addresses. `module.to(device)` moves the weights of a GRU even to where they are.
            self.forget()
        self._places = places
        width = batch.tokens.shape[1]
        self._seen[width] += 1
        if width not in self._graphs and not self.failure and self._seen[width] >= RECORD_AT:
            self._record(width, batch, epochs)
        recorded = self._graphs.get(width)
        if recorded is None:
            return self._watched(batch, epochs) if self._seen.total() == 1 else self.passes(batch, epochs)
        for ours, given in zip((*recorded.batch, recorded.epochs), (*batch, epochs), strict=True):
            if ours is not None and given is not None:
                ours.copy_(given, non_blocking=True)
        recorded.graph.replay()
        return recorded.losses.clone()

    def _where(self) -> tuple[int, ...]:
        """Addresses of whatever a graph reads and writes: weights, buffers and gradients."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return tuple(tensor.data_ptr() for tensor in (*parameters, *self.module.buffers(), *gradients))

    def _watched(self, batch: Batch, epochs: torch.Tensor) -> torch.Tensor:
        """The passes of a batch, where it is seen whether they wait for the device; such cannot be recorded."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", SYNC_DEBUG_WARNING)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.passes(batch, epochs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [str(warning.message) for warning in seen if "synchroniz" in str(warning.message)]
        self.failure = waits[0].partition("\n")[0] if waits else ""
        return losses

    def _record(self, width: int, batch: Batch, epochs: torch.Tensor) -> None:
        """Record the passes for batches of this width, without running them."""
        graph, kept, of_epochs = torch.cuda.CUDAGraph(), batch.map(torch.clone), epochs.clone()
        stream = torch.cuda.current_stream()
        try:
            # Threads that make batches pin memory meanwhile, which is no mistake of this one.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                losses = self.passes(kept, of_epochs)
        except RuntimeError as error:
            # A model or a loss of a plugin may ask the device for a number in the middle of a step.
            self.failure = str(error).partition("\n")[0]
            return
        self._pool = graph.pool()
        self._graphs[width] = _Recorded(graph, kept, of_epochs, losses)


def with_padded_tokens(batch: Batch) -> Batch:
    """The batch with its tokens padded with <pad>, which is 0, to a width that many batches share."""
    missing = -batch.tokens.shape[1] % TOKENS_TOGETHER
    return batch._replace(tokens=functional.pad(batch.tokens, (0, missing)))
