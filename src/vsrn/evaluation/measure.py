"""Recall@K in one call: of models on a split, or of anybody's similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vsrn.encoders import load_encoder
from vsrn.encoders.base import Encoder
from vsrn.encoders.inputs import ProgressOf, reporting
from vsrn.errors import CheckpointError, SimilarityError
from vsrn.evaluation.evaluate import Evaluation, Retrieval, check_weights, summary
from vsrn.evaluation.evaluate import evaluate as evaluate_retrieval
from vsrn.metrics import FloatArray, IntArray, five_folds, mean_of, rank_blocks
from vsrn.pretrained import find_model

if TYPE_CHECKING:
    from vsrn.data.splits import CaptionedImages
    from vsrn.encoders.torch_backend import Precision

Model = Encoder | Path | str
ROWS = "rows are images and columns are captions"


def recall(
    similarities: npt.ArrayLike,
    image_of_caption: npt.ArrayLike | int | None = None,
    *,
    five_fold: bool = False,
    seed: int = 0,
) -> Evaluation:
    """The field's numbers for anybody's model: Recall@1, 5, 10 both ways, median and mean rank, rsum, 95% intervals.

    >>> found = recall([[0.9, 0.1, 0.8, 0.3], [0.2, 0.4, 0.5, 0.6]], [0, 0, 1, 1])
    >>> found.image_to_text.recall_at_1, found.text_to_image.recall_at_1, found.rsum
    (100.0, 50.0, 550.0)

    similarities      (num_images, num_captions), larger is closer: an array of numpy or torch; distances with a minus
    image_of_caption  (num_captions,) the row of the image that each caption belongs to, from 0; or a number n, where
                      row 0 has the first n captions, row 1 the next n, and so on; None for as many as divide evenly
    five_fold         average over consecutive blocks of 1,000 images, each with its own captions only: COCO 1K
    seed              of the draws that the intervals come from

    A tie counts against the query. Raises `SimilarityError` where the shapes do not fit, naming the mistake, where a
    similarity is NaN, or where an image has no caption.
    """
    scores = as_similarities(similarities)
    owners = owners_of(image_of_caption, scores.shape)
    folds = []
    for fold in five_folds(len(scores)) if five_fold else [slice(0, len(scores))]:
        captions = np.flatnonzero((owners >= fold.start) & (owners < fold.stop))
        part = scores[fold] if len(captions) == len(owners) else scores[fold][:, captions]
        own = owners[captions] - fold.start
        folds.append((rank_blocks(lambda part=part: [(0, part)], own), own))  # type: ignore[misc]
    return summary(folds, seed)


def evaluate(
    models: Model | Sequence[Model],
    data: Path | str | CaptionedImages | None = None,
    split: str = "test",
    *,
    photos: Path | str | None = None,
    weights: Sequence[float] | None = None,
    rerank: Model | None = None,
    top: int = 50,
    five_fold: bool = False,
    similarities: bool = False,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int | None = None,
    progress: ProgressOf = False,
    seed: int = 0,
) -> Evaluation:
    """Recall@K of a model, or of an ensemble, on a split: what `vsrn evaluate` prints.

    models        what `vsrn.load` gives, or what it takes: runs, converted models, exports, names of packaged models
    data          a region store, a split, or captions of photos; None for what the first model learned from
    split         its name on disk: train, dev, test, testall, ...
    photos        folder of the photos, for a model that reads them
    weights       how much each model of an ensemble counts; None for all alike
    rerank, top   a second model, usually a SCAN, that re-orders so many best matches of every query
    five_fold     average over consecutive blocks of 1,000 images: COCO 1K, on its testall split
    similarities  keep the (num_images, num_captions) matrix of the (first stage's) similarities in the result
    device, precision  of models that are named rather than loaded; as in `vsrn.load`
    batch_size    images, and captions, encoded at a time; None for what each model's kind does best
    progress      True draws a bar; a function is called with numbers of images and captions encoded or compared
    seed          of the draws that the intervals come from

    Raises `CheckpointError` where a model cannot be used, `DataError` where the data is missing or not what a model
    learned from, `ConfigError` for weights that do not fit, and `SimilarityError` where nothing can be ranked.
    """
    named = [models] if isinstance(models, Encoder | Path | str) else list(models)
    if not named:
        raise CheckpointError("name at least one model to evaluate.")
    check_weights(weights, len(named))
    encoders = [_loaded(model, device, precision) for model in named]
    if data is None or isinstance(data, str | Path):
        # Decoding photos takes packages that similarities alone do without.
        from vsrn.data.photo_splits import open_split_for  # noqa: PLC0415

        data = open_split_for(encoders[0].config, split, data=data, photos=photos)
    if five_fold:
        five_folds(data.num_images)
    second = None if rerank is None else _loaded(rerank, device, precision)
    names = [model.config.model.kind if isinstance(model, Encoder) else str(model) for model in named]
    stages = 1 if second is None else 2
    encoded = (len(encoders) + stages - 1) * (data.num_images + len(data.captions))
    with reporting(progress, "evaluating", encoded + stages * data.num_images) as advance:
        retrieval = Retrieval(
            encoders, data, advance, weights=weights, second=second, name=str(rerank), top=top, batch_size=batch_size
        )
        found = evaluate_retrieval(retrieval, names, five_fold=five_fold, advance=advance, seed=seed)
    if not similarities:
        return found
    return replace(found, similarities=np.concatenate([block for _, block in retrieval.blocks()()]))


def _loaded(model: Model, device: str, precision: Precision) -> Encoder:
    return model if isinstance(model, Encoder) else load_encoder(find_model(model), device, precision)


def as_similarities(given: npt.ArrayLike) -> FloatArray:
    """Similarities of anybody's making as (num_images, num_captions) numbers that can be ranked.

    Raises `SimilarityError` where they are no such matrix, naming the mistake.
    """
    if hasattr(given, "detach"):
        # A torch tensor, which numpy reads on the CPU only, without gradients, and not in bfloat16.
        tensor = given.detach().cpu()
        given = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    try:
        scores = np.asarray(given)
    except ValueError as error:
        raise SimilarityError(f"the similarities are no matrix: rows of different lengths; {ROWS}.") from error
    if scores.ndim != 2:
        raise SimilarityError(f"the similarities have shape {scores.shape}; they must be a matrix whose {ROWS}.")
    if not scores.size:
        raise SimilarityError(f"the similarities of shape {scores.shape} are empty; {ROWS}.")
    if scores.dtype.kind in "biu":
        return scores.astype(np.float64)
    if scores.dtype.kind != "f":
        raise SimilarityError(f"the similarities are of type {scores.dtype}, and only real numbers can be ranked.")
    return scores


def owners_of(given: npt.ArrayLike | int | None, shape: tuple[int, ...]) -> IntArray:
    """(num_captions,) the image of each caption, given as `recall` takes it, for similarities of this shape.

    Raises `SimilarityError` where they do not fit, naming the mistake.
    """
    images, captions = shape
    if given is None or isinstance(given, int | np.integer):
        each = captions // images if given is None else int(given)
        if each < 1 or each * images != captions:
            fits = images * captions > 0 and images % captions == 0 and (given is None or images == captions * each)
            raise SimilarityError(
                f"similarities of shape {shape} are {captions} captions of {images} images, which is not"
                f" {'the same number' if given is None else each} for each; "
                + (f"if {ROWS} the other way round, transpose them." if fits else "say the image of each caption.")
            )
        return np.repeat(np.arange(images), each)
    owners = np.asarray(given.cpu() if hasattr(given, "cpu") else given)
    if owners.ndim != 1:
        raise SimilarityError(f"image_of_caption has shape {owners.shape}; give one row number per caption.")
    if len(owners) != captions:
        transposed = "; transpose the similarities" if len(owners) == images else ""
        raise SimilarityError(
            f"there are {len(owners)} images of captions for similarities of shape {shape}, whose {ROWS}; they must be"
            f" one per column{transposed}."
        )
    whole = owners.dtype.kind in "iu" or (owners.dtype.kind == "f" and bool((owners == np.floor(owners)).all()))
    if not whole:
        raise SimilarityError(
            f"image_of_caption holds {owners.dtype} such as {owners[0]!r}; give the row numbers of the images, from 0."
        )
    if owners.min() < 0 or owners.max() >= images:
        wrong = int(np.flatnonzero((owners < 0) | (owners >= images))[0])
        from_one = " They seem to count from 1; take 1 away." if owners.min() == 1 and owners.max() == images else ""
        raise SimilarityError(
            f"caption {wrong} belongs to image {int(owners[wrong])}, but the rows of {images} images are 0 to"
            f" {images - 1}.{from_one}"
        )
    return owners.astype(np.int64)


def mean_similarities(parts: Sequence[npt.ArrayLike], weights: Sequence[float] | None = None) -> FloatArray:
    """The mean of several models' similarities of one shape; `weights` say how much each counts, None all alike.

    Raises `SimilarityError` where the shapes differ, and `ConfigError` for weights that do not fit.
    """
    check_weights(weights, len(parts))
    scores = [as_similarities(part) for part in parts]
    if len({part.shape for part in scores}) > 1:
        shapes = " and ".join(str(part.shape) for part in scores)
        raise SimilarityError(f"similarities of shapes {shapes} are not of the same images and captions.")
    return scores[0] if len(scores) == 1 else mean_of(scores, weights)
