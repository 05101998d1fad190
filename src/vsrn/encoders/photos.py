"""Photo files to regions, by the extractor that a model learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsrn.config import NetworkConfig
from vsrn.data.region_store import FloatArray, IntArray, RegionNames, RegionStore, StoreInfo, pad_regions
from vsrn.encoders.explain import ExplainView, Explanation, RegionEncoder, explain_regions
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.base import RegionExtractor, make_extractor, prepare_photo
from vsrn.extractors.provenance import kept_weights

PHOTOS_PER_BATCH = 32


def regions_of(
    photos: Sequence[Path | str], learned_from: StoreInfo, weights: Path | None
) -> Iterator[tuple[FloatArray, IntArray | None]]:
    """Photo files -> (B, N, F) features and their counts, a batch at a time, in the order of the photos.

    Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not the one that
    the model learned from; `weights` as in `learned_extractor`.
    """
    extractor = learned_extractor(learned_from, weights)
    for first in range(0, len(photos), PHOTOS_PER_BATCH):
        batch = [prepare_photo(extractor, Path(photo)) for photo in photos[first : first + PHOTOS_PER_BATCH]]
        yield pad_regions(extractor(batch))


def pixels_of(photos: Sequence[Path | str], network: NetworkConfig) -> Iterator[tuple[npt.NDArray[np.uint8], None]]:
    """Photo files -> (B, S, S, 3) uint8, the middle of each, a batch at a time, in the order of the photos.

    Raises `PhotoError` where a photo cannot be read.
    """
    # Only models that read pixels need what cuts them out.
    from vsrn.data.photo_splits import View  # noqa: PLC0415

    view = View.of(network)
    for first in range(0, len(photos), PHOTOS_PER_BATCH):
        yield np.stack([view.read_middle(Path(photo)) for photo in photos[first : first + PHOTOS_PER_BATCH]]), None


def explain_photo(
    encoder: RegionEncoder,
    extractor: RegionExtractor,
    photo: Path | str,
    sentence: str,
    view: ExplainView,
    kept: RegionNames,
) -> Explanation:
    """Explain the match of a photo file with a sentence.

    kept  as in `names_of`

    Raises `PhotoError` where the photo cannot be read, and `DataError` where the names are not the extractor's.
    """
    (regions,) = extractor([prepare_photo(extractor, Path(photo))])
    labels = names_of(extractor, kept).labels_of(regions)
    return explain_regions(encoder, regions, sentence, view, labels)


def names_of(extractor: RegionExtractor, kept: RegionNames) -> RegionNames:
    """What an extractor's regions are called: by its own names, or else by those that its model's folder keeps."""
    return extractor.names if extractor.names.classes else kept


def learned_extractor(learned_from: StoreInfo, weights: Path | None) -> RegionExtractor:
    """The extractor that made a model's training data.

    weights  what the model's folder keeps of it (`vsrn.extractors.provenance`), or None

    Raises `DataError` where the extractor is unknown, lacks its weights or is another.
    """
    name = learned_from.extractor
    if not name:
        raise DataError(
            "this model does not say which extractor made its regions, so it cannot read photos;"
            " give it region features instead."
        )
    remedy = (
        "put the weights that its photos were extracted with, or a link to them, into its folder and call them"
        " 'extractor' with their own suffix, as in extractor.safetensors"
    )
    try:
        extractor = make_extractor(name, weights)
    except ConfigError as error:
        if weights is not None:
            raise
        raise DataError(f"this model learned from '{name}', which cannot be made here ({error}); {remedy}.") from error
    if extractor.fingerprint != learned_from.fingerprint:
        raise DataError(
            f"the extractor '{name}' here has other weights or settings ({extractor.fingerprint[:12]}) than the one"
            f" this model learned from ({learned_from.fingerprint[:12]}); {remedy}, or install the version of vsrn that"
            " it was trained with."
        )
    return extractor


def weights_behind(store: RegionStore) -> Path | None:
    """The weights in a store's folder that made the regions of this split, or None where it keeps none of them."""
    kept = kept_weights(store.folder)
    if kept is None or not store.info.extractor:
        return None
    # Another split of the same folder may have been made without them.
    made = make_extractor(store.info.extractor, kept)
    return kept if made.fingerprint == store.info.fingerprint else None
