"""Ranks of an encoded split, counted where its model computes: by numpy on a processor, by torch on a CUDA device.

I images, C captions, D numbers per embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vsrn.metrics import (
    KEPT_BYTES,
    Advance,
    EncodedSplit,
    FloatArray,
    IntArray,
    Ranks,
    check_no_nan,
    inner_products,
    no_caption,
    no_image,
    rank_blocks,
    rows_of_block,
    similarity_blocks,
)

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

    They are counted on the models' CUDA device where all of them computed on one and compare by inner products, and by
    numpy otherwise.

    image_of_caption  (C,) the row of the image that a caption belongs to
    advance           called with the number of images of each block of similarities
    weights           how much each model counts, divided by their sum; None for all alike

    Raises what `vsrn.metrics.rank_blocks` raises.
    """
    on_cuda = all(model.device.startswith("cuda") and model.compare is inner_products for model in models)
    if not on_cuda:
        return rank_blocks(similarity_blocks(models, advance, weights=weights), image_of_caption)
    return rank_on(models[0].device, models, image_of_caption, advance, weights)


def rank_on(
    device: str,
    models: Sequence[EncodedSplit],
    image_of_caption: IntArray,
    advance: Advance = lambda _: None,
    weights: Sequence[float] | None = None,
    block_bytes: int = DEVICE_BLOCK_BYTES,
    kept_bytes: int = KEPT_BYTES,
) -> Ranks:
    """Ranks as `rank_blocks` counts them, by inner products on a torch device.

    Where sums of products are exact, the ranks are `rank_blocks`'s to the last one; elsewhere the two sum in another
    order, and similarities that differ in their last bit may change places.

    block_bytes  how much of the similarities is made at a time
    kept_bytes   similarities up to this size are made once; larger ones twice, since every caption's own similarity
                 must be known before others are counted against it

    The other arguments and the errors are those of `rank_encoded`.
    """
    # torch takes seconds to import, and a split that an exported model encoded is ranked without it.
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        sums = _Similarities(device, models, weights)
        return _ranks(sums, image_of_caption, advance, rows_of_block(sums.num_captions, block_bytes), kept_bytes)


class _Similarities:
    """The mean similarities of one or more models, a block of images at a time, on a device."""

    def __init__(self, device: str, models: Sequence[EncodedSplit], weights: Sequence[float] | None) -> None:
        import torch  # noqa: PLC0415

        self.pairs = [
            [torch.tensor(part, device=device) for part in (model.images, model.captions)] for model in models
        ]
        self.weights, self.whole = weights, float(len(models) if weights is None else sum(weights))
        self.num_images, self.num_captions = len(models[0].images), len(models[0].captions)

    def block(self, first: int, rows: int) -> torch.Tensor:
        """(rows or what is left, C) similarities of the images from `first` on."""
        total = None
        for number, (images, captions) in enumerate(self.pairs):
            part = images[first : first + rows] @ captions.T
            weighted = part if self.weights is None else part * float(self.weights[number])
            total = weighted if total is None else total + weighted
        assert total is not None, "a mean of nothing"
        # By a tensor: divided by a number of Python, CUDA multiplies by its inverse, whose last bit may differ.
        return total if self.whole == 1 else total / total.new_tensor(self.whole)


def _ranks(sums: _Similarities, image_of_caption: IntArray, advance: Advance, rows: int, kept_bytes: int) -> Ranks:
    """Counts on the device, without a wait for it before the end."""
    import torch  # noqa: PLC0415

    images, captions = sums.num_images, sums.num_captions
    device = sums.pairs[0][0].device
    order = np.argsort(image_of_caption, kind="stable")
    # Captions of the images from a to b are order[starts[a]:starts[b]].
    starts = np.searchsorted(image_of_caption[order], np.arange(images + 1))
    columns, owners = (torch.tensor(values, device=device) for values in (order, image_of_caption[order]))
    # In the type that similarities have.
    own = sums.block(0, 1).new_full((captions,), float("nan"))
    to_text = torch.empty(images, dtype=torch.int64, device=device)
    nan = torch.empty(images, dtype=torch.bool, device=device)
    keeps = 4 * images * captions <= kept_bytes
    kept: list[torch.Tensor] = []
    for first in range(0, images, rows):
        block = sums.block(first, rows)
        last = first + len(block)
        part = slice(int(starts[first]), int(starts[last]))
        ours = owners[part] - first
        matches = block[ours, columns[part]]
        own[columns[part]] = matches
        best = block.new_full((len(block),), -torch.inf).scatter_reduce(0, ours, matches, "amax")
        not_before = (block >= best[:, None]).sum(dim=1)
        to_text[first:last] = not_before.scatter_add(0, ours, -(matches >= best[ours]).long())
        nan[first:last] = block.isnan().any(dim=1)
        kept += [block] if keeps else []
        advance(len(block))
    _check(nan.cpu().numpy(), own.cpu().numpy(), np.diff(starts), image_of_caption)
    # Its own image always counts itself once.
    to_image = torch.full((captions,), -1, dtype=torch.int64, device=device)
    for block in kept or (sums.block(first, rows) for first in range(0, images, rows)):
        to_image += (block >= own).sum(dim=0)
    return Ranks(image_to_text=to_text.cpu().numpy(), text_to_image=to_image.cpu().numpy())


def _check(nan: npt.NDArray[np.bool_], own: FloatArray, num_captions: IntArray, image_of_caption: IntArray) -> None:
    """Raise the error that `rank_blocks` would raise, which goes through the images one by one.

    nan           (I,) whether one of an image's similarities is NaN
    own           (C,) the similarity of each caption to its own image; NaN where there is none
    num_captions  (I,) how many captions each image has
    """
    for image in np.flatnonzero(nan | (num_captions == 0)):
        if nan[image]:
            check_no_nan(np.array([np.nan]), f" of image {image}")
        raise no_caption(int(image))
    without = np.flatnonzero(np.isnan(own))
    if len(without):
        raise no_image(int(without[0]), image_of_caption)
