"""Fit "how likely is it that this photo fits" to similarities, on photos that a model never saw; says how well it does.

    python experiments/fit_scores.py ../shared/flickr8k flickr8k-small -o src/vsrn/pretrained/flickr8k-small/fit.json

Of each held-out photo (src/vsrn/configs/flickr8k-held-out.txt), searches are made as people make them: one word of a
caption, two words, and two whole captions. A photo fits where its five captions together say every word of the search
that names something, endings aside; with its own captions alone as the truth, most photos that fit would count against
it. Photos that fit by another word ("puppy" for "dog"), or by what nobody wrote down, still count against it: the
chance is too low rather than too high. It holds where as many photos fit as here (3 of 100). Checked on `val`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import tyro

import vsrn
from vsrn.configs import CONFIGS
from vsrn.data.annotations import CaptionedPhoto, read_karpathy
from vsrn.data.stand_ins import names
from vsrn.data.tokenizer import tokenize
from vsrn.encoders.base import Encoder
from vsrn.encoders.fit import Fit
from vsrn.files import write_atomically

Floats = npt.NDArray[np.float64]
PHOTOS = 500
EDGES = (0, 0.05, 0.2, 0.4, 0.6, 1.01)
KINDS = ("one word", "two words", "a caption")
ENDINGS = ("ing", "ed", "es", "s")


class Searches(NamedTuple):
    """Searches of one set of photos.

    kinds         (Q,) place in KINDS
    num_words     (Q,) naming words of each
    similarities  (Q, I)
    fits          (Q, I) whether a photo fits
    """

    kinds: npt.NDArray[np.int64]
    num_words: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]
    fits: npt.NDArray[np.bool_]


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    model: Annotated[str, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    device: str = "cpu",
) -> None:
    """Write fit.json and print predicted and observed shares.

    Args:
        folder: Flickr8K: dataset_flickr8k.json and images/.
        model: The model.
        output: The file.
    """
    encoder = vsrn.load(model, device)
    held_out = set((CONFIGS / "flickr8k-held-out.txt").read_text().split())
    listed = read_karpathy(folder / "dataset_flickr8k.json")
    fitted = searches(encoder, folder, [photo for photo in listed["train"] if photo.id in held_out])
    base, similarity, words, both = logistic(features(fitted), fitted.fits.ravel()).tolist()
    fit = Fit(encoder.fingerprint, base, similarity, words, both)
    write_atomically(output, msgspec.json.format(msgspec.json.encode(fit), indent=1))
    print(fit, f"{fitted.fits.mean():.1%} of pairs fit")
    checked = searches(encoder, folder, listed["val"][:PHOTOS])
    chances = np.stack(
        [fit.chances(row, int(count)) for row, count in zip(checked.similarities, checked.num_words, strict=True)]
    )
    for name, rows in [("all", slice(None)), *((name, checked.kinds == kind) for kind, name in enumerate(KINDS))]:
        report(name, chances[rows], checked.fits[rows])


def searches(encoder: Encoder, folder: Path, photos: Sequence[CaptionedPhoto]) -> Searches:
    """Searches made of the captions of some photos, and which of these photos fit each."""
    images = encoder.encode_images([folder / "images" / photo.id for photo in photos])
    said = [{stem(word) for caption in photo.captions for word in naming(caption)} for photo in photos]
    draw = random.Random(0)
    made: list[tuple[int, str, int]] = []
    for place, photo in enumerate(photos):
        made += [(2, caption, place) for caption in draw.sample(list(photo.captions), 2)]
        words = [word for word in naming(draw.choice(photo.captions)) if word in encoder.vocabulary.ids]
        if words:
            made.append((0, draw.choice(words), place))
        if len(words) > 1:
            made.append((1, " ".join(sorted(draw.sample(words, 2), key=words.index)), place))
    texts = [text for _, text, _ in made]
    stems = [{stem(word) for word in naming(text)} for text in texts]
    fits = np.array([[asked <= known for known in said] for asked in stems])
    fits[np.arange(len(made)), [place for *_, place in made]] = True
    counts = [encoder.read_words(text).num_naming for text in texts]
    similarities = np.asarray(encoder.encode_captions(texts) @ images.T, np.float32)
    return Searches(np.array([kind for kind, *_ in made]), np.array(counts), similarities, fits)


def naming(caption: str) -> list[str]:
    """The words of a caption that name something, each once."""
    return list(dict.fromkeys(word for word in tokenize(caption) if names(word)))


def stem(word: str) -> str:
    """A word without its ending, so that "dogs" is "dog" and "running" is "run"."""
    ending = next((end for end in ENDINGS if word.endswith(end) and len(word) - len(end) > 2), "")
    word = word.removesuffix(ending)
    word = word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
    return word.rstrip("e")


def features(searched: Searches) -> Floats:
    """(Q I, 4): 1, the similarity s, log n, s log n."""
    s = searched.similarities.astype(np.float64)
    n = np.log(np.maximum(searched.num_words, 1))[:, None] + np.zeros_like(s)
    return np.stack([np.ones_like(s), s, n, s * n], axis=-1).reshape(-1, 4)


def logistic(inputs: Floats, fits: npt.NDArray[np.bool_]) -> Floats:
    """The weights of a logistic regression, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(25):
        chances = 1 / (1 + np.exp(-inputs @ weights))
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs
        weights += np.linalg.solve(curvature, inputs.T @ (fits - chances))
    return weights


def report(name: str, chances: npt.NDArray[np.float32], fits: npt.NDArray[np.bool_]) -> None:
    """Print the mean chance and the share that fit in five bins, and of the best photo of each search."""
    bins = [(chances >= low) & (chances < high) for low, high in itertools.pairwise(EDGES)]
    said = [f"{chances[some].mean():.2f}/{fits[some].mean():.2f} ({some.sum():,})" for some in bins if some.any()]
    best = chances.argmax(axis=1)[:, None]
    first = [np.take_along_axis(values, best, axis=1).mean() for values in (chances, fits)]
    print(f"{name:10} predicted/observed {'  '.join(said)}  of the best photo {first[0]:.2f}/{first[1]:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
