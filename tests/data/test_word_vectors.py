"""Word vectors from text files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsrn.data.vocabulary import read_word_vectors
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
        (b"dog 1 2\n\xff 1 2", "UTF-8"),
    ],
)
def test_what_is_no_vector_is_refused_by_its_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_word_vectors(path, ["dog", "bird"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file of word vectors .*nothing\.txt"):
        read_word_vectors(tmp_path / "nothing.txt", ["dog"])
