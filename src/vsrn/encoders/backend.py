"""What every model at work has: what a back end has to compute, reading sentences and photos, and what fits together.

B images or captions, N regions of an image at most, F numbers per region, D numbers per embedding.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from vsrn.config import Config
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames, Regions, pad_regions
from vsrn.data.splits import CaptionedImages, Split
from vsrn.data.stand_ins import ReadWords, StandIns, in_their_place, names
from vsrn.data.tokenizer import tokenize
from vsrn.data.vocabulary import Vocabulary
from vsrn.encoders import inputs
from vsrn.encoders.inputs import Photos, ProgressOf
from vsrn.errors import CheckpointError, DataError, UnknownWordsWarning
from vsrn.extractors.provenance import learned_extractor
from vsrn.metrics import Advance, FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.data.pictures import Photo
    from vsrn.encoders.captioning import CaptionWriter
    from vsrn.extractors.base import Prepared, RegionExtractor

# (B, N, F) features, or (B, S, S, 3) uint8 pixels of a model that reads photos whole.
Features = npt.NDArray[Any]

# Reads a batch: (B, N, F) checked features in reading order, or pixels, and (B,) counts or None for all.
ReadBatch = Callable[[], tuple[Features, IntArray | None]]

PHOTOS_AT_ONCE = 32
WORDS_NAMED = 10
# Words of a sentence whose spelling is looked up; each takes some hundredths of a second.
WORDS_SPELT = 5


class BackEnd(ABC):
    """A model, its vocabulary and its extractor, whichever library computes; its attributes are those of `Encoder`.

    main_file  the file by which a folder is known to hold a model of this back end
    """

    main_file: ClassVar[str]
    # Whether sentences are embeddings, whose mean over several stand-ins can be taken.
    reads_stand_ins: ClassVar[bool] = True

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        folder: Path | None,
        device: str,
        learned_from: StoreInfo,
        *,
        has_captioner: bool,
    ) -> None:
        self.config, self.vocabulary, self.folder, self.device = config, vocabulary, folder, device
        self.learned_from, self.has_captioner = learned_from, has_captioner
        self.region_order = config.data.region_order
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
        return inputs.IMAGES_AT_ONCE

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

    def encode_captions(
        self,
        captions: str | Iterable[str],
        *,
        batch_size: int | None = None,
        progress: ProgressOf = False,
        stand_ins: bool = True,
    ) -> FloatArray:
        """B sentences -> (B, D) float32 embeddings; a single string is one sentence, (1, D).

        stand_ins  whether known words stand in for words that the model never read: the embedding is then the mean
                   over the sentence with each of them, as long as these are on average. False reads such words as
                   `<unk>`, as the field's protocol and `encode_split` do

        Warns once of each word that the model never read and that nothing stands in for (`UnknownWordsWarning`).
        Raises `DataError` where one of them is no string.
        """
        sentences = inputs.list_of_captions(captions)
        instead = self.stand_ins(sentences) if stand_ins else {}
        self._warn_of_words(sentences, instead)
        with inputs.reporting(progress, "encoding captions", len(sentences)) as advance:
            embeddings = self._encode_tokens(self._tokens(sentences), advance, batch_size)
        if instead:
            words = [tokenize(sentence) for sentence in sentences]
            places = [place for place, some in enumerate(words) if not instead.keys().isdisjoint(some)]
            count = max(map(len, instead.values()))
            tokens = [
                np.array(self.vocabulary.ids_of(in_their_place(words[place], instead, choice)))
                for place in places
                for choice in range(count)
            ]
            found = self._encode_tokens(tokens, lambda _: None, batch_size).reshape(len(places), count, -1)
            means = found.mean(axis=1)
            lengths = np.linalg.norm(found, axis=2).mean(axis=1) / np.maximum(np.linalg.norm(means, axis=1), 1e-12)
            embeddings[places] = means * lengths[:, None]
        return embeddings

    def unknown_words(self, captions: str | Iterable[str]) -> list[str]:
        """Words of captions that the model never read and that nothing stands in for, each once, in their order."""
        captions = inputs.list_of_captions(captions)
        instead = self.stand_ins(captions)
        return [word for word in self.vocabulary.unknown_words(captions) if word not in instead]

    def stand_ins(self, captions: str | Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Words of captions that the model never read -> the known words that stand in for each, nearest first."""
        if not self.reads_stand_ins:
            return {}
        unknown = self.vocabulary.unknown_words(inputs.list_of_captions(captions))
        return {word: found for word in unknown if (found := self.standing_in.of(word))}

    def read_words(self, sentence: str) -> ReadWords:
        """What the model makes of the words of a sentence."""
        unknown, instead = self.unknown_words(sentence), self.stand_ins(sentence)
        looked_up = [word for word in unknown if names(word)][:WORDS_SPELT]
        spellings = {word: near for word in looked_up if (near := self.standing_in.spelling(word)) is not None}
        words = set(tokenize(sentence))
        naming = [word for word in words if names(word) and word not in unknown]
        return ReadWords(unknown, instead, spellings, bool(naming) or not words, len(naming))

    def _tokens(self, captions: Sequence[str]) -> list[IntArray]:
        """The token ids of each caption."""
        return [np.array(self.vocabulary.encode(caption)) for caption in captions]

    def _warn_of_words(self, captions: Sequence[str], instead: Container[str]) -> None:
        """Name the words that the model never read, those that nothing stands in for and no earlier call has named."""
        unknown = self.vocabulary.unknown_words(captions)
        new = [word for word in unknown if word not in instead and word not in self._named_words]
        if new:
            self._named_words |= set(new)
            more = f" and {len(new) - WORDS_NAMED:,} more" if len(new) > WORDS_NAMED else ""
            share = self.vocabulary.unknown_share(captions)
            warnings.warn(
                f"words the model never read: {', '.join(new[:WORDS_NAMED])}{more} ({share:.0%} of all words).",
                UnknownWordsWarning,
                stacklevel=3,
            )

    @property
    def extractor(self) -> RegionExtractor:
        """The extractor that the model's training data was made by, on this device; loaded and hashed once.

        Raises `CheckpointError` where the model reads photos whole, and `DataError` where the extractor is unknown,
        lacks its weights, or has others here.
        """
        if self.config.model.network.name:
            raise CheckpointError(inputs.WHOLE_PHOTOS)
        with self._loading:
            if self._extractor is None:
                self._extractor = learned_extractor(self.learned_from, self.extractor_weights, self.device)
            return self._extractor

    @property
    def region_names(self) -> RegionNames:
        """What the extractor calls its regions, or else what the model's folder does. Raises as `extractor` does."""
        ours = self.extractor.names
        return ours if ours.classes else self._kept_names()

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

    def _read_photos(
        self, photos: Photos, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[tuple[Features, IntArray | None]]:
        """Photos -> what the model reads of each, and counts of regions, a batch at a time.

        workers  threads that read and decode photos ahead; None for one for each processor
        """
        from vsrn.data.photo_splits import View, made_ready  # noqa: PLC0415 - sentences need neither torch nor Pillow
        from vsrn.extractors.base import prepare_photo  # noqa: PLC0415

        photos, network = inputs.list_of_photos(photos), self.config.model.network
        size = inputs.size_of_batches(batch_size, PHOTOS_AT_ONCE)
        batches = (photos[part] for part in inputs.slices(len(photos), size))
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
