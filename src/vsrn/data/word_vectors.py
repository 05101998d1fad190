"""Word vectors learned elsewhere, in the text format of GloVe and word2vec: a word and its numbers on each line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsrn.errors import DataError

Vector = npt.NDArray[np.float32]


def read_word_vectors(path: Path | str, words: Collection[str]) -> dict[str, Vector]:
    """Word -> (D,) float32, of those words that the file has; all others in it are passed over unread.

    word2vec's first line, which counts words and numbers, may stand there or not. Raises `DataError` where the file
    is missing, is not UTF-8, has none of the words, or has a vector that is not finite numbers, as many for each word.
    """
    path, wanted = Path(path), set(words)
    found: dict[str, Vector] = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                word, _, numbers = line.rstrip().partition(" ")
                if word in wanted and not (number == 1 and numbers.isdecimal()):
                    found[word] = _vector(numbers, f"{path}, line {number}")
    except FileNotFoundError as error:
        raise DataError(f"there is no file of word vectors {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if not found:
        raise DataError(f"{path} has none of the vocabulary's words; each line must be a word and its numbers.")
    if len({len(vector) for vector in found.values()}) > 1:
        raise DataError(f"{path} has vectors of different sizes; it may be cut short.")
    return found


def _vector(numbers: str, where: str) -> Vector:
    try:
        vector = np.array(numbers.split(), dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{where}: a word must be followed by numbers alone.") from error
    if not len(vector) or not np.isfinite(vector).all():
        raise DataError(f"{where}: a word must be followed by finite numbers.")
    return vector
