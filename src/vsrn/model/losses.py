"""Similarity of image and caption embeddings, and the matching loss (section 3.4, Eq. 9).

Shapes: B matching pairs; S (B, B) similarities with images as rows and the matches on the diagonal.
"""

from __future__ import annotations

import torch

from vsrn.model.numerics import widen


def cosine_similarities(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """(I, D), (C, D) -> (I, C): inner products of the embeddings as they come."""
    # Under autocast the product would be rounded to bfloat16, whose steps below 1 are a fiftieth of the margin.
    with torch.autocast(images.device.type, enabled=False):
        return widen(images) @ widen(captions).mT


def order_similarities(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """(I, D), (C, D) -> (I, C): s(i, c) = -|| max(0, c - i) ||_2 (Vendrov et al. 2016, Eq. 2)."""
    violation = (captions[None, :, :] - images[:, None, :]).clamp(min=0)
    return -torch.linalg.vector_norm(violation, dim=-1)


SIMILARITIES = {"cosine": cosine_similarities, "order": order_similarities}


def matching_loss(similarities: torch.Tensor, margin: float, negatives: str) -> torch.Tensor:
    """Triplet loss in both directions, summed over the batch (not averaged).

    negatives  "hardest" counts the worst violation of each image and of each caption (VSE++);
               "all" counts every violation

    >>> float(matching_loss(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), margin=0.2, negatives="hardest"))
    0.4...
    """
    matching = similarities.diagonal()
    diagonal = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    of_images = (margin + similarities - matching[:, None]).clamp(min=0).masked_fill(diagonal, 0)
    of_captions = (margin + similarities - matching[None, :]).clamp(min=0).masked_fill(diagonal, 0)
    if negatives == "hardest":
        return of_images.amax(dim=1).sum() + of_captions.amax(dim=0).sum()
    return of_images.sum() + of_captions.sum()
