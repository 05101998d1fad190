"""Words that a model never read: which words that it knows can stand in for them, or are spelt alike.

The nearest by `words.npz` stand in: a vector of each of 49,000 English words, which experiments/stand_ins.py made.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vsrn.data.vocabulary import Vocabulary

WORDS_FILE = Path(__file__).with_name("words.npz")
# Measured in docs/flickr8k-small.md: three find more than one, and weighing them by their cosines changes nothing.
STAND_INS = 3
# Cosine from which a word may stand in. Below, the nearest known word is mostly another thing.
LEAST_COSINE = 0.5
# Words from this many letters on may have two mistakes.
LONG = 6
# Longer words are not looked up: the time grows with their length.
LONGEST = 24
# Words that name nothing which could be in a photo.
FUNCTION_WORDS = re.compile(
    "an?|and|are|as|at|be|being|by|for|from|has|have|he|her|him|his|in|into|is|its?|n't|of|off|on|onto|or|she|some|that"
    "|the|their|them|there|they|this|through|to|up|was|were|while|who|with"
)


@cache
def read_table() -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    """English words by their rows, and the vector of length 1 of each, (W, 64): the table of the package, read once."""
    with np.load(WORDS_FILE) as file:
        words, vectors = file["words"].tobytes().decode().split("\n"), file["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {word: row for row, word in enumerate(words)}, vectors


class ReadWords(NamedTuple):
    """What a model makes of the words of a sentence.

    unknown    words that tell it nothing: it never read them, and nothing stands in for them
    stand_ins  word that it never read -> the known words that stand in for it, nearest first
    spellings  unknown word -> the word that it may be a misspelling of, where one is near
    asks       False where a sentence has words and none of them names anything that the model knows
    num_naming  how many words name something that the model knows, or that known words stand in for
    """

    unknown: list[str]
    stand_ins: dict[str, tuple[str, ...]]
    spellings: dict[str, str]
    asks: bool
    num_naming: int

    def sentences(self) -> list[str]:
        """What a person should be told, a sentence each; none where every word is known."""
        said = [
            f"The model never read '{word}'; it looks for {', '.join(some)} instead."
            for word, some in self.stand_ins.items()
        ]
        for word in filter(names, self.unknown):
            near = f" Did you mean '{self.spellings[word]}'?" if word in self.spellings else ""
            said.append(f"The model never read '{word}', which counts for nothing.{near}")
        if not self.asks:
            said.append("No word of the sentence names anything that the model knows; say it in other words.")
        return said

    def to_json(self) -> dict[str, Any]:
        """What is told of words that the model never read, as plain JSON types."""
        stand_ins = {word: list(found) for word, found in self.stand_ins.items()}
        return {"unknown_words": self.unknown, "stand_ins": stand_ins, "spellings": self.spellings}


class StandIns:
    """Finds stand-ins and spellings among the words of one vocabulary; answers are kept."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._found: dict[str, tuple[str, ...]] = {}

    def of(self, word: str) -> tuple[str, ...]:
        """The known words that stand in for a word, nearest first; none for a word that is known or names nothing."""
        rows, vectors = read_table()
        if word in self.vocabulary.ids or word not in rows or not names(word):
            return ()
        if word not in self._found:
            known, theirs = self._known
            cosines = theirs @ vectors[rows[word]]
            best = np.argsort(-cosines, kind="stable")[:STAND_INS]
            self._found[word] = tuple(known[place] for place in best if cosines[place] >= LEAST_COSINE)
        return self._found[word]

    @cached_property
    def _known(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        """The words that both the table and the vocabulary have, and the vector of each."""
        rows, vectors = read_table()
        known = [word for word in self.vocabulary.words if word in rows and names(word)]
        return known, vectors[[rows[word] for word in known]]

    def spelling(self, word: str) -> str | None:
        """The word that an unknown one may be a misspelling of; None for a word of the table, or where none is near.

        Fewer mistakes go first, then words of the vocabulary, then those that come earlier in it.

        >>> StandIns(Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "dog", "snow"])).spelling("dgo")
        'dog'
        """
        (table, _), ids = read_table(), self.vocabulary.ids
        no_word = not (word.isalpha() and word.isascii() and 3 <= len(word) <= LONGEST)
        if no_word or word in ids or word in table:
            return None
        once = one_mistake(word)
        near = [candidate for candidate in once & ids.keys() if names(candidate)]
        others = [] if near else [candidate for candidate in once & table.keys() if self.of(candidate)]
        if others:
            return min(others)
        if not near and len(word) >= LONG:
            # Two words are two mistakes apart where one mistake makes the same of both. People rarely miss both ends.
            alike = (known for known in ids if known[:1] == word[0] or known[-1:] == word[-1])
            alike = (known for known in alike if abs(len(known) - len(word)) <= 2 and names(known))
            near = [known for known in alike if not once.isdisjoint(one_mistake(known))]
        return min(near, key=lambda candidate: ids[candidate], default=None)


def names(word: str) -> bool:
    """Whether a word names something: it is neither a mark of punctuation nor a function word."""
    return word[:1].isalnum() and not FUNCTION_WORDS.fullmatch(word)


def one_mistake(word: str) -> set[str]:
    """All that a word becomes by one letter left out, swapped with the next, changed or put in."""
    cuts = [(word[:place], word[place:]) for place in range(len(word) + 1)]
    letters = string.ascii_lowercase
    found = {left + right[1:] for left, right in cuts if right}
    found |= {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    found |= {left + letter + right[1:] for left, right in cuts if right for letter in letters}
    return found | {left + letter + right for left, right in cuts for letter in letters}


def in_their_place(words: Iterable[str], instead: Mapping[str, tuple[str, ...]], choice: int) -> list[str]:
    """A sentence's words with the given choice of each one's stand-ins, the last where there are fewer."""
    return [some[min(choice, len(some) - 1)] if (some := instead.get(word)) else word for word in words]
