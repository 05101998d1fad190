"""Why training met a number that is none, as far as what is left of the last steps tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsrn.config import TrainConfig
from vsrn.data.region_store import first_of_zeros
from vsrn.data.splits import Split
from vsrn.errors import DataError, TrainingError
from vsrn.training.batches import TrainingBatches

AGAIN = "The state that was saved last is whole, but going on from it comes to the same; start another run with -o"


def first_that_is_none(numbers: Sequence[float]) -> int | None:
    """Place of the first NaN or infinity, or None where there is none."""
    places = np.flatnonzero(~np.isfinite(np.array(numbers, dtype=np.float64)))
    return int(places[0]) if len(places) else None


def refuse_zeros_of_step(batches: TrainingBatches, step: int) -> None:
    """Raise `DataError` where a batch of a step (from 1) holds an image of which zeros alone are left, naming the row.

    An image of zeros is refused when it is read. What this finds are images that have regions of zeros among others
    and that lost all others to `train.drop_regions`.
    """
    split = batches.split
    if not isinstance(split, Split) or not split.zeros_divide:
        return
    epoch, of_epoch = divmod(step - 1, batches.steps_per_epoch)
    share, batch = next(zip(batches.shares(epoch, of_epoch), batches.epoch(epoch, of_epoch), strict=True))
    place = first_of_zeros(batch.features.numpy(), None if batch.counts is None else batch.counts.numpy())
    if place is not None:
        row = int(split.rows[split.image_of_caption[share.captions[place]]])
        raise DataError(
            f"{split.regions.where(row)} has regions of zeros beside others, and train.drop_regions left the zeros"
            " alone, which the model divides by their length of 0; give the store a"
            f" {split.name}_counts.npy that leaves them out, or set train.drop_regions to 0."
        )


def no_number(
    first_step: int, losses: Sequence[float], gradient_norms: Sequence[float], train: TrainConfig
) -> TrainingError:
    """The error that names the first step whose loss or gradient is no number, and what to do about it.

    first_step      of the steps told of, from 1
    losses          of each step, in their order
    gradient_norms  of each step, before clipping
    """
    loss_at, gradient_at = first_that_is_none(losses), first_that_is_none(gradient_norms)
    remedy = "lower train.learning_rate"
    if train.precision == "bf16":
        remedy = 'set train.precision to "fp32", or lower train.learning_rate'
    if gradient_at is not None and (loss_at is None or gradient_at < loss_at):
        step, loss = first_step + gradient_at, losses[gradient_at]
        what = f"the gradient is {gradient_norms[gradient_at]} at step {step}, though the loss there is {loss:.4g}"
    elif loss_at is not None:
        step = first_step + loss_at
        what = f"the loss is {losses[loss_at]} at step {step}, though every image and caption of that step is a number"
    else:
        what = f"a weight is no number after step {first_step + len(losses) - 1}"
    return TrainingError(f"{what}; {remedy}. {AGAIN}.")
