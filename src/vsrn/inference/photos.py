"""Photo files to regions, by the extractor that a model learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vsrn.errors import DataError
from vsrn.inference.explanation import ExplainView, Explanation, RegionEncoder, explain_regions
from vsrn.regions.extractor import RegionExtractor, make_extractor, prepare_photo
from vsrn.regions.store import FloatArray, IntArray, StoreInfo, pad_regions

PHOTOS_PER_BATCH = 32


def regions_of(photos: Sequence[Path | str], learned_from: StoreInfo) -> Iterator[tuple[FloatArray, IntArray | None]]:
    """Photo files -> (B, N, F) features and their counts, a batch at a time, in the order of the photos.

    Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not the one that
    the model learned from.
    """
    extractor = learned_extractor(learned_from)
    for first in range(0, len(photos), PHOTOS_PER_BATCH):
        batch = [prepare_photo(extractor, Path(photo)) for photo in photos[first : first + PHOTOS_PER_BATCH]]
        yield pad_regions(extractor(batch))


def explain_photo(
    encoder: RegionEncoder, photo: Path | str, sentence: str, view: ExplainView, learned_from: StoreInfo
) -> Explanation:
    """Explain the match of a photo file with a sentence. Raises what `regions_of` raises."""
    extractor = learned_extractor(learned_from)
    (regions,) = extractor([prepare_photo(extractor, Path(photo))])
    return explain_regions(encoder, regions, sentence, view)


def learned_extractor(learned_from: StoreInfo) -> RegionExtractor:
    """The extractor that made a model's training data. Raises `DataError` where it is unknown or another."""
    if not learned_from.extractor:
        raise DataError(
            "this model does not say which extractor made its regions, so it cannot read photos;"
            " give it region features instead."
        )
    extractor = make_extractor(learned_from.extractor)
    if extractor.fingerprint != learned_from.fingerprint:
        raise DataError(
            f"the extractor '{extractor.name}' here has other weights or settings than the one this model learned"
            " from; install the version of vsrn that it was trained with."
        )
    return extractor
