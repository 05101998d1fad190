"""Word vectors learned elsewhere: GloVe's text, word2vec's text and word2vec's binary form, plain or gzipped."""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from vsrn.errors import DataError

Vector = npt.NDArray[np.float32]
_HEAD_LINE = re.compile(rb"\s*([0-9]{1,12})[ \t]+([0-9]{1,5})\s*\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The lines whose number of fields is counted: words with blanks are rare among them.
_LINES_COUNTED = 1000
# Of a binary file, a word must end before so many bytes; Google's have phrases of some hundred.
_LONGEST_WORD = 4096
_START = 2**14


def read_word_vectors(path: Path | str, words: Collection[str]) -> dict[str, Vector]:
    """Word -> (D,) float32, of those words that the file has; all others in it are passed over.

    path  a text with a word and its numbers a line, as GloVe's and fastText's, with or without word2vec's first line,
          or word2vec's binary form; either may be gzipped. Words may hold blanks, as some of GloVe's 840B do.

    Raises `DataError` where the file is missing or cut short, has none of the words, or a vector that is not finite.
    """
    path, wanted = Path(path), {word.encode(): word for word in words}
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if packed else raw)
            first = file.read(_START)
            start = first.removeprefix(_BYTE_ORDER_MARK)
            head = _HEAD_LINE.match(start)
            if head is not None and _is_binary(start[head.end() :]):
                file.seek(len(first) - len(start) + head.end())
                pairs = _binary_vectors(file, path, int(head[1]), int(head[2]))
            else:
                file.seek(0)
                pairs = _text_vectors(file, path, wanted, None if head is None else int(head[2]))
            found = {wanted[word]: vector for word, vector in pairs if word in wanted}
    except FileNotFoundError as error:
        raise DataError(f"there is no file of word vectors {path}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); get the file again.") from error
    if not found:
        raise DataError(f"{path} has none of the vocabulary's words; each line must be a word and its numbers.")
    return found


def _is_binary(start: bytes) -> bool:
    """Whether what follows the head line is word2vec's binary form: no numbers stand there as text."""
    line = start.partition(b"\n")[0].split()[1:8]
    return 2 * sum(_is_number(one) for one in line) < len(line) or not line


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _binary_vectors(file: IO[bytes], path: Path, rows: int, size: int) -> Iterator[tuple[bytes, Vector]]:
    """Every word with its vector: the word, a blank, `size` numbers of four bytes, and in some files a line's end."""
    if not size:
        raise DataError(f"{path} has vectors of no numbers; get the file again.")
    for row in range(rows):
        word = bytearray()
        while (letter := file.read(1)) not in (b" ", b"") and len(word) < _LONGEST_WORD:
            word += letter
        content = file.read(4 * size)
        if letter != b" " or len(content) < 4 * size:
            raise DataError(f"{path}, word {row + 1:,} of {rows:,}: the file is cut short; get it again.")
        yield bytes(word).lstrip(b"\n"), _finite(np.frombuffer(content, "<f4").copy(), f"{path}, word {row + 1:,}")


def _text_vectors(
    file: IO[bytes], path: Path, wanted: Collection[bytes], size: int | None
) -> Iterator[tuple[bytes, Vector]]:
    """The wanted words of a text with their vectors, of `size` numbers where the first line says it."""
    first = list(itertools.islice(file, _LINES_COUNTED))
    if first:
        first[0] = first[0].removeprefix(_BYTE_ORDER_MARK)
    head = int(size is not None)
    fields = Counter(len(line.split()) - 1 for line in first[head:] if len(line.split()) > 1)
    # Lines of words with blanks have more fields than the others.
    size = size or (fields.most_common(1)[0][0] if fields else 1)
    # A wanted word may hold blanks itself, so lines are chosen by what stands before the first.
    starts = {word.split(maxsplit=1)[0] for word in wanted if word.split()}
    for number, line in enumerate(itertools.chain(first[head:], file), start=1 + head):
        if line.partition(b" ")[0].partition(b"\t")[0].strip() not in starts:
            continue
        where = f"{path}, line {number}"
        word, *numbers = line.rstrip().rsplit(maxsplit=size)
        if not numbers:
            raise DataError(f"{where}: a word must be followed by finite numbers.")
        first_part, *more = word.split()
        if len(numbers) < size or (more and all(map(_is_number, more)) and not _is_number(first_part)):
            raise DataError(f"{where}: {path.name} has vectors of different sizes; it may be cut short.")
        if word in wanted:
            try:
                vector = np.array([float(number) for number in numbers], np.float32)
            except ValueError as error:
                raise DataError(f"{where}: a word must be followed by numbers alone.") from error
            yield word, _finite(vector, where)


def _finite(vector: Vector, where: str) -> Vector:
    if not np.isfinite(vector).all():
        raise DataError(f"{where}: a word must be followed by finite numbers.")
    return vector
