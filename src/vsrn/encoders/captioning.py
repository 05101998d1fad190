"""Writing captions: beam search over the captioner's words, all images and beams of a batch in one step.

A beam of K keeps the K most probable partial captions of an image; 1 is greedy. One that ends leaves the beam, which
is then narrower by one. Of the whole captions the one with the best mean log-probability of its words and of its end
wins, to which its similarity with the image is added where the model compares by cosines.

The search needs no torch; a captioner, by whatever library, only says how captions go on (`ReadsOn`).

Shapes: B images, K partial captions of each, R = B K rows, T words so far, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vsrn.data.tokenizer import join_words
from vsrn.data.vocabulary import END, PAD, START, UNK, Vocabulary
from vsrn.encoders.base import DEFAULT_BEAM, WrittenCaption
from vsrn.encoders.inputs import slices
from vsrn.errors import CheckpointError, ConfigError
from vsrn.metrics import FloatArray, IntArray

# Never written: two are no words, and <unk> stands for every unknown word.
FORBIDDEN = (PAD, START, UNK)
WIDEST_BEAM = 100
# Images times beams that are searched at a time.
ROWS_AT_ONCE = 320
# Images whose captions are all written leave the batch once this share of it, or less, is left.
SHRINK_AT = 0.75

Mask = npt.NDArray[np.bool_]
# (C,) captions and the image of each -> (C,) their similarities. On the 500 photos that chose the weights of the model
# in the box, adding the similarity once raised CIDEr-D from 57.9 to 61.2, twice to 60.4, half of it to 60.2.
Fit = Callable[[list[str], IntArray], FloatArray]


class Continuations(Protocol):
    """The captions of a batch of images, being written."""

    def step(
        self, words: IntArray, rows: IntArray, images: IntArray | None, allowed: Mask, most: int
    ) -> tuple[FloatArray, IntArray]:
        """Write one word more of each row, and say how it may go on.

        words    (R,) the word to write, <start> at first
        rows     (R,) which row of the step before each goes on with; of the first step, its image
        images   places of those images of the step before that are still written, or None for all; each has R / B rows
        allowed  (V,) which words may come next
        most     how many words of each row are asked for

        Gives (R, most) log-probabilities, falling, -inf for what is not allowed, and (R, most) words.
        """


class ReadsOn(Protocol):
    """A captioner: regions -> how captions begin and go on."""

    @property
    def longest(self) -> int:
        """Words of a caption, its end among them, as it was trained for."""

    def begin(self, regions: FloatArray, counts: IntArray | None) -> Continuations:
        """(B, N, D) reasoned regions, (B,) real ones of each or None for all -> their captions, not begun."""


class CaptionWriter:
    """A captioner with the words of its vocabulary."""

    def __init__(self, captioner: ReadsOn, vocabulary: Vocabulary) -> None:
        self.captioner = captioner
        self.vocabulary = vocabulary

    def write(
        self,
        reasoned_regions: FloatArray,
        counts: IntArray | None = None,
        beam: int = DEFAULT_BEAM,
        fit: Fit | None = None,
    ) -> list[WrittenCaption]:
        """(B, N, D) reasoned regions, (B,) real ones of each or None for all -> a caption for each image.

        fit  how much a caption fits an image, which counts beside its probability; None for the probability alone

        Raises `ConfigError` where the beam is not 1 to 100, and `CheckpointError` where the captioner's weights give
        no probabilities.
        """
        if not 1 <= beam <= WIDEST_BEAM:
            raise ConfigError(f"--beam is {beam}; it must be 1 to {WIDEST_BEAM}.")
        written = list[WrittenCaption]()
        for part in slices(len(reasoned_regions), max(1, ROWS_AT_ONCE // beam)):
            real = None if counts is None else np.asarray(counts[part], np.int64)
            found = _Search(self.captioner, len(self.vocabulary), reasoned_regions[part], real, beam).run()
            texts = [join_words(self.vocabulary.decode(caption.words).split()) for caption in found]
            images = np.array([caption.image for caption in found], np.int64)
            totals = np.array([caption.score for caption in found])
            if fit is not None and texts:
                totals += fit(texts, part.start + images)
            for image in range(part.stop - part.start):
                own = np.flatnonzero((images == image) & np.isfinite(totals))
                if not len(own):
                    raise CheckpointError(
                        "the captioner's weights give no probabilities (NaN or infinity); train it again."
                    )
                best = own[totals[own].argmax()]
                written.append(WrittenCaption(texts[best], found[best].score))
        return written


class _Found(NamedTuple):
    """A whole caption: the image it is of, its mean log-probability, and its words, <end> last."""

    image: int
    score: float
    words: list[int]


class _Search:
    """Beam search over the images of one batch; images whose beam is empty leave it.

    images  (B,) which of the images are still being written
    words   (B, K, T) partial captions, from <start>
    rows    (R,) which row of the step before each partial caption goes on with
    totals  (B, K) their log-probabilities, -inf where a beam has become narrower
    widths  (B,) how many of them there may be
    """

    def __init__(
        self, captioner: ReadsOn, vocabulary_size: int, regions: FloatArray, counts: IntArray | None, beam: int
    ) -> None:
        B = len(regions)
        self.captions = captioner.begin(regions, counts)
        self.beam, self.longest, self.vocabulary_size = beam, captioner.longest, vocabulary_size
        self.images = self.rows = np.arange(B)
        self.living: IntArray | None = None
        # All partial captions begin alike, so there is one at first.
        self.words = np.full((B, 1, 1), START)
        self.totals = np.zeros((B, 1), np.float32)
        self.widths = np.full(B, beam)
        self.found: list[_Found] = []

    def run(self) -> list[_Found]:
        """All captions that end within the beams, those of an image in the order in which they end."""
        for length in range(1, self.longest + 1):
            self._continue(length)
            self._collect(length)
            living = np.flatnonzero((self.totals > -np.inf).any(axis=1))
            if not len(living):
                break
            if len(living) <= SHRINK_AT * len(self.images):
                self._keep(living)
        return self.found

    def _allowed(self, length: int) -> Mask:
        """(V,) which words may be the one of this number."""
        allowed = np.full(self.vocabulary_size, length < self.longest)
        allowed[END] = length > 1
        allowed[list(FORBIDDEN)] = False
        return allowed

    def _continue(self, length: int) -> None:
        """Keep the best continuations of each image's partial captions, as many as its beam is wide."""
        most = min(self.beam, self.vocabulary_size)
        last = self.words[:, :, -1].ravel()
        scores, words = self.captions.step(last, self.rows, self.living, self._allowed(length), most)
        self.living = None
        B, K = self.totals.shape
        totals = (self.totals[:, :, None] + scores.reshape(B, K, most)).reshape(B, -1)
        places = np.argsort(-totals, axis=1, kind="stable")[:, : self.beam]
        best = np.take_along_axis(totals, places, 1)
        self.totals = np.where(np.arange(best.shape[1]) < self.widths[:, None], best, np.float32(-np.inf))
        beams, added = places // most, np.take_along_axis(words.reshape(B, -1), places, 1)
        continued = np.take_along_axis(self.words, beams[:, :, None], 1)
        self.words = np.concatenate([continued, added[:, :, None]], axis=2)
        self.rows = (np.arange(B)[:, None] * K + beams).ravel()

    def _collect(self, length: int) -> None:
        """Take captions that have ended out of the beams."""
        ended = (self.words[:, :, -1] == END) & (self.totals > -np.inf)
        images, scores = self.images[np.nonzero(ended)[0]], self.totals[ended] / length
        self.found += map(_Found, images.tolist(), scores.tolist(), self.words[ended][:, 1:].tolist())
        self.totals = np.where(ended, np.float32(-np.inf), self.totals)
        self.widths = self.widths - ended.sum(axis=1)

    def _keep(self, living: IntArray) -> None:
        """Go on with these images of the batch alone."""
        self.rows = self.rows.reshape(self.totals.shape)[living].ravel()
        self.living, self.images, self.widths = living, self.images[living], self.widths[living]
        self.words, self.totals = self.words[living], self.totals[living]
