"""Why an image matches a sentence, region by region and word by word; the formulas are in docs/explain.md."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vsrn.data.regions import Regions
from vsrn.data.stand_ins import names
from vsrn.data.tokenizer import tokenize
from vsrn.data.vocabulary import Vocabulary
from vsrn.errors import DataError
from vsrn.files import printable
from vsrn.metrics import FloatArray

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder

ExplainView = Literal["relevance", "words", "sentence", "image"]

# The paper's lambda. Heat is scaled to its largest pixel afterwards, so it decides nothing.
LAMBDA = 50
# Pixels along each side of a heat map. Cells of the grid extractor, a seventh of the photo wide, fill 16 exactly.
HEAT_SIDE = 112
# How much of its lead over the photo's median region the best region must have with an average word in the text's
# place, too. On Flickr8K val at 0.7 nothing stands out for 36 % of the words that none of a photo's captions says
# (123,862 of the 300 most frequent ones), and for 3 % of those that three of its five captions have.
LEAST_LEAD = 0.7
# Standard deviation of the blur of a heat map, in pixels: as far as a cell of a map sees around itself.
BLUR = 10


class WeighedRegion(NamedTuple):
    """One region of an `Explanation`: (4,) its box or None, and its weight, share and label or None."""

    box: FloatArray | None
    weight: float
    share: float
    label: str | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each of N regions of an image does for a match.

    boxes    (N, 4) float32 xyxy, fractions of the photo's width and height; None where regions come without boxes
    weights  (N,) float32. View "relevance": how much the region fits the sentence more than an average word. View
             "words": its largest share in any word's relevance. View "sentence": the similarity minus the similarity
             without that region. View "image": inner product of the reasoned region with the image embedding
    heat     (H, W) float32 from 0 to 1, laid over the whole photo whatever its shape; None without boxes
    score    the similarity of the image and the sentence
    labels   (N,) class names of the regions, empty for one without; None where they carry none
    view     which question this answers
    words    of each word of the sentence that names something and that the model knows, in their order: its weights,
             (N,) float32; empty in the view "image"
    words_by the view that the weights of words are of, as if each word were a sentence: "relevance" or "sentence"
    """

    boxes: FloatArray | None
    weights: FloatArray
    heat: FloatArray | None
    score: float
    labels: list[str] | None
    view: ExplainView
    words: Mapping[str, FloatArray] = field(default_factory=dict)
    words_by: ExplainView = "relevance"

    @cached_property
    def shares(self) -> FloatArray:
        """(N,) float32 that sum to 1, or all 0 where no region adds anything: how much of the heat is each region's."""
        return region_shares(self.weights, self.view)

    @cached_property
    def stands_out(self) -> bool:
        """Whether a region fits clearly; where none does, shares and heat only say which fits least badly."""
        return _stands_out(self.weights, self.view)

    def top(self, k: int) -> list[WeighedRegion]:
        """The k regions with the largest shares, largest first; those without any are left out."""
        order = [place for place in np.argsort(-self.shares, kind="stable")[:k] if self.shares[place] > 0]
        return [self._region(place) for place in order]

    def of_word(self, word: str) -> Explanation:
        """The same with the weights, the shares and the heat of one word. Raises `DataError` where it is not there."""
        if word.lower() not in self.words:
            known = ", ".join(self.words) or "none"
            raise DataError(f"no place is known of the word '{printable(word)}'; words with places: {known}.")
        weights = self.words[word.lower()]
        return replace(self, weights=weights, heat=_heat_of(self.boxes, weights, self.words_by), view=self.words_by)

    def places(self) -> dict[str, WeighedRegion]:
        """Of each word, the region with the largest share; a word without any is left out."""
        best = {word: self.of_word(word).top(1) for word in self.words}
        return {word: regions[0] for word, regions in best.items() if regions}

    def to_json(self) -> dict[str, object]:
        """Plain numbers for JSON: `view`, `score`, `stands_out`, `regions` and `words`; heat follows from shares."""
        return {
            "view": self.view,
            "score": round(self.score, 6),
            "stands_out": self.stands_out,
            "regions": [
                ({} if region.box is None else {"box": [round(float(edge), 6) for edge in region.box]})
                | {"weight": round(region.weight, 6), "share": round(region.share, 6)}
                | ({} if region.label is None else {"label": region.label})
                for region in map(self._region, range(len(self.weights)))
            ],
            "words": [
                {
                    "word": word,
                    "stands_out": _stands_out(weights, self.words_by),
                    "weights": [round(float(weight), 6) for weight in weights],
                    "shares": [round(float(share), 6) for share in region_shares(weights, self.words_by)],
                }
                for word, weights in self.words.items()
            ],
        }

    def _region(self, place: int) -> WeighedRegion:
        label = None if self.labels is None else self.labels[place] or None
        box = None if self.boxes is None else self.boxes[place]
        return WeighedRegion(box, float(self.weights[place]), float(self.shares[place]), label)


def explain_regions(
    encoder: Encoder,
    regions: Regions,
    sentence: str,
    view: ExplainView | None = None,
    labels: list[str] | None = None,
    cells: Regions | None = None,
) -> Explanation:
    """Explain the match of one image, given by its regions, with a sentence.

    view    None for the one that points best for this kind of model, `encoder.default_view`
    labels  (N,) class names of the regions
    cells   smaller regions of the same photo, weighed in place of `regions` in the views "relevance" and "words"

    Raises what the encoder raises, such as `DataError` where the regions are not of the size that it reads.
    """
    view = view or encoder.default_view
    named = naming_words(sentence, encoder.vocabulary, encoder.stand_ins(sentence))
    words_by = view if view in ("relevance", "sentence") else encoder.default_view
    found = np.zeros((0, len(regions.features)), np.float32)
    if view == "image":
        images, reasoned = encoder.reasoned_regions(regions.features[None])
        score = float(encoder.similarity(images, encoder.encode_captions([sentence]))[0, 0])
        weights = reasoned[0] @ images[0]
    elif words_by == "sentence":
        score, found = losses(encoder, regions.features, [sentence, *named])
        weights = found[0]
    else:
        score = float(encoder.compare(regions.features[None], None, [sentence])[0, 0])
        if cells is not None:
            regions, labels = cells, None
        found = encoder.relevance(regions.features, sentence, named)
        weights = found[0]
    words = dict(zip(named, found[1:], strict=False))
    if view == "words":
        weights = np.max([np.zeros_like(weights), *(region_shares(word, words_by) for word in found[1:])], axis=0)
    weights = weights.astype(np.float32)
    boxes: FloatArray | None = regions.boxes
    return Explanation(boxes, weights, _heat_of(boxes, weights, view), score, labels, view, words, words_by)


def losses(encoder: Encoder, features: FloatArray, sentences: list[str]) -> tuple[float, FloatArray]:
    """(N, F) regions of an image, S sentences -> the first's similarity; (S, N) what each one's loses without a region.

    Without its only region an image has no embedding; its similarity then counts as 0.
    """
    N = len(features)
    # The image as it is, and without each of several regions: that one goes behind the others, where it does not count.
    places, lessened = np.arange(N), range(N) if N > 1 else ()
    rows = [places, *(np.append(np.delete(places, without), without) for without in lessened)]
    counts = np.array([N, *(N - 1 for _ in lessened)])
    similarities = encoder.compare(features[np.stack(rows)], counts, sentences).T
    whole = similarities[:, :1]
    return float(whole[0, 0]), whole - similarities[:, 1:] if N > 1 else whole


def naming_words(sentence: str, vocabulary: Vocabulary, stood_in: Container[str] = ()) -> list[str]:
    """The words of a sentence that name something and that a model knows, each once, in their order.

    stood_in  words that it does not know but that known ones stand in for; they count as known

    >>> naming_words("A dog, and a dgo!", Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "!"]))
    ['dog']
    """
    words = dict.fromkeys(tokenize(sentence))
    return [word for word in words if names(word) and (vocabulary.knows(word) or word in stood_in)]


def region_shares(weights: FloatArray, view: ExplainView) -> FloatArray:
    """(N,) weights -> (N,) float32 shares of the heat that sum to 1, or are all 0 where no region adds anything.

    relevance        max(weight - median weight, 0), scaled: every region fits a little, so the median counts as nothing
    sentence, words  max(weight, 0), scaled: a region with a negative weight has no share
    image            lambda (k - rank)^2, scaled; k regions, rank from 0 for the largest weight, as in the paper
    """
    if view == "image":
        ranks = np.empty(len(weights))
        ranks[np.argsort(-weights, kind="stable")] = np.arange(len(weights))
        scores = LAMBDA * (len(weights) - ranks) ** 2
    else:
        # Of a single region the median is its own weight.
        least = np.median(weights) if view == "relevance" and len(weights) > 1 else 0
        scores = np.maximum(weights - least, 0).astype(np.float64)
    total = scores.sum()
    return (scores / total if total > 0 else scores).astype(np.float32)


def _stands_out(weights: FloatArray, view: ExplainView) -> bool:
    """Whether the region of the largest weight fits clearly, as `LEAST_LEAD` says; in other views, whether any adds."""
    best = weights.max(initial=0)
    return bool(best > 0 and (view != "relevance" or best >= LEAST_LEAD * (best - np.median(weights))))


def _heat_of(boxes: FloatArray | None, weights: FloatArray, view: ExplainView) -> FloatArray | None:
    return None if boxes is None else blurred(heat_map(boxes, region_shares(weights, view)))


def blurred(heat: FloatArray, deviation: float = BLUR) -> FloatArray:
    """(S, S) heat -> (S, S) float32 from 0 to 1, blurred by a Gaussian of this many pixels; no heat lies outside."""
    place = np.arange(len(heat))
    spread = np.exp(-((place[:, None] - place) ** 2) / (2 * deviation**2))
    smooth = spread @ heat.astype(np.float64) @ spread
    hottest = smooth.max(initial=0)
    return (smooth / hottest if hottest > 0 else smooth).astype(np.float32)


def heat_map(boxes: FloatArray, shares: FloatArray, side: int = HEAT_SIDE) -> FloatArray:
    """(N, 4) boxes, (N,) shares -> (side, side) float32 from 0 to 1 over the whole photo.

    Each pixel sums the shares of the boxes that its centre lies in, divided by the hottest pixel's sum.
    """
    heat = np.zeros((side, side), dtype=np.float64)
    # Pixel p's centre, (p + 0.5) / side, is not left of an edge from here on.
    edges = np.clip(np.ceil(boxes.astype(np.float64) * side - 0.5), 0, side).astype(np.int64)
    for (x0, y0, x1, y1), share in zip(edges.tolist(), shares.tolist(), strict=True):
        heat[y0:y1, x0:x1] += share
    hottest = heat.max()
    return (heat / hottest if hottest > 0 else heat).astype(np.float32)
