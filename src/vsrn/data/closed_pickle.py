"""Vocabularies that the 2019 code pickled, read without running anything.

A pickle can run any code. Here it may name only its own class, which becomes an empty one; any other name is refused
before it is looked up.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

from vsrn.errors import VocabularyError

# The class's own name, and the base that Python 2's older pickle protocols name beside it.
VOCABULARY_NAMES = {("__main__", "Vocabulary"), ("vocab", "Vocabulary"), ("__builtin__", "object")}


def check_memo(file: IO[bytes], limit: int) -> None:
    """Raise `UnpicklingError` where a pickle numbers its objects beyond the bytes it has.

    Python's unpickler fills a table as long as the largest number: nine bytes could take all memory.
    """
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > limit:
            raise pickle.UnpicklingError("an object's number is larger than the file.")


def read_pickled_words(path: Path) -> dict[Any, Any]:
    """Id -> word of a pickled vocabulary. Raises `VocabularyError` where it is broken or names any other class."""
    try:
        pickled = path.read_bytes()
        check_memo(io.BytesIO(pickled), limit=len(pickled))
        content = _VocabularyUnpickler(io.BytesIO(pickled), encoding="utf-8").load()
        words = (content if isinstance(content, dict) else vars(content))["idx2word"]
        if not isinstance(words, dict):
            raise VocabularyError("this is no vocabulary of 2019: its idx2word is no table.")
        return words
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        raise VocabularyError(f"{path} is not a vocabulary of 2019; it may be truncated or foreign.") from error


class _VocabularyUnpickler(pickle.Unpickler):
    """Admits empty classes only, new ones each time, because a pickle may set attributes on them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in VOCABULARY_NAMES:
            return type(name, (), {})
        if (module, name) == ("copy_reg", "_reconstructor"):
            return lambda kind, *_: kind()
        raise VocabularyError(
            f"this pickle asks for {module}.{name}, which no vocabulary needs; it was refused and nothing of it ran."
        )
