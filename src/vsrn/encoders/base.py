"""One model at work, whatever library runs it: sentences, regions and photos in; embeddings, captions and reasons out.

    model = vsrn.load("flickr8k-small")                     # or a run, a converted model, an exported folder
    model.encode_captions(["two dogs play on a beach"])     # (1, D)
    model.encode_images(["beach.jpg"])                      # (1, D)
    model.explain("beach.jpg", "two dogs")                  # which regions earned the match
    model.caption("beach.jpg")                              # "two dogs play on the beach."

This file checks what comes in and needs no torch; the back ends beside it do the arithmetic.

B images or captions, N regions of an image at most, F numbers per region, D numbers per embedding.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vsrn.config import Config, RegionOrder
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames, Regions, pad_regions
from vsrn.data.splits import CaptionedImages, Split, at_places, back_in_place, in_order, reading_places
from vsrn.data.vocabulary import Vocabulary
from vsrn.encoders.explain import ExplainView, Explanation, explain_regions
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors.provenance import learned_extractor
from vsrn.metrics import SIMILARITIES, Advance, EncodedSplit, FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.encoders.captioning import CaptionWriter
    from vsrn.extractors.base import Prepared, RegionExtractor

# (B, N, F) features, or (B, S, S, 3) uint8 pixels of a model that reads photos whole.
Features = npt.NDArray[Any]
Precision = Literal["fp32", "bf16"]

DEFAULT_BEAM = 5
IMAGES_AT_ONCE = 128
PHOTOS_AT_ONCE = 32
NO_CAPTIONER = (
    "this model has no captioner, so it cannot write captions; use one that was trained with model.captioner.enabled."
)
WHOLE_PHOTOS = "this model reads photos whole, so no region can be named; use one of regions."


class WrittenCaption(NamedTuple):
    """A sentence that a model wrote.

    text   its words and punctuation marks, as one writes them
    score  mean log-probability of its words and of its end; 0 would be certainty
    """

    text: str
    score: float


class Encoder(ABC):
    """A model ready to use; `vsrn.load` gives the right kind.

    `TorchEncoder` runs a run or a converted model, `OnnxEncoder` an exported folder without torch, and `ScanEncoder`
    a SCAN, which compares images with captions and has no embedding of either. Threads may share one.

    config         the model's own
    vocabulary     the words it can read
    device         where torch computes: `cpu`, `cuda`, `mps` or `auto`. Photos are extracted there, too
    learned_from   which extractor made the regions that the model learned from; empty where nobody recorded it
    has_captioner  whether the model can write captions
    """

    def __init__(
        self, config: Config, vocabulary: Vocabulary, device: str, learned_from: StoreInfo, *, has_captioner: bool
    ) -> None:
        self.config, self.vocabulary, self.device = config, vocabulary, device
        self.learned_from, self.has_captioner = learned_from, has_captioner
        self._extractor: RegionExtractor | None = None
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
    def caption_writer(self) -> CaptionWriter:
        """The captioner, loaded once. Raises `CheckpointError` where the model has none."""

    @abstractmethod
    def _kept_names(self) -> RegionNames:
        """What the model's folder calls the regions that it learned from."""

    @abstractmethod
    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance) -> FloatArray:
        """Token ids of each of B captions -> (B, D) float32; calls `advance` with the size of each batch done."""

    @abstractmethod
    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        """(B, N, F) checked features in reading order, (B,) counts or None for all -> (B, D) float32, in one batch."""

    @abstractmethod
    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        """(B, N, F), (B,) as in `_encode_regions` -> (B, D) and (B, N, D) float32, in one batch."""

    def check(self) -> None:  # noqa: B027 - a back end that loads nothing late has nothing to do
        """Load everything that is otherwise loaded at its first use. Raises `CheckpointError` where it is broken."""

    @property
    def similarity(self) -> str:
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

    def encode_captions(self, captions: Sequence[str], advance: Advance = lambda _: None) -> FloatArray:
        """B sentences -> (B, D) float32 embeddings.

        advance  called with the number of captions of each finished batch

        Raises `DataError` for a single sentence that is not in a list.
        """
        if isinstance(captions, str):
            raise DataError("encode_captions takes a list of sentences; put the sentence into one: [sentence].")
        return self._encode_tokens([np.array(self.vocabulary.encode(caption)) for caption in captions], advance)

    def encode_regions(self, features: FloatArray, counts: IntArray | None = None) -> FloatArray:
        """(B, N, F) region features, (B,) real regions of each image or None for all -> (B, D) float32 embeddings.

        Raises `DataError` where they are not of the size that the model reads, hold NaN or infinity, or where a count
        is not 1 to N.
        """
        features, counts = self._check_features(features, counts)
        ordered = in_order(features, counts, self.region_order)
        embeddings = np.empty((len(features), self.config.model.joint_dim), dtype=np.float32)
        for part in slices(len(features), IMAGES_AT_ONCE):
            embeddings[part] = self._encode_regions(ordered[part], None if counts is None else counts[part])
        return embeddings

    def reasoned_regions(self, features: FloatArray, counts: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
        """(B, N, F) features, (B,) counts or None -> (B, D) embeddings, (B, N, D) what entered the aggregator; float32.

        One batch; regions stay in their places, padded ones are 0. Raises what `encode_regions` raises, and
        `CheckpointError` where an export is from before encoders gave their reasoned regions.
        """
        features, counts = self._check_features(features, counts)
        places = reading_places(features, counts, self.region_order)
        embeddings, regions = self._reasoned_regions(at_places(features, places), counts)
        return embeddings, back_in_place(regions, places)

    def encode_images(self, photos: Sequence[Path | str]) -> FloatArray:
        """B photo files -> (B, D) float32 embeddings, by the extractor that the model's training data was made by.

        Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not the one that
        the model learned from, or for a single photo that is not in a list.
        """
        encode = self._encode_regions if self.config.model.network.name else self.encode_regions
        parts = [encode(*batch) for batch in self._read_photos(photos)]
        return np.concatenate(parts) if parts else self.encode_captions([])

    def compare(self, features: FloatArray, counts: IntArray | None, captions: Sequence[str]) -> FloatArray:
        """(I, N, F) features, (I,) counts or None, C sentences -> (I, C) similarities.

        Raises what `encode_regions` raises.
        """
        return SIMILARITIES[self.similarity](self.encode_regions(features, counts), self.encode_captions(captions))

    def encode_split(
        self, split: CaptionedImages, advance: Advance = lambda _: None, batch_size: int = IMAGES_AT_ONCE
    ) -> EncodedSplit:
        """Encode each image and each caption of a split once.

        advance     called with the number of images or captions of each finished batch
        batch_size  images that are read and encoded at a time

        Raises `DataError` where the split's images are not what the model learned from, or where the model makes no
        number of an image because it is all zeros, naming its row.
        """
        self.check_split(split)
        if isinstance(split, Split):
            split = split.in_order(self.region_order)
        else:
            from vsrn.data.photo_splits import seen_by  # noqa: PLC0415 - decoding photos takes packages

            split = seen_by(split, self.config.model.network)
        parts = []
        for part in slices(split.num_images, batch_size):
            images = np.arange(part.start, part.stop)
            features, counts = split.read_images(images)
            parts.append(self._encode_regions(features, counts))
            if isinstance(split, Split) and not np.isfinite(parts[-1]).all():
                split.regions.check_zeros(split.rows[images], features, counts)
            advance(len(images))
        captions = self.encode_captions(split.captions, advance)
        return EncodedSplit(np.concatenate(parts), captions, SIMILARITIES[self.similarity])

    def extract(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """What `extractor.prepare` gave for each photo of a batch -> the regions of each. Threads take turns.

        Raises what `extractor` raises.
        """
        extractor = self.extractor
        with self._extracting:
            return extractor(prepared)

    def explain(self, photo: Path | str, sentence: str, view: ExplainView = "sentence") -> Explanation:
        """Which regions of a photo file earned its match with a sentence, or made its embedding (view "image").

        Raises what `encode_images` and `reasoned_regions` raise.
        """
        (regions,) = self._extract([photo])
        return explain_regions(self, regions, sentence, view, self.region_names.labels_of(regions))

    def caption(self, photo: Path | str, beam: int = DEFAULT_BEAM) -> str:
        """A sentence for one photo file; arguments and errors are those of `caption_images`."""
        return self.caption_images([photo], beam)[0]

    def caption_images(self, photos: Sequence[Path | str], beam: int = DEFAULT_BEAM) -> list[str]:
        """A sentence for each photo file.

        beam  partial captions kept at every step, 1 to 100; 1 is greedy

        Raises what `encode_images` raises, and `CheckpointError` where the model has no captioner.
        """
        return [caption.text for caption in self.write_photo_captions(photos, beam)]

    def caption_regions(
        self, features: FloatArray, counts: IntArray | None = None, beam: int = DEFAULT_BEAM
    ) -> list[str]:
        """(B, N, F) region features, (B,) counts or None for all -> a sentence for each image.

        Raises what `encode_regions` raises, and `CheckpointError` where the model has no captioner.
        """
        return [caption.text for caption in self.write_captions(features, counts, beam)]

    def write_captions(
        self, features: FloatArray, counts: IntArray | None = None, beam: int = DEFAULT_BEAM
    ) -> list[WrittenCaption]:
        """(B, N, F) region features, (B,) counts or None for all -> a sentence for each image, with its probability.

        Raises what `encode_regions` raises, and `CheckpointError` where the model has no captioner.
        """
        writer = self.caption_writer
        features, counts = self._check_features(features, counts)
        written = []
        # Reasoned regions take much more room than captions.
        for part in slices(len(features), IMAGES_AT_ONCE):
            real = None if counts is None else counts[part]
            # The captioner reads the regions one after the other, in the model's order.
            ordered = in_order(features[part], real, self.region_order)
            written += writer.write(self._reasoned_regions(ordered, real)[1], real, beam)
        return written

    def write_photo_captions(self, photos: Sequence[Path | str], beam: int = DEFAULT_BEAM) -> Iterator[WrittenCaption]:
        """A sentence for each photo file, one after the other, with its probability.

        Raises what `encode_images` raises, and `CheckpointError` where the model has no captioner.
        """
        # Before any photo is read, so that a model without a captioner fails at once.
        _ = self.caption_writer
        for features, counts in self._read_photos(photos):
            yield from self.write_captions(features, counts, beam)

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
                f" '{ours.extractor}' ({ours.fingerprint[:12]}); extract the photos as its training data was."
            )

    def _check_features(self, features: FloatArray, counts: IntArray | None) -> tuple[FloatArray, IntArray | None]:
        """(B, N, F) features and (B,) counts as a back end takes them. Raises what `encode_regions` raises."""
        if self.config.model.network.name:
            raise CheckpointError(WHOLE_PHOTOS)
        features, feature_dim = np.asarray(features), self.config.model.feature_dim
        if features.ndim != 3 or features.shape[2] != feature_dim:
            raise DataError(
                f"region features of shape {features.shape} do not fit: this model reads (images, regions,"
                f" {feature_dim}); extract the photos as its training data was."
            )
        if features.dtype != np.float16:
            features = features.astype(np.float32, copy=False)
        if not np.isfinite(features).all():
            raise DataError("region features hold NaN or infinity; extract the photos again.")
        images, most = features.shape[:2]
        if counts is not None:
            counts = np.asarray(counts, dtype=np.int64)
            if counts.shape != (images,):
                raise DataError(
                    f"regions of shape {features.shape} and counts of shape {counts.shape} do not fit; give one count"
                    " per image."
                )
            if images and not 1 <= counts.min() <= counts.max() <= most:
                raise DataError(f"every image must have 1 to {most} regions, since it is padded to that many.")
        elif images and not most:
            raise DataError("every image must have 1 region or more.")
        return features, counts

    def _read_photos(self, photos: Sequence[Path | str]) -> Iterator[tuple[Features, IntArray | None]]:
        """Photo files -> what the model reads of each, and counts of regions, a batch at a time."""
        if isinstance(photos, str | Path):
            raise DataError("photos are named in a list; put the photo into one: [photo].")
        network = self.config.model.network
        for part in slices(len(photos), PHOTOS_AT_ONCE):
            if network.name:
                from vsrn.data.photo_splits import View  # noqa: PLC0415 - sentences need no Pillow

                view = View.of(network)
                yield np.stack([view.read_middle(Path(photo)) for photo in photos[part]]), None
            else:
                yield pad_regions(self._extract(photos[part]))

    def _extract(self, photos: Sequence[Path | str]) -> list[Regions]:
        """Photo files -> the regions of each, in one batch."""
        from vsrn.extractors.base import prepare_photo  # noqa: PLC0415 - sentences need neither torch nor Pillow

        extractor = self.extractor
        return self.extract([prepare_photo(extractor, Path(photo)) for photo in photos])


def slices(total: int, size: int) -> Iterator[slice]:
    """`total` rows cut into slices of `size`, the last one shorter."""
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
