"""Word vectors from text files: what is read, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsrn.data.word_vectors import read_word_vectors
from vsrn.errors import DataError

FLOATS = st.floats(-1e6, 1e6, width=32)
WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=5)


@given(vectors=st.dictionaries(WORDS, st.lists(FLOATS, min_size=2, max_size=2), min_size=1), header=st.booleans())
def test_what_was_written_is_read(
    vectors: dict[str, list[float]], header: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("vectors") / "words.txt"
    lines = [f"{word} {' '.join(map(repr, numbers))}" for word, numbers in vectors.items()]
    path.write_text("\n".join([f"{len(vectors)} 2"] * header + lines) + "\n", encoding="utf-8", newline="\n")
    wanted = [word for place, word in enumerate(vectors) if place % 2 == 0]
    found = read_word_vectors(path, [*wanted, "unheard of"])
    assert found.keys() == set(wanted)
    for word, vector in found.items():
        np.testing.assert_array_equal(vector, np.array(vectors[word], dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"cat 1 2", "none of the vocabulary's words"),
        (b"dog 1 x", "line 1: a word must be followed by numbers alone"),
        (b"cat 1 2\ndog", "line 2: a word must be followed by finite numbers"),
        (b"dog 1 nan", "line 1: a word must be followed by finite numbers"),
        (b"dog 1 2\nbird 1", "different sizes"),
        (b"dog 1 2\nbird 1 2 3", "line 2: .*different sizes"),
        (b"2 3\ndog 1 2 3\nbird 1 2", "line 3: .*different sizes"),
        (b"2 2\ndog " + bytes(8) + b"\nbird " + bytes(7), "word 2 of 2: the file is cut short"),
        (b"9 2\ndog " + bytes(8) + b"\nbird " + bytes(8), "word 3 of 9: the file is cut short"),
        (b"1 2\ndog " + b"\xff" * 8, "word 1: a word must be followed by finite numbers"),
        (gzip.compress(b"dog 1 2\n" * 999, mtime=0)[:-20], "cannot be read"),
    ],
)
def test_what_is_no_vector_is_refused_by_its_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_word_vectors(path, ["dog", "bird"])


DOG, BIRD, DOT = (np.array(numbers, np.float32) for numbers in ([0.5, -1, 3], [1e-3, 2, 1e9], [7, 8, 9]))


def as_text(*, head: bool, end: str = "\n", start: str = "", between: str = " ") -> bytes:
    # Words as GloVe's 840B has them: blanks in them, one that is itself a number, and one that is no UTF-8.
    words = {"dog": DOG, ". . .": -DOT, ".": DOT, "at name@domain.com": BIRD, "at": DOG, "1": BIRD, "1 1/2": DOG}
    lines = [
        between.join([word, *(f"{number!r}" for number in vector.tolist())]) + end for word, vector in words.items()
    ]
    more = f"bird {' '.join(str(number) for number in BIRD.tolist())} {end}"
    return (
        (start + (f"{len(lines) + 2} 3{end}" if head else "") + "".join(lines)).encode()
        + b"caf\xe9 1 2 3\n"
        + more.encode()
    )


def as_binary(end: bytes) -> bytes:
    words = {b"</s>": DOT, b"dog": DOG, b"caf\xe9": BIRD, b".": DOT, b"at": DOG, b"1": BIRD, b"bird": BIRD}
    return b"7 3\n" + b"".join(word + b" " + vector.astype("<f4").tobytes() + end for word, vector in words.items())


FILES = {
    "glove": as_text(head=False),
    "word2vec": as_text(head=True),
    "windows": as_text(head=False, end="\r\n", start="\ufeff"),
    "windows with a head line": as_text(head=True, end="\r\n", start="\ufeff"),
    "blanks at the ends": as_text(head=True, end=" \n"),
    "tabs": as_text(head=False, between="\t"),
    "binary": as_binary(b"\n"),
    "binary of gensim": as_binary(b""),
    "binary after a byte-order mark": b"\xef\xbb\xbf" + as_binary(b""),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("kind", FILES)
def test_every_form_gives_the_same_vectors(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "vectors.bin"
    path.write_bytes(gzip.compress(FILES[kind]) if packed else FILES[kind])
    found = read_word_vectors(path, ["<pad>", "dog", ".", "at", "1", "bird", "unheard of"])
    expected = {"dog": DOG, ".": DOT, "at": DOG, "1": BIRD, "bird": BIRD}
    assert found.keys() == expected.keys()
    for word, vector in expected.items():
        np.testing.assert_array_equal(found[word], vector)
        # torch warns of arrays that nobody may write to.
        assert found[word].flags.writeable


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of word vectors .*nothing\.txt"):
        read_word_vectors(tmp_path / "nothing.txt", ["dog"])
