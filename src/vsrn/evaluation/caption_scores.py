"""BLEU-4 and CIDEr-D: how close generated captions are to those of people, as COCO's caption evaluation counts.

BLEU-4 (Papineni et al. 2002) over all images at once, with the reference nearest in length:

    exp(min(0, 1 - R / C)) (p1 p2 p3 p4)^(1/4)    p_n  share of the n-grams written that are in a reference, each as
                                                       often as in the reference that has it most
                                                  C, R  words written, and in the references nearest in length

CIDEr-D (Vedantam et al. 2015), the mean over images, references and n = 1 to 4 of

    10 exp(-(c - r)^2 / 2 6^2) sum min(h, g) g / (|h| |g|)    h, g  the n-grams of the caption and of a reference,
                                                                    each by its count times log(images / images whose
                                                                    references have it)
                                                              c, r  their lengths in words

Words are those of `vsrn.data.tokenizer`, without punctuation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsrn.data.tokenizer import tokenize
from vsrn.metrics import FloatArray, Interval, draw_images, intervals_json, percentile_interval

LONGEST_GRAM = 4
SIGMA = 6.0

Words = Sequence[str]
Gram = tuple[str, ...]


@dataclass(frozen=True)
class CaptionScores:
    """Both scores times 100, as papers print them, with 95% bootstrap intervals over images.

    bleu_4   0 to 100
    cider_d  0 to 1,000; captions of people reach about 100 against each other
    """

    bleu_4: float
    cider_d: float
    intervals: dict[str, Interval]

    def to_json(self) -> dict[str, object]:
        """The scores as plain JSON types."""
        return {
            "bleu_4": round(self.bleu_4, 2),
            "cider_d": round(self.cider_d, 2),
            "intervals_95": intervals_json(self.intervals),
        }


def caption_scores(
    written: Sequence[str], references: Sequence[Sequence[str]], *, samples: int = 2000, seed: int = 0
) -> CaptionScores:
    """Score one caption for each of several images against the captions that people wrote for it.

    CIDEr-D weighs n-grams by how many of these images have them, so it is 0 for a single image.
    """
    candidates = [words_of(caption) for caption in written]
    people = [[words_of(caption) for caption in captions] for captions in references]
    counts, ciders = bleu_counts(candidates, people), cider_d(candidates, people)
    draws = draw_images(len(candidates), samples, np.random.default_rng(seed))
    intervals = {
        "bleu_4": percentile_interval(100 * bleu_4(draws @ counts)),
        "cider_d": percentile_interval(100 * (draws @ ciders) / len(ciders)),
    }
    return CaptionScores(100 * float(bleu_4(counts.sum(axis=0))), 100 * float(ciders.mean()), intervals)


def words_of(caption: str) -> list[str]:
    """The words of a caption, without punctuation.

    >>> words_of("A man's dog, asleep.")
    ['a', 'man', "'s", 'dog', 'asleep']
    """
    return [word for word in tokenize(caption) if any(letter.isalnum() for letter in word)]


def bleu_counts(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> FloatArray:
    """(num_images, 10) what `bleu_4` needs of each image: 4 counts of right n-grams, 4 of all, C and R."""
    rows = []
    for words, people in zip(candidates, references, strict=True):
        most: Counter[Gram] = Counter()
        for reference in people:
            most |= _grams(reference)
        written = _grams(words)
        right = _by_length(written & most)
        nearest = min((len(reference) for reference in people), key=lambda length: (abs(length - len(words)), length))
        rows.append([*right, *_by_length(written), len(words), nearest])
    return np.array(rows, dtype=np.float64)


def bleu_4(counts: FloatArray) -> FloatArray:
    """(..., 10) sums of `bleu_counts` over images -> (...) BLEU-4 from 0 to 1; 0 where no 4-gram is right."""
    right, total, length, nearest = counts[..., :4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    precisions = right / np.maximum(total, 1)
    brevity = np.exp(np.minimum(0, 1 - nearest / np.maximum(length, 1)))
    return np.asarray(brevity * precisions.prod(axis=-1) ** 0.25)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> FloatArray:
    """(num_images,) CIDEr-D of each image, from 0 to 10."""
    images_with = Counter(
        gram for people in references for gram in {gram for words in people for gram in _grams(words)}
    )

    def weights_of(words: Words) -> dict[Gram, float]:
        counts = _grams(words).items()
        return {gram: count * math.log(len(references) / max(1, images_with[gram])) for gram, count in counts}

    def score(words: Words, people: Sequence[Words]) -> float:
        weights = weights_of(words)
        similarities = [
            math.exp(-((len(words) - len(person)) ** 2) / (2 * SIGMA**2)) * _clipped_cosine(weights, weights_of(person))
            for person in people
        ]
        return 10 * sum(similarities) / len(similarities)

    return np.array([score(*pair) for pair in zip(candidates, references, strict=True)], dtype=np.float64)


def _clipped_cosine(caption: Mapping[Gram, float], reference: Mapping[Gram, float]) -> float:
    """Mean over n = 1 to 4 of the cosine of two sentences' n-grams; a weight counts up to the reference's."""
    shared = _by_length(
        {gram: min(caption[gram], reference[gram]) * reference[gram] for gram in caption.keys() & reference.keys()}
    )
    ours, theirs = (_by_length({gram: w**2 for gram, w in weights.items()}) for weights in (caption, reference))
    norms = np.sqrt(ours * theirs)
    return float(np.divide(shared, norms, out=np.zeros(LONGEST_GRAM), where=norms > 0).mean())


def _grams(words: Words) -> Counter[Gram]:
    """Every n-gram of a sentence, n from 1 to 4, and how often it is there."""
    sizes = range(1, LONGEST_GRAM + 1)
    return Counter(tuple(words[first : first + n]) for n in sizes for first in range(len(words) - n + 1))


def _by_length(of_gram: Mapping[Gram, float]) -> FloatArray:
    """(4,) sums over the 1-grams, the 2-grams, the 3-grams and the 4-grams."""
    lengths, values = [len(gram) - 1 for gram in of_gram], np.array(list(of_gram.values()), dtype=np.float64)
    return np.asarray(np.bincount(np.array(lengths, dtype=int), values, minlength=LONGEST_GRAM), dtype=np.float64)
