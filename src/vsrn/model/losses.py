"""Similarity of image and caption embeddings, and losses of (B, B) similarities of matching pairs, images as rows."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from vsrn.config import LossConfig
from vsrn.model.gru import at_least_float32

# Epochs trained so far, with a fraction: a number, or a tensor () that a recorded step reads anew each time.
Epochs = float | torch.Tensor


def cosine_similarities(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """(I, D), (C, D) -> (I, C): inner products of the embeddings as they come."""
    # Under autocast the product would be rounded to bfloat16, whose steps below 1 are a fiftieth of the margin.
    with torch.autocast(images.device.type, enabled=False):
        return at_least_float32(images) @ at_least_float32(captions).mT


def order_similarities(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """(I, D), (C, D) -> (I, C): s(i, c) = -|| max(0, c - i) ||_2 (Vendrov et al. 2016, Eq. 2)."""
    violation = (captions[None, :, :] - images[:, None, :]).clamp(min=0)
    return -torch.linalg.vector_norm(violation, dim=-1)


SIMILARITIES = {"cosine": cosine_similarities, "order": order_similarities}


class TripletLoss(nn.Module):
    """The paper's matching loss, with the margin and the negatives that a config sets."""

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, similarities: torch.Tensor, epochs: Epochs = math.inf) -> torch.Tensor:
        """(B, B) similarities, epochs trained so far -> scalar."""
        return matching_loss(similarities, self.loss.margin, hardness_after(self.loss, epochs))


class ContrastiveLoss(nn.Module):
    """CLIP's loss, with the temperature that a config sets."""

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self.temperature = loss.temperature

    def forward(self, similarities: torch.Tensor, _epochs: Epochs = math.inf) -> torch.Tensor:
        """(B, B) similarities -> scalar."""
        return contrastive_loss(similarities, self.temperature)


def contrastive_loss(similarities: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Cross entropy of each image's caption among all captions, and of each caption's image, summed over the batch.

    CLIP's symmetric loss (Radford et al. 2021, figure 3) averages where this sums, as Eq. 9 does.

    >>> round(float(contrastive_loss(torch.zeros(4, 4), temperature=0.05)), 3) == round(4 * 2 * math.log(4), 3)
    True
    """
    logits = similarities / temperature
    matches = torch.arange(len(logits), device=logits.device)
    of_images = functional.cross_entropy(logits, matches, reduction="sum")
    return of_images + functional.cross_entropy(logits.mT, matches, reduction="sum")


def matching_loss(similarities: torch.Tensor, margin: float, hardness: Epochs = 1.0) -> torch.Tensor:
    """Triplet loss in both directions, summed over the batch (section 3.4).

    hardness  1 counts the worst violation of each image and of each caption (Eq. 9, VSE++), 0 every violation;
              between them, the two in that proportion; a tensor () where a recorded step reads it anew each time

    >>> float(matching_loss(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), margin=0.2))
    0.4...
    """
    matching = similarities.diagonal()
    diagonal = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    of_images = (margin + similarities - matching[:, None]).clamp(min=0).masked_fill(diagonal, 0)
    of_captions = (margin + similarities - matching[None, :]).clamp(min=0).masked_fill(diagonal, 0)
    if isinstance(hardness, float) and hardness == 1:
        return of_images.amax(dim=1).sum() + of_captions.amax(dim=0).sum()
    every = of_images.sum() + of_captions.sum()
    if isinstance(hardness, float) and hardness == 0:
        return every
    return (1 - hardness) * every + hardness * (of_images.amax(dim=1).sum() + of_captions.amax(dim=0).sum())


def hardness_after(loss: LossConfig, epochs: Epochs) -> Epochs:
    """How hard the negatives are after so many epochs, with a fraction: 0 for every violation, 1 for the worst.

    It is a tensor () where it depends on epochs that are one. A warm-up keeps an untrained model from collapsing.

    >>> [hardness_after(LossConfig(warm_up_epochs=2), epochs) for epochs in (0, 0.5, 2, 3)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if loss.negatives == "all":
        return 0.0
    if not loss.warm_up_epochs:
        return 1.0
    share = epochs / loss.warm_up_epochs
    return share.clamp(max=1.0) if isinstance(share, torch.Tensor) else min(1.0, share)
