"""The closed unpickler: `.pth.tar` checkpoints and `.pkl` vocabularies of 2018 to 2021, read without running anything.

Both are pickles, which can run any code when they are opened carelessly. Here a pickle may name only what is on a
closed list; any other name is refused before it is looked up.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from vsrn.data.vocabulary import Vocabulary, words_by_id
from vsrn.errors import CheckpointError, VocabularyError
from vsrn.tensors import NUMPY_NUMBERS, Inert

# What a checkpoint asks for: tables of tensors, options, and a float as numpy pickles it (`best_rsum`).
_CHECKPOINT_NAMES = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}
# The class's own name, and the base that Python 2's older pickle protocols name beside it.
_VOCABULARY_NAMES = {("__main__", "Vocabulary"), ("vocab", "Vocabulary"), ("__builtin__", "object")}


# torch itself admits what tensors are made of.
_ADMITTED: list[Any] = [argparse.Namespace, *NUMPY_NUMBERS]


def load_pickled_tensors(path: Path) -> Any:
    """Open a file that `torch.save` wrote, in its zip or its legacy format, onto the CPU.

    Raises `CheckpointError` where it is missing, broken, or names anything not on the closed list.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        _check_inflation(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ADMITTED):
            # torch warns of names that it then refuses, and of `encoding`, which it does honour.
            warnings.simplefilter("ignore")
            # Python 2 pickled the eight bytes of a float as a string; Latin-1 alone gives any bytes back.
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except (MemoryError, CheckpointError):
        raise
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        refused = _name_refused(path)
        if refused:
            raise CheckpointError(
                f"{path} asks for {refused}, which no checkpoint needs; it was refused and nothing of it ran."
            ) from error
        raise CheckpointError(f"{path} is not a readable PyTorch file; it may be truncated or foreign.") from error


def _check_inflation(path: Path) -> None:
    """Raise `CheckpointError` on a compressed archive: torch does not compress, so it was made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is a compressed archive, which PyTorch does not write; it was refused.")


def _name_refused(path: Path) -> str | None:
    """The first name that a file asks for and that is not admitted, or None where it asks for none."""
    try:
        for file in _pickles_in(path):
            start = file.tell()
            _check_memo(file, limit=path.stat().st_size)
            file.seek(start)
            _NameFinder(file, encoding="latin1").load()
    except _NameError as error:
        return str(error)
    # What is not a pickle asks for nothing.
    except Exception:
        return None
    return None


def _pickles_in(path: Path) -> Iterator[IO[bytes]]:
    """What torch unpickles: one member of a zip archive, or four pickles one after another."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as member:
                        yield member
    else:
        with path.open("rb") as file:
            for _ in range(4):
                yield file


def _check_memo(file: IO[bytes], limit: int) -> None:
    """Raise `UnpicklingError` where a pickle numbers its objects beyond the bytes it has.

    Python's unpickler fills a table as long as the largest number: nine bytes could take all memory.
    """
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > limit:
            raise pickle.UnpicklingError("an object's number is larger than the file.")


class _NameError(Exception):
    """A pickle asks for a name that is not admitted; the message is the name."""


class _NameFinder(pickle.Unpickler):
    """Reads a pickle to find its names: an admitted one becomes `Inert`, any other raises `_NameError`."""

    def find_class(self, module: str, name: str) -> Any:
        is_storage = module in ("torch", "torch.cuda") and name.endswith("Storage")
        if is_storage or f"{module}.{name}" in _CHECKPOINT_NAMES | {name for _, name in NUMPY_NUMBERS}:
            return Inert
        raise _NameError(f"{module}.{name}")

    def persistent_load(self, _: object) -> Any:
        return Inert()


def read_pickled_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary that the 2019 code pickled.

    Raises `VocabularyError` where it is missing, broken, or names anything but its own class.
    """
    if not path.is_file():
        raise VocabularyError(f"there is no vocabulary {path}.")
    try:
        pickled = path.read_bytes()
        _check_memo(io.BytesIO(pickled), limit=len(pickled))
        content = _VocabularyUnpickler(io.BytesIO(pickled), encoding="utf-8").load()
        return Vocabulary(words_by_id(vars(content)["idx2word"]))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        raise VocabularyError(f"{path} is not a vocabulary of 2019; it may be truncated or foreign.") from error


class _VocabularyUnpickler(pickle.Unpickler):
    """Admits empty classes only, new ones each time, because a pickle may set attributes on them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _VOCABULARY_NAMES:
            return type(name, (), {})
        if (module, name) == ("copy_reg", "_reconstructor"):
            return lambda kind, *_: kind()
        raise VocabularyError(
            f"this pickle asks for {module}.{name}, which no vocabulary needs; it was refused and nothing of it ran."
        )
