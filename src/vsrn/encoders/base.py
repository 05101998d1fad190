"""One model at work, whatever library runs it: sentences, regions and photos in; embeddings, captions and reasons out.

This file checks what comes in and needs no torch; the back ends beside it do the arithmetic.

B images or captions, N regions of an image at most, F numbers per region, D numbers per embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from vsrn.data.splits import CaptionedImages, Split, at_places, back_in_place, in_order, reading_places
from vsrn.data.stand_ins import names
from vsrn.data.vocabulary import SPECIAL_WORDS
from vsrn.encoders import inputs
from vsrn.encoders.backend import Features
from vsrn.encoders.explain import ExplainView, Explanation, explain_regions
from vsrn.encoders.hub import SharedEncoder
from vsrn.encoders.inputs import Photos, ProgressOf
from vsrn.metrics import SIMILARITIES, EncodedSplit, FloatArray, IntArray

if TYPE_CHECKING:
    from vsrn.data.pictures import Photo
    from vsrn.encoders.captioning import Fit

DEFAULT_BEAM = 5
# Heat points at more with 400 words than with 50 (76.3 and 74.4 % of things; docs/explain.md), and they are read once,
# in a seventh of a second.
WORDS_AVERAGED = 400
NO_CAPTIONER = (
    "this model has no captioner, so it cannot write captions; use one that was trained with model.captioner.enabled."
)


class WrittenCaption(NamedTuple):
    """A sentence that a model wrote.

    text   its words and punctuation marks, as one writes them
    score  mean log-probability of its words and of its end; 0 would be certainty
    """

    text: str
    score: float


class Encoder(SharedEncoder):
    """A model ready to use; `vsrn.load` gives the right kind.

    Threads may share one. A copy (`copy.deepcopy`) or a pickle takes the weights along; its extractor is loaded again
    when it is first used.

    Regions come as arrays of numpy, which may lie on disk, tensors of torch or lists; photos as paths, the bytes of
    files, files opened with "rb", pictures of Pillow or (H, W, 3) uint8 RGB arrays. A single sentence or photo is a
    batch of one. Where a method takes them,

    batch_size  how many are computed at a time; None for a number that suits the back end
    progress    True shows a bar on standard error; a function is called with the size of each finished batch

    config         the model's own
    vocabulary     the words it can read
    folder         where it was read from; None where it was not read from a folder
    region_order   the order in which it reads an image's regions
    device         where torch computes: `cpu`, `cuda`, `mps` or `auto`. Photos are extracted there, too
    learned_from   which extractor made the regions that the model learned from; empty where nobody recorded it
    has_captioner  whether the model can write captions
    """

    def encode_regions(
        self,
        features: npt.ArrayLike,
        counts: npt.ArrayLike | None = None,
        *,
        batch_size: int | None = None,
        progress: ProgressOf = False,
    ) -> FloatArray:
        """(B, N, F) region features, (B,) real regions of each image or None for all -> (B, D) float32 embeddings.

        Raises `DataError` where they are not of the size that the model reads, hold NaN or infinity, or where a count
        is not 1 to N. Of an image of zeros, whose length the model would divide by, the embedding is NaN.
        """
        checked, real = inputs.check_features(features, counts, self.config.model)

        def read(part: slice) -> tuple[Features, IntArray | None]:
            batch, real_of_batch = inputs.batch_of(checked, real, part)
            return in_order(batch, real_of_batch, self.region_order), real_of_batch

        embeddings = np.empty((len(checked), self.config.model.joint_dim), dtype=np.float32)
        with inputs.reporting(progress, "encoding images", len(checked)) as advance:
            parts = list(inputs.slices(len(checked), inputs.size_of_batches(batch_size, self.images_at_once)))
            for part, encoded in zip(parts, self._encode_batches(partial(read, part) for part in parts), strict=True):
                embeddings[part] = encoded
                advance(len(encoded))
        return embeddings

    def reasoned_regions(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None = None, *, batch_size: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """(B, N, F) features, (B,) counts or None -> (B, D) embeddings, (B, N, D) what entered the aggregator; float32.

        Regions stay in their places, padded ones are 0. Raises what `encode_regions` raises, and `CheckpointError`
        where an export is from before encoders gave their reasoned regions.
        """
        features, counts = inputs.check_features(features, counts, self.config.model)
        joint_dim = self.config.model.joint_dim
        embeddings = np.empty((len(features), joint_dim), dtype=np.float32)
        regions = np.empty((*features.shape[:2], joint_dim), dtype=np.float32)
        for part, batch, real in inputs.batches_of(features, counts, batch_size):
            places = reading_places(batch, real, self.region_order)
            embeddings[part], reasoned = self._reasoned_regions(at_places(batch, places), real)
            regions[part] = back_in_place(reasoned, places)
        return embeddings, regions

    def affinities(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None = None, *, batch_size: int | None = None
    ) -> FloatArray:
        """(B, N, F) features, (B,) counts or None -> (layers, B, N, N) float32 affinities of regions, R of Eq. 2.

        Row i, column j: theta(v_i) . phi(v_j) / n, with n real regions. Regions stay in their places; rows and columns
        of padded ones are 0.

        Raises what `encode_regions` raises, and `CheckpointError` for an export, a SCAN or an encoder of another kind.
        """
        features, counts = inputs.check_features(features, counts, self.config.model)
        parts = []
        for _, batch, real in inputs.batches_of(features, counts, batch_size):
            places = reading_places(batch, real, self.region_order)
            found = self._affinities(at_places(batch, places), real)
            stored = places.argsort(axis=1)[None]
            rows = np.take_along_axis(found, stored[..., None], axis=2)
            parts.append(np.take_along_axis(rows, stored[:, :, None], axis=3))
        return np.concatenate(parts, axis=1) if parts else self._affinities(features, counts)

    def encode_images(
        self, photos: Photos, *, batch_size: int | None = None, progress: ProgressOf = False
    ) -> FloatArray:
        """B photos in any form -> (B, D) float32 embeddings, by the extractor of the model's training data.

        Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not the one that
        the model learned from.
        """
        photos = inputs.list_of_photos(photos)
        encode = self._encode_regions if self.config.model.network.name else self.encode_regions
        parts = [np.empty((0, self.config.model.joint_dim), dtype=np.float32)]
        with inputs.reporting(progress, "encoding photos", len(photos)) as advance:
            for batch in self._read_photos(photos, batch_size):
                parts.append(encode(*batch))
                advance(len(parts[-1]))
        return np.concatenate(parts)

    def similarity(self, images: Photos | FloatArray, captions: str | Iterable[str] | FloatArray) -> FloatArray:
        """Similarities of I images with C captions by the model's own measure, larger is closer: (I, C).

        images    (I, D) embeddings, or photos as `encode_images` takes them
        captions  (C, D) embeddings, or sentences as `encode_captions` takes them

        Raises `DataError` where embeddings are of another size, and what the two methods raise.
        """
        dim = self.config.model.joint_dim
        of_images = inputs.embeddings_of(images, self.encode_images, dim)
        of_captions = inputs.embeddings_of(captions, self.encode_captions, dim)
        return SIMILARITIES[self.similarity_name](of_images, of_captions)

    def compare(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None, captions: str | Iterable[str]
    ) -> FloatArray:
        """(I, N, F) features, (I,) counts or None, C sentences -> (I, C) similarities.

        Raises what `encode_regions` raises.
        """
        return self.similarity(self.encode_regions(features, counts), self.encode_captions(captions))

    def encode_split(
        self, split: CaptionedImages, progress: ProgressOf = False, *, batch_size: int | None = None
    ) -> EncodedSplit:
        """Encode each image and each caption of a split once.

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
        with inputs.reporting(progress, "encoding", split.num_images + len(split.captions)) as advance:
            size = inputs.size_of_batches(batch_size, self.images_at_once)
            batches = [np.arange(part.start, part.stop) for part in inputs.slices(split.num_images, size)]
            reads = (partial(split.read_images, images) for images in batches)
            for images, encoded in zip(batches, self._encode_batches(reads), strict=True):
                if isinstance(split, Split) and not np.isfinite(encoded).all():
                    split.regions.check_zeros(split.rows[images], *split.read_images(images))
                parts.append(encoded)
                advance(len(images))
            captions = self._encode_tokens(self._tokens(split.captions), advance, batch_size)
        return EncodedSplit(np.concatenate(parts), captions, SIMILARITIES[self.similarity_name])

    @property
    def default_view(self) -> ExplainView:
        """The view of explanations that points best for this kind of model."""
        model = self.config.model
        # Where an image is the mean of its regions, or pooled by channel, a region can be compared with a sentence;
        # what a GRU, a BatchNorm or absolute values make of regions is another space than theirs.
        averages = model.kind == "vsepp" or (model.aggregator in ("mean", "gpo") and model.normalisation != "flickr30k")
        return "relevance" if averages and not model.absolute else "sentence"

    def relevance(self, features: FloatArray, sentence: str, words: Sequence[str]) -> FloatArray:
        """(N, F) regions of an image -> (1 + W, N) float32: how much each fits a sentence, then each of its W words.

        That is the inner product of the reasoned region, not normalised, with what the embedding of the sentence, or of
        the word alone, has beyond the average word's. Raises what `reasoned_regions` raises.
        """
        reasoned = self.reasoned_regions(features[None])[1][0]
        return np.asarray((self.encode_captions([sentence, *words]) - self.average_word()) @ reasoned.T)

    def average_word(self) -> FloatArray:
        """(D,) the mean embedding of the vocabulary's first naming words, each alone; of an empty caption without any.

        Counted vocabularies begin with the most frequent words.
        """
        if self._average_word is None or self._average_word[0] != self.fingerprint:
            words = self.vocabulary.words[len(SPECIAL_WORDS) :]
            naming = list(islice(filter(names, words), WORDS_AVERAGED))
            self._average_word = self.fingerprint, self.encode_captions(naming or [""]).mean(axis=0)
        return self._average_word[1]

    def explain(self, photo: Photo, sentence: str, view: ExplainView | None = None) -> Explanation:
        """Where in a photo its match with a sentence, and each word of it, lies.

        view  "relevance": how much each region fits the sentence; "words": the best regions of each of its words;
              "sentence": what the similarity loses without each region; "image": the paper's, which looks at the image
              alone; None for the one that points best for this kind of model, `default_view`

        Raises what `encode_images` and `reasoned_regions` raise.
        """
        view = view or self.default_view
        by_cells = view == "relevance" or (view == "words" and self.default_view != "sentence")
        regions, cells = self._extract(photo, with_cells=by_cells)
        return explain_regions(self, regions, sentence, view, self.region_names.labels_of(regions), cells)

    def caption(self, photo: Photo, beam: int = DEFAULT_BEAM) -> str:
        """A sentence for one photo in any form.

        beam  partial captions kept at every step, 1 to 100; 1 is greedy

        Raises what `encode_images` raises, and `CheckpointError` where the model has no captioner.
        """
        return self.caption_images([photo], beam)[0]

    def caption_images(self, photos: Photos, beam: int = DEFAULT_BEAM) -> list[str]:
        """B photos in any form -> a sentence for each.

        beam  partial captions kept at every step, 1 to 100; 1 is greedy

        Raises what `encode_images` raises, and `CheckpointError` where the model has no captioner.
        """
        return [caption.text for caption in self.write_photo_captions(photos, beam)]

    def caption_regions(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None = None, beam: int = DEFAULT_BEAM
    ) -> list[str]:
        """(B, N, F) region features, (B,) counts or None for all -> a sentence for each image.

        beam  partial captions kept at every step, 1 to 100; 1 is greedy

        Raises what `encode_regions` raises, and `CheckpointError` where the model has no captioner.
        """
        return [caption.text for caption in self.write_captions(features, counts, beam)]

    def write_captions(
        self, features: npt.ArrayLike, counts: npt.ArrayLike | None = None, beam: int = DEFAULT_BEAM
    ) -> list[WrittenCaption]:
        """(B, N, F) region features, (B,) counts or None for all -> a sentence for each image, with its probability.

        beam  partial captions kept at every step, 1 to 100; 1 is greedy. Of the sentences in it, the best sum of mean
              log-probability and similarity with the image is taken, where similarities are cosines; else the most
              probable one

        Raises what `encode_regions` raises, and `CheckpointError` where the model has no captioner.
        """
        writer = self.caption_writer
        features, counts = inputs.check_features(features, counts, self.config.model)
        written = []
        # Reasoned regions take much more room than captions.
        for _, batch, real in inputs.batches_of(features, counts):
            # The captioner reads the regions one after the other, in the model's order.
            embeddings, reasoned = self._reasoned_regions(in_order(batch, real, self.region_order), real)
            # Greedy search finds one caption.
            written += writer.write(reasoned, real, beam, self._fit_to(embeddings) if beam > 1 else None)
        return written

    def _fit_to(self, images: FloatArray) -> Fit | None:
        """What says how similar captions are to images of these embeddings; None where similarities are no cosines."""
        if self.config.model.similarity != "cosine":
            return None
        return lambda captions, places: (images[places] * self.encode_captions(captions)).sum(axis=1)

    def write_photo_captions(
        self, photos: Photos, beam: int = DEFAULT_BEAM, *, batch_size: int | None = None, workers: int | None = None
    ) -> Iterator[WrittenCaption]:
        """A sentence for each photo, one after the other, with its probability.

        beam        partial captions kept at every step, 1 to 100; 1 is greedy
        batch_size  photos at a time; None for 32
        workers     threads that read and decode photos ahead; None for one for each processor

        Raises what `encode_images` raises, and `CheckpointError` where the model has no captioner.
        """
        # Before any photo is read, so that a model without a captioner fails at once.
        _ = self.caption_writer
        for features, counts in self._read_photos(photos, batch_size, workers):
            yield from self.write_captions(features, counts, beam)
