"""Several processes that train as one: `torchrun --nproc-per-node N -m vsrn train ...`.

N processes with a batch of B / N each take the steps of one process with a batch of B, up to rounding and to the
captioner's dropout, which each process draws for itself: negatives and the statistics of BatchNorm are those of the
global batch. Each process backpropagates the global matching loss plus the mean generation loss of its own captions.
The gradients meet N times over in the gathered embeddings, and DDP's mean over processes undoes exactly that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vsrn.devices import pick_device
from vsrn.model.batch_norm import norm_of_batch


def world_size() -> int:
    """How many processes train together; 1 without `torchrun`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; the first one writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def training_device(name: str) -> torch.device:
    """The device of a config's name; under `torchrun`, each process of a machine takes its own GPU."""
    device = pick_device(name)
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        return pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
    return device


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, for as long as the block lasts; nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # Gloo carries what stays on the CPU (stop requests, random states), NCCL what is on a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_batch(rows: torch.Tensor) -> torch.Tensor:
    """(B / N, D) of this process -> (B, D) of all, in the order of their ranks, with gradients."""
    if world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gathered.apply(rows)
    return gathered


def _total(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum over all processes, without gradients."""
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gathered(torch.autograd.Function):
    """The rows of all processes; each process's rows get the sum of the gradients that all give them."""

    @staticmethod
    def forward(_ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        """(B / N, D) -> (B, D)."""
        return torch.cat(of_all(rows.contiguous()))

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B / N, D)."""
        return _total(gradients[0]).chunk(world_size())[rank()]


def of_all(values: torch.Tensor) -> list[torch.Tensor]:
    """The values of every process, in the order of their ranks, without gradients; all must have one shape."""
    values = values.detach()
    if world_size() == 1:
        return [values]
    found = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(found, values)
    return found


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every BatchNorm of a model take its training statistics over all processes; in place."""
    for module in model.modules() if world_size() > 1 else ():
        if type(module) is nn.BatchNorm1d:
            # Parameters and buffers stay the same objects, so optimiser and checkpoint need no change.
            module.__class__ = GlobalBatchNorm


class GlobalBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the samples of all processes. torch's own SyncBatchNorm refuses CPU tensors."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(S, D) or (B, D, N) -> same shape; statistics over S or B * N samples of every process."""
        if not self.training:
            return super().forward(values)
        if values.ndim == 2:
            return norm_of_batch(self, values, total=_total)
        return norm_of_batch(self, values.mT, total=_total).mT
