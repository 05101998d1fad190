"""Writing captions: beam search over the captioner's words, all images and beams of a batch in one step.

A beam of K keeps the K most probable partial captions of an image; 1 is greedy. One that ends leaves the beam, which
is then narrower by one. Of the whole captions the one with the best mean log-probability of its words and of its end
wins, to which its similarity with the image is added where the model compares by cosines.

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


# (B, N, D) reasoned regions, (B,) real ones of each or None for all -> their captions, not begun.
Begin = Callable[[FloatArray, IntArray | None], Continuations]


class CaptionWriter:
    """A captioner with the words of its vocabulary.

    begin       begins the captions of images
    max_tokens  how long captions were in training, from <start> to <end>
    """

    def __init__(self, begin: Begin, max_tokens: int, vocabulary: Vocabulary) -> None:
        self.begin, self.longest, self.vocabulary = begin, max_tokens - 1, vocabulary

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
            begun = self.begin(reasoned_regions[part], real)
            found = _search(begun, part.stop - part.start, beam, self.longest, len(self.vocabulary))
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


def _search(captions: Continuations, B: int, beam: int, longest: int, vocabulary_size: int) -> list[_Found]:
    """All captions of B images that end within the beams, those of an image in the order in which they end.

    longest  words of a caption, its end among them
    """
    found: list[_Found] = []
    most = min(beam, vocabulary_size)
    # Which images are still being written, and which row of the step before each partial caption goes on with.
    images = rows = np.arange(B)
    living: IntArray | None = None
    # (B, K, T) partial captions, (B, K) their log-probabilities, -inf where a beam has become narrower, and (B,) how
    # many of them there may be. All begin alike, so there is one at first.
    words, totals, widths = np.full((B, 1, 1), START), np.zeros((B, 1), np.float32), np.full(B, beam)
    for length in range(1, longest + 1):
        allowed = np.full(vocabulary_size, length < longest)
        allowed[END] = length > 1
        allowed[list(FORBIDDEN)] = False
        scores, following = captions.step(words[:, :, -1].ravel(), rows, living, allowed, most)
        # The best continuations stay, as many as the image's beam is wide.
        B, K = totals.shape
        sums = (totals[:, :, None] + scores.reshape(B, K, most)).reshape(B, -1)
        places = np.argsort(-sums, axis=1, kind="stable")[:, :beam]
        best = np.take_along_axis(sums, places, 1)
        totals = np.where(np.arange(best.shape[1]) < widths[:, None], best, np.float32(-np.inf))
        beams, added = places // most, np.take_along_axis(following.reshape(B, -1), places, 1)
        words = np.concatenate([np.take_along_axis(words, beams[:, :, None], 1), added[:, :, None]], axis=2)
        rows = (np.arange(B)[:, None] * K + beams).ravel()
        # Captions that have ended leave the beams.
        ended = (added == END) & (totals > -np.inf)
        owners, means = images[np.nonzero(ended)[0]], totals[ended] / length
        found += map(_Found, owners.tolist(), means.tolist(), words[ended][:, 1:].tolist())
        totals, widths = np.where(ended, np.float32(-np.inf), totals), widths - ended.sum(axis=1)
        # Images whose beams are empty leave the batch.
        left, living = np.flatnonzero((totals > -np.inf).any(axis=1)), None
        if not len(left):
            break
        if len(left) <= SHRINK_AT * len(images):
            living, images, widths = left, images[left], widths[left]
            rows, words, totals = rows.reshape(totals.shape)[left].ravel(), words[left], totals[left]
    return found
