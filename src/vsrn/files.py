"""Files that a killed process leaves old or new, never half; files opened without following links; names of files."""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import io
import os
import shutil
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from vsrn.errors import DataError, VsrnError

# Windows has neither; there, links need an administrator and pipes have no names in folders.
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
# Elsewhere line ends are left alone anyway.
_BINARY = getattr(os, "O_BINARY", 0)
# A file of Windows has one place for all threads.
_ONE_AT_A_TIME = threading.Lock()
_Page = TypeVar("_Page")


class Closing:
    """What has a `close`, which the end of a `with` block calls."""

    def close(self) -> None:
        """Close files and give back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write as a file or folder; it takes `path`'s place when the block ends well, or vanishes."""
    clear_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if not temporary.is_dir():
            with temporary.open("rb+") as written:  # Windows syncs only what may be written
                os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        delete(temporary)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file at once."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes `folder`'s place when the block ends well and vanishes otherwise."""
    with replacing(folder.absolute()) as temporary:
        temporary.mkdir(parents=True)
        yield temporary


def normal_name(name: str) -> str:
    """A name in the form in which names are compared, Unicode's NFC: macOS writes "é" as two characters (NFD)."""
    return unicodedata.normalize("NFC", name)


def printable(name: Path | str) -> str:
    r"""A name or a message on one line, without what a terminal would act on.

    A byte of a file name that is no UTF-8 is written as in the ids of photos, `\xe9`.

    >>> printable("beach\x1b[2J.jpg")
    'beach\\x1b[2J.jpg'
    """
    text = str(name)
    if text.isprintable():  # nearly always, and four times a photo
        return text
    return "".join(letter if letter.isprintable() else _escaped(ord(letter)) for letter in text)


def _escaped(code: int) -> str:
    # Python holds a byte of a file name that is no UTF-8 as a surrogate, U+DC80 to U+DCFF.
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


def clear_leftovers(path: Path) -> None:
    """Delete what killed processes left while they wrote `path`: `.NAME.PID.tmp` of processes that are gone."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if pid.isdecimal() and not _is_running(int(pid)):
            delete(leftover)


def delete(path: Path) -> None:
    """Delete a file or a link, or a folder with everything in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file of a folder that somebody else may have made; gives its descriptor.

    A link in the last part of the path is not followed, and a pipe is not waited for. Raises `OSError`, with
    `errno.ELOOP` for a link and `errno.EINVAL` for what else is no regular file.
    """
    descriptor = os.open(path, flags | _NO_LINKS | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def take_lock(path: Path) -> Callable[[], None]:
    """Hold a lock file until what this gives is called, or until the process ends, however it ends.

    Raises `BlockingIOError` where another holds it, and what `open_plain` raises, as for a link.
    """
    # Only who writes waits for this package.
    import filelock  # noqa: PLC0415

    os.close(open_plain(path, os.O_RDWR | os.O_CREAT))
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(errno.EAGAIN, "another process holds it", str(path)) from error
    return lock.release


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """Up to `size` bytes of an open file from `start` on; threads may share the file."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _ONE_AT_A_TIME:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)


def plain_utf8(content: bytes, where: Path | str) -> bytes:
    """The bytes of a text file, which messages call `where`, without the byte-order mark that some programs write.

    Raises `DataError` where they are UTF-16 or UTF-32: a mark says so, or every second byte of the beginning is zero.
    """
    beginning = content[:64]
    is_wide = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if is_wide or (len(beginning) > 3 and (not any(beginning[::2]) or not any(beginning[1::2]))):
        raise DataError(f"{where} is UTF-16 text; save the file as UTF-8.")
    return content.removeprefix(codecs.BOM_UTF8)


def read_text(path: Path) -> str:
    """A UTF-8 text file as it is, without a byte-order mark.

    Raises `DataError` where it is other text, naming the first such line, and `OSError` where it cannot be read.
    """
    content = plain_utf8(path.read_bytes(), path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped, without blank ones at its end. Raises what `read_text` raises."""
    text = read_text(path)
    # Macs before 2001, and some spreadsheets since, end lines with a carriage return alone.
    lines = [line.strip() for line in text.split("\n" if "\n" in text else "\r")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_json(path: Path, kind: type[_Page], remedy: str, error: type[VsrnError] = DataError) -> _Page:
    """Read a JSON file as a type of msgspec's. Raises `error`, which ends with `remedy`, where that cannot be."""
    try:
        return msgspec.json.decode(plain_utf8(path.read_bytes(), path), type=kind)
    except DataError as reason:
        raise error(str(reason)) from reason
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        said = reason.strerror if isinstance(reason, OSError) else reason
        raise error(f"{path} cannot be read ({said}); {remedy}") from reason


def as_json(content: object) -> bytes:
    """A JSON file's content, on lines that a person can read."""
    return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def read_plain(path: Path) -> bytes:
    """All bytes of such a file. Raises what `open_plain` raises."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()


def open_or_make(path: Path) -> io.FileIO:
    """Open a file for reading and writing, made where there is none. Raises `DataError` where the name is a link."""
    try:
        return io.FileIO(open_plain(path, os.O_RDWR | os.O_CREAT), "r+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(f"{path} is a link, and may lead out of the folder; delete it.") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk. Raises `DataError` where the name is a link."""
    with open_or_make(path) as file:
        file.truncate(0)
        write_all(file.fileno(), content)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; Windows cannot open a folder, and writes names by itself."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_all(handle: int, content: bytes | memoryview) -> None:
    """Write to a file descriptor until nothing is left: one `write` may stop short, as on a full disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # os.kill would send Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another account's
    return True
