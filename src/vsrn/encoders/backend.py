"""What every model at work has, and what a back end has to compute: the half of `Encoder` that needs no arithmetic.

B images or captions, N regions of an image at most, F numbers per region, D numbers per embedding.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vsrn.config import Config, RegionOrder
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames, Regions, pad_regions
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.stand_ins import StandIns
from vsrn.data.vocabulary import Vocabulary
from vsrn.encoders.inputs import check_features, list_of_photos, size_of_batches, slices
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors.provenance import learned_extractor
from vsrn.metrics import Advance, FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.data.pictures import Photo
    from vsrn.encoders.captioning import CaptionWriter
    from vsrn.encoders.inputs import Photos
    from vsrn.extractors.base import Prepared, RegionExtractor

# (B, N, F) features, or (B, S, S, 3) uint8 pixels of a model that reads photos whole.
Features = npt.NDArray[Any]

# Reads a batch: (B, N, F) checked features in reading order, or pixels, and (B,) counts or None for all.
ReadBatch = Callable[[], tuple[Features, IntArray | None]]

IMAGES_AT_ONCE = 128
PHOTOS_AT_ONCE = 32
WHOLE_PHOTOS = "this model reads photos whole, so no region can be named; use one of regions."


class BackEnd(ABC):
    """A model, its vocabulary and its extractor, whichever library computes; its attributes are those of `Encoder`.

    main_file  the file by which a folder is known to hold a model of this back end
    """

    main_file: ClassVar[str]
    # Whether sentences are embeddings, whose mean over several stand-ins can be taken.
    reads_stand_ins: ClassVar[bool] = True

    def __init__(
        self, config: Config, vocabulary: Vocabulary, device: str, learned_from: StoreInfo, *, has_captioner: bool
    ) -> None:
        self.config, self.vocabulary, self.device = config, vocabulary, device
        self.learned_from, self.has_captioner = learned_from, has_captioner
        self._extractor: RegionExtractor | None = None
        self._named_words: set[str] = set()
        self.standing_in = StandIns(vocabulary)
        # The weights that `average_word` was computed with, by their fingerprint, and what it gave.
        self._average_word: tuple[str, FloatArray] | None = None
        self._loading, self._extracting = threading.Lock(), threading.Lock()

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and settings that decide an embedding; a model and its export have the same."""

    @property
    @abstractmethod
    def extractor_weights(self) -> Path | None:
        """The extractor's weights, where the model's folder keeps them; None where it comes with its own."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """Where the model was read from; None where it was not read from a folder."""

    @abstractmethod
    def write_files(self, folder: Path) -> set[str]:
        """Write the files of the model to a folder that is there, `main_file` last; gives the names of all of them."""

    @property
    @abstractmethod
    def caption_writer(self) -> CaptionWriter:
        """The captioner, loaded once. Raises `CheckpointError` where the model has none."""

    @abstractmethod
    def _kept_names(self) -> RegionNames:
        """What the model's folder calls the regions that it learned from."""

    @abstractmethod
    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance, batch_size: int | None) -> FloatArray:
        """Token ids of each of B captions -> (B, D) float32; calls `advance` with the size of each batch done."""

    @abstractmethod
    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        """(B, N, F) checked features in reading order, (B,) counts or None for all -> (B, D) float32, in one batch."""

    @property
    def images_at_once(self) -> int:
        """How many images are encoded at a time where nobody says otherwise."""
        return IMAGES_AT_ONCE

    def _encode_batches(self, reads: Iterable[ReadBatch]) -> Iterator[FloatArray]:
        """What reads each batch -> (B, D) float32 of each, in order; a back end may read batches ahead, in threads."""
        for read in reads:
            yield self._encode_regions(*read())

    @abstractmethod
    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        """(B, N, F), (B,) as in `_encode_regions` -> (B, D) and (B, N, D) float32, in one batch."""

    def _affinities(self, _features: Features, _counts: IntArray | None) -> FloatArray:
        """(B, N, F), (B,) as in `_encode_regions` -> (layers, B, N, N) float32, in one batch."""
        raise CheckpointError("this model has no affinities of regions; load a VSRN that was trained or converted.")

    def __repr__(self) -> str:
        model = self.config.model
        said = f"{model.kind}, {model.joint_dim} numbers an embedding, {len(self.vocabulary):,} words"
        writes = ", writes captions" if self.has_captioner else ""
        return f"<{type(self).__name__}: {said}{writes}, on {self.device}>"

    def __getstate__(self) -> dict[str, Any]:
        # Locks cannot be copied, and an extractor is made again from its name and weights.
        left_out = {"_loading", "_extracting", "_extractor"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._extractor = None
        self._loading, self._extracting = threading.Lock(), threading.Lock()

    def check(self) -> None:  # noqa: B027 - a back end that loads nothing late has nothing to do
        """Load everything that is otherwise loaded at its first use. Raises `CheckpointError` where it is broken."""

    @property
    def similarity_name(self) -> str:
        """How an image and a caption are compared: "cosine" or "order" embeddings, or a name of the model's own."""
        return self.config.model.similarity

    @property
    def region_order(self) -> RegionOrder:
        """The order in which the model reads an image's regions."""
        return self.config.data.region_order

    @property
    def extractor(self) -> RegionExtractor:
        """The extractor that the model's training data was made by, on this device; loaded and hashed once.

        Raises `CheckpointError` where the model reads photos whole, and `DataError` where the extractor is unknown,
        lacks its weights, or has others here.
        """
        if self.config.model.network.name:
            raise CheckpointError(WHOLE_PHOTOS)
        with self._loading:
            if self._extractor is None:
                self._extractor = learned_extractor(self.learned_from, self.extractor_weights, self.device)
            return self._extractor

    @property
    def region_names(self) -> RegionNames:
        """What the extractor calls its regions, or else what the model's folder does. Raises as `extractor` does."""
        names = self.extractor.names
        return names if names.classes else self._kept_names()

    def extract(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """What `extractor.prepare` gave for each photo of a batch -> the regions of each. Threads take turns.

        Raises what `extractor` raises.
        """
        extractor = self.extractor
        with self._extracting:
            return extractor(prepared)

    def check_split(self, split: CaptionedImages) -> None:
        """Raise `DataError` where a split's images cannot be what this model learned from."""
        reads_photos = bool(self.config.model.network.name)
        if isinstance(split, Split) == reads_photos:
            holds, wants = ("regions", "photos") if reads_photos else ("photos", "regions")
            raise DataError(f"{split.folder} holds {holds}, but this model reads {wants}; evaluate it by itself.")
        if isinstance(split, Split):
            store = split.regions
            self.check_regions(str(store.folder / f"{store.split}_ims.npy"), store.feature_dim, store.info)

    def check_regions(self, where: str, feature_dim: int, made_by: StoreInfo) -> None:
        """Raise `DataError` where regions that lie elsewhere cannot be what this model learned from.

        where        what the message calls the regions
        feature_dim  numbers per region
        made_by      their extractor; empty where nobody recorded it
        """
        wanted, ours = self.config.model.feature_dim, self.learned_from
        if feature_dim != wanted:
            raise DataError(
                f"{where} has regions of {feature_dim} numbers, but this model reads {wanted};"
                " extract the photos as its training data was."
            )
        if made_by.fingerprint and ours.fingerprint and made_by.fingerprint != ours.fingerprint:
            raise DataError(
                f"{where} was made by '{made_by.extractor}' ({made_by.fingerprint[:12]}), but this model learned from"
                f" '{ours.extractor}' ({ours.fingerprint[:12]}); extract the photos as its training data was"
                " (`vsrn extract PHOTOS --model MODEL`)."
            )

    def _check_features(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None
    ) -> tuple[FloatArray, IntArray | None]:
        """(B, N, F) features and (B,) counts, checked but for their numbers. Raises what `encode_regions` raises."""
        if self.config.model.network.name:
            raise CheckpointError(WHOLE_PHOTOS)
        return check_features(features, counts, self.config.model.feature_dim)

    def _read_photos(
        self, photos: Photos, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[tuple[Features, IntArray | None]]:
        """Photos -> what the model reads of each, and counts of regions, a batch at a time.

        workers  threads that read and decode photos ahead; None for one for each processor
        """
        from vsrn.data.photo_splits import View, made_ready  # noqa: PLC0415 - sentences need neither torch nor Pillow
        from vsrn.extractors.base import prepare_photo  # noqa: PLC0415

        photos, network = list_of_photos(photos), self.config.model.network
        batches = (photos[part] for part in slices(len(photos), size_of_batches(batch_size, PHOTOS_AT_ONCE)))
        if network.name:
            for _, middles in made_ready(batches, View.of(network).read_middle, workers):
                yield np.stack(middles), None
        else:
            for _, prepared in made_ready(batches, partial(prepare_photo, self.extractor), workers):
                yield pad_regions(self.extract(prepared))

    def _extract(self, photo: Photo, *, with_cells: bool) -> tuple[Regions, Regions | None]:
        """The regions of a photo, and with `with_cells` the smaller ones of an extractor that has them, or None."""
        from vsrn.data.pictures import name_of, picture_of  # noqa: PLC0415 - sentences need neither torch nor Pillow
        from vsrn.extractors.base import ReadsCells, prepare_pixels  # noqa: PLC0415

        extractor = self.extractor
        picture = picture_of(photo, extractor.photo_size)
        prepared = prepare_pixels(extractor, picture, name_of(photo))
        with self._extracting:
            if with_cells and isinstance(extractor, ReadsCells):
                return extractor.with_cells(picture, prepared)
            return extractor([prepared])[0], None
