"""The closed unpickler: `.pth.tar` checkpoints of 2018 to 2021, read without running anything.

A pickle can run any code when it is opened carelessly. Here it may name only what is on a closed list; any other name
is refused before it is looked up. Vocabularies: `vsrn.data.closed_pickle`.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from vsrn.data.closed_pickle import VOCABULARY_NAMES, check_memo
from vsrn.errors import CheckpointError
from vsrn.tensors import NUMPY_NUMBERS, Inert

# What a checkpoint asks for: tables of tensors, options, and a float as numpy pickles it (`best_rsum`).
_CHECKPOINT_NAMES = {
    *("argparse.Namespace", "collections.OrderedDict", "torch._utils._rebuild_parameter"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
    *(name for _, name in NUMPY_NUMBERS),
}
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
        if refused in {".".join(name) for name in VOCABULARY_NAMES}:
            raise CheckpointError(
                f"{path} is a vocabulary, not a checkpoint: name it with --vocab, or turn it into JSON by"
                f" `vsrn vocab {path} -o FILE.json`."
            ) from error
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
            check_memo(file, limit=path.stat().st_size)
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


class _NameError(Exception):
    """A pickle asks for a name that is not admitted; the message is the name."""


class _NameFinder(pickle.Unpickler):
    """Reads a pickle to find its names: an admitted one becomes `Inert`, any other raises `_NameError`."""

    def find_class(self, module: str, name: str) -> Any:
        is_storage = module in ("torch", "torch.cuda") and name.endswith("Storage")
        if is_storage or f"{module}.{name}" in _CHECKPOINT_NAMES:
            return Inert
        raise _NameError(f"{module}.{name}")

    def persistent_load(self, _: object) -> Any:
        return Inert()
