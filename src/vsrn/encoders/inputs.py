"""What a person may give an `Encoder`, brought into one form or refused in one sentence; torch-free.

B images or captions, N regions of an image at most, F numbers per region, D numbers per embedding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vsrn.config import ModelConfig
from vsrn.data.regions import may_not_be_finite
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.metrics import Advance, FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.data.pictures import Photo

IMAGES_AT_ONCE = 128
WHOLE_PHOTOS = "this model reads photos whole, so no region can be named; use one of regions."

# Every form of one photo, or of many.
Photos: TypeAlias = "Photo | Iterable[Photo]"
# True shows a bar on standard error; a function is called with the number that each finished batch had.
ProgressOf = bool | Advance


def list_of_captions(captions: str | Iterable[str]) -> list[str]:
    """B sentences, or a single one -> a list of them. Raises `DataError` where one of them is no string."""
    single = isinstance(captions, str | bytes) or not isinstance(captions, Iterable)
    sentences: list[Any] = [captions] if single else list(captions)
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise DataError(f"caption {place} is of type {type(sentence).__name__}; captions are strings.")
    return sentences


def list_of_photos(photos: Photos) -> list[Any]:
    """B photos in any form, or a single one -> a list of them, none of which has been opened."""
    single = isinstance(photos, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(photos, "read")
    # One array of pixels has three axes; a picture of Pillow has no length.
    single = single or getattr(photos, "ndim", 0) == 3 or not isinstance(photos, Iterable)
    return [photos] if single else list(photos)  # type: ignore[arg-type]


def array_of(values: Any, what: str) -> npt.NDArray[Any]:
    """An array of numbers, of numpy or of torch on any device, or lists of them -> of numpy, copied only where it must.

    Raises `DataError` where it is anything else, such as rows of different lengths.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):
            values = values.float()
        values = values.numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{what} are rows of different lengths; pad them to one and give counts.") from error
    if array.dtype.kind not in "fiu" and array.size:
        raise DataError(f"{what} are of type {array.dtype}; give numbers.")
    return array


def check_features(features: Any, counts: Any, model: ModelConfig) -> tuple[FloatArray, IntArray | None]:
    """(B, N, F) features and (B,) counts, or None for all, in any form -> arrays of numpy of these shapes.

    The numbers themselves are looked at by `batches_of`, so that features may lie on disk. Raises `DataError` where the
    shapes do not fit each other or the model's F, or a count is not 1 to N, and `CheckpointError` where the model reads
    photos whole.
    """
    if model.network.name:
        raise CheckpointError(WHOLE_PHOTOS)
    feature_dim = model.feature_dim
    features = array_of(features, "region features")
    if features.ndim != 3 or features.shape[2] != feature_dim:
        one = " For one image, give features[None]." if features.shape[-1:] == (feature_dim,) else ""
        raise DataError(
            f"region features of shape {features.shape} do not fit: this model reads (images, regions, {feature_dim});"
            f" extract the photos as its training data was.{one}"
        )
    images, most = features.shape[:2]
    if counts is None:
        if images and not most:
            raise DataError("every image must have 1 region or more.")
        return features, None
    counts = array_of(counts, "counts of regions")
    if counts.shape != (images,) or (images and counts.dtype.kind not in "iu"):
        raise DataError(
            f"regions of shape {features.shape} and counts of shape {counts.shape} and type {counts.dtype} do not fit;"
            " give one count per image, a whole number."
        )
    counts = counts.astype(np.int64)
    if images and not 1 <= counts.min() <= counts.max() <= most:
        raise DataError(f"every image must have 1 to {most} regions, since it is padded to that many.")
    return features, counts


def batches_of(
    features: FloatArray, counts: IntArray | None, batch_size: int | None = None
) -> Iterator[tuple[slice, FloatArray, IntArray | None]]:
    """What `check_features` gave -> the places of each batch (None: 128 images) and what `batch_of` gives."""
    for part in slices(len(features), size_of_batches(batch_size, IMAGES_AT_ONCE)):
        yield part, *batch_of(features, counts, part)


def batch_of(features: FloatArray, counts: IntArray | None, part: slice) -> tuple[FloatArray, IntArray | None]:
    """What `check_features` gave -> of these places, float16 or float32 features that are finite, and counts.

    Raises `DataError`, naming the image, where a feature is NaN or infinite.
    """
    batch = np.asarray(features[part])
    if batch.dtype not in (np.float16, np.float32) or not batch.dtype.isnative:
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            batch = batch.astype(np.float16 if batch.dtype == np.float16 else np.float32)
    if may_not_be_finite(batch) and not (finite := np.isfinite(batch).all(axis=(1, 2))).all():
        place = part.start + int(np.flatnonzero(~finite)[0])
        raise DataError(f"region features hold NaN or infinity (image {place}); extract the photos again.")
    return batch, None if counts is None else counts[part]


def size_of_batches(batch_size: Any, default: int) -> int:
    """A person's batch size, or the default where it is None. Raises `ConfigError` where it is no number from 1."""
    if batch_size is None:
        return default
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}; it must be a whole number from 1.")
    return int(batch_size)


@contextlib.contextmanager
def reporting(progress: ProgressOf, what: str, total: int) -> Iterator[Advance]:
    """A context that gives the function to call with the size of each finished batch.

    what   the job as a verb, such as "encoding"
    total  how many there are
    """
    if callable(progress) or not progress:
        yield progress if callable(progress) else lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - most callers show no bar
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)


def embeddings_of(values: Any, encode: Callable[[Any], FloatArray], dim: int) -> FloatArray:
    """(B, D) embeddings as they are, or what `encode` makes one of; a single (D,) is a batch of one.

    Raises `DataError` where embeddings are of another size, and what `encode` raises.
    """
    if "float" not in str(getattr(values, "dtype", "")) or values.ndim not in (1, 2):
        return encode(values)
    array = np.atleast_2d(array_of(values, "embeddings"))
    if array.shape[1] != dim:
        raise DataError(f"embeddings of shape {array.shape} do not fit: this model's have {dim} numbers.")
    return array.astype(np.float32, copy=False)


def slices(total: int, size: int) -> Iterator[slice]:
    """`total` rows cut into slices of `size`, the last one shorter."""
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
