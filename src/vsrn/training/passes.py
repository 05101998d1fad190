"""Forward and backward pass of a training step, on whatever device, by a CUDA graph where there can be one."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from vsrn.config import Config
from vsrn.encoders.torch_backend import Precision
from vsrn.model.base import BaseModel, Batch, Losses, MatchingLoss
from vsrn.model.losses import ContrastiveLoss, Epochs, TripletLoss
from vsrn.training import distributed
from vsrn.training.batches import send
from vsrn.training.graphs import GraphedPasses, StepInputs, with_padded_tokens


class Passes:
    """The passes of a batch: losses out, gradients added to those of the parameters."""

    def __init__(self, model: BaseModel, loss: nn.Module, config: Config, device: torch.device) -> None:
        """Wrap a model and its loss, which are on the device already."""
        self.config, self.device = config, device
        self.step = _Step(model, loss)
        self.parallel = distributed.shared(self.step)
        self.graphs: GraphedPasses | None = None
        one_gpu = device.type == "cuda" and distributed.world_size() == 1
        # Another loss may ask for the number of epochs, which a recorded step does not have.
        ours = type(loss) in (TripletLoss, ContrastiveLoss)
        if one_gpu and config.train.cuda_graphs and ours and model.takes_lengths_anywhere:
            self.graphs = GraphedPasses(self._run, self.step)

    def stream(self) -> contextlib.AbstractContextManager[object]:
        """Context of a run: on a GPU a stream of its own, since nothing can be recorded on the default one."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def begin_anew(self) -> None:
        """Notice that other parameters learn than before."""
        self.step.zero_grad(set_to_none=True)
        self.parallel = distributed.shared(self.step)
        if self.graphs is not None:
            self.graphs.forget()

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin a step; where it is recorded, gradients stay in their places and become 0."""
        optimizer.zero_grad(set_to_none=self.graphs is None)

    def __call__(self, batch: Batch, images: torch.Tensor | None, epochs: float) -> torch.Tensor:
        """(2,) matching and generation loss of a batch, after so many epochs.

        images  (B,) number of each caption's image, where `loss.mask_same_image` needs them, else None
        """
        owners = None if images is None else images.to(self.device, non_blocking=True)
        if self.graphs is None:
            return self._run(StepInputs(send(batch, self.device), owners, epochs))
        sent = send(with_padded_tokens(batch), self.device, lengths=True)
        return self.graphs(StepInputs(sent, owners, torch.full((), epochs, device=self.device)))

    def _run(self, inputs: StepInputs) -> torch.Tensor:
        """(2,) matching and generation loss, once the gradients are added to the parameters'."""
        with autocast(self.device, self.config.train.precision):
            losses: Losses = self.parallel(*inputs)
        (losses.joint / self.config.train.accumulate).backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.matching.detach(), losses.generation.detach()])


class _Step(nn.Module):
    """Model and loss as one module, so that several processes average the gradients of both."""

    def __init__(self, model: BaseModel, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch, images: torch.Tensor | None, epochs: Epochs) -> Losses:
        """The losses of a batch, after so many epochs.

        images  (B,) number of each caption's image, where captions of one image are no negatives of each other, or None
        """
        losses: Losses = self.model(batch, self._masked(images), distributed.gather_batch, epochs)
        return losses

    def _masked(self, images: torch.Tensor | None) -> MatchingLoss:
        """The matching loss, in which captions of one of these images are no negatives of each other.

        A similarity of minus infinity violates no margin and weighs nothing in a cross entropy.
        """
        if images is None:
            return self.loss
        of_all = torch.cat(distributed.of_all(images))
        same = (of_all[:, None] == of_all[None, :]).fill_diagonal_(False)

        def loss(similarities: torch.Tensor, epochs: Epochs) -> torch.Tensor:
            masked: torch.Tensor = self.loss(similarities.masked_fill(same, -torch.inf), epochs)
            return masked

        return loss


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products have this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
