"""Ranks of an encoded split, counted where its model computes: by numpy on a processor, by torch on a CUDA device.

I images, C captions, D numbers per embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vsrn import metrics
from vsrn.metrics import Advance, EncodedSplit, IntArray, Ranks

if TYPE_CHECKING:
    import torch

# Large enough that a block's product fills the device; small enough that a block and its comparisons fit any card.
DEVICE_BLOCK_BYTES = 2**28


def rank_encoded(
    models: Sequence[EncodedSplit],
    image_of_caption: IntArray,
    advance: Advance = lambda _: None,
    weights: Sequence[float] | None = None,
) -> Ranks:
    """Ranks of both directions by the mean similarity of one or more models.

    image_of_caption  (C,) the row of the image that a caption belongs to
    advance           called with the number of images of each block of similarities
    weights           how much each model counts, divided by their sum; None for all alike

    Raises what `vsrn.metrics.rank_blocks` raises.
    """
    if all(model.device.startswith("cuda") and model.compare is metrics.inner_products for model in models):
        return rank_on(models[0].device, models, image_of_caption, advance, weights)
    return metrics.rank_blocks(metrics.similarity_blocks(models, advance, weights=weights), image_of_caption)


def rank_on(
    device: str,
    models: Sequence[EncodedSplit],
    image_of_caption: IntArray,
    advance: Advance = lambda _: None,
    weights: Sequence[float] | None = None,
    block_bytes: int = DEVICE_BLOCK_BYTES,
    kept_bytes: int = metrics.KEPT_BYTES,
) -> Ranks:
    """Ranks as `rank_blocks` counts them, by inner products on a torch device.

    The two sum in another order, so similarities that differ in their last bit may change places.

    block_bytes  how much of the similarities is made at a time
    kept_bytes   similarities up to this size are made once; larger ones twice

    The other arguments and the errors are those of `rank_encoded`.
    """
    # torch takes seconds to import, and a split that an exported model encoded is ranked without it.
    import torch  # noqa: PLC0415

    images, captions = len(models[0].images), len(models[0].captions)
    rows = metrics.rows_of_block(captions, block_bytes)
    order = np.argsort(image_of_caption, kind="stable")
    # Captions of the images from a to b are order[starts[a]:starts[b]].
    starts = np.searchsorted(image_of_caption[order], np.arange(images + 1))
    with torch.inference_mode():
        block_of = _similarities_on(device, models, weights)
        columns, owners = (torch.tensor(values, device=device) for values in (order, image_of_caption[order]))
        # In the type that similarities have.
        own = block_of(slice(1)).new_full((captions,), float("nan"))
        to_text = torch.empty(images, dtype=torch.int64, device=device)
        nan = torch.zeros((), dtype=torch.bool, device=device)
        kept: list[torch.Tensor] = []
        # Nothing here waits for the device before the end.
        for first in range(0, images, rows):
            block = block_of(slice(first, first + rows))
            last = first + len(block)
            part = slice(int(starts[first]), int(starts[last]))
            ours = owners[part] - first
            matches = block[ours, columns[part]]
            own[columns[part]] = matches
            best = block.new_full((len(block),), -torch.inf).scatter_reduce(0, ours, matches, "amax")
            not_before = (block >= best[:, None]).sum(dim=1)
            to_text[first:last] = not_before.scatter_add(0, ours, -(matches >= best[ours]).long())
            nan |= block.isnan().any()
            kept += [block] if 4 * images * captions <= kept_bytes else []
            advance(len(block))
        if bool(nan | own.isnan().any()) or not np.diff(starts).all():
            # It goes through the images one by one, and names what is wrong.
            return metrics.rank_blocks(metrics.similarity_blocks(models, weights=weights), image_of_caption)
        # Its own image always counts itself once.
        to_image = torch.full((captions,), -1, dtype=torch.int64, device=device)
        for block in kept or (block_of(slice(first, first + rows)) for first in range(0, images, rows)):
            to_image += (block >= own).sum(dim=0)
    return Ranks(image_to_text=to_text.cpu().numpy(), text_to_image=to_image.cpu().numpy())


def _similarities_on(
    device: str, models: Sequence[EncodedSplit], weights: Sequence[float] | None
) -> Callable[[slice], torch.Tensor]:
    """A function that gives the (rows, C) mean similarities of a range of images on a torch device."""
    import torch  # noqa: PLC0415

    pairs = [[torch.tensor(part, device=device) for part in (model.images, model.captions)] for model in models]
    whole = float(len(models) if weights is None else sum(weights))

    def similarities(number: int, images: slice) -> torch.Tensor:
        part = pairs[number][0][images] @ pairs[number][1].T
        return part if weights is None else part * float(weights[number])

    def block_of(images: slice) -> torch.Tensor:
        total = functools.reduce(torch.add, (similarities(number, images) for number in range(len(pairs))))
        # By a tensor: divided by a number of Python, CUDA multiplies by its inverse, whose last bit may differ.
        return total if whole == 1 else total / total.new_tensor(whole)

    return block_of
