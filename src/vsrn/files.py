"""Writing files so that a killed process leaves the old one or the new one, never half of one; and their names."""

from __future__ import annotations

import contextlib
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write; it takes `path`'s place when the block ends well and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file at once."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes `folder`'s place when the block ends well and vanishes otherwise."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def normal_name(name: str) -> str:
    """The form of a name in which names are compared: Unicode's NFC.

    macOS writes "é" as two characters (NFD), other systems as one; both are the same name.
    """
    return unicodedata.normalize("NFC", name)


def printable(name: Path | str) -> str:
    r"""A name or a message on one line, without what a terminal would act on.

    A byte of a file name that is no UTF-8 is written as in the ids of photos, `\xe9`.

    >>> printable("beach\x1b[2J.jpg")
    'beach\\x1b[2J.jpg'
    """
    return "".join(letter if letter.isprintable() else _escaped(ord(letter)) for letter in str(name))


def _escaped(code: int) -> str:
    # Python holds a byte of a file name that is no UTF-8 as a surrogate, U+DC80 to U+DCFF.
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"
