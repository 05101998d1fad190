"""A `.npy` file that rows are appended to, and small writes that are on disk when they return."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsrn.errors import DataError


class GrowingArray:
    """An array on disk that grows along its first axis.

    numpy leaves room in the header for any number of rows, so the header never changes its length: it says
    0 rows until `seal` writes the real number over it.
    """

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...], rows: int) -> None:
        """Open `path` with its first `rows` rows kept and everything behind them cut off.

        Raises `DataError` where the file is shorter than that.
        """
        self.path, self.dtype, self.row_shape, self.rows = path, np.dtype(dtype), row_shape, rows
        self._file = open_unlinked(path)
        try:
            self._write_header(0)
            end = self._file.tell() + rows * int(np.prod(row_shape)) * self.dtype.itemsize
            if self._file.seek(0, os.SEEK_END) < end:
                raise DataError(
                    f"{path} is shorter than its journal says; delete this split's .partial files to begin again."
                )
            self._file.truncate(end)
            self._file.seek(end)
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: npt.NDArray[np.number]) -> None:
        """Write (B, ...) rows behind the others and wait until they are on disk."""
        if rows.shape[1:] != self.row_shape:
            raise DataError(f"{self.path} holds rows of shape {self.row_shape}, not {rows.shape[1:]}.")
        write_all(self._file.fileno(), np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        os.fsync(self._file.fileno())
        self.rows += len(rows)

    def seal(self) -> None:
        """Write the number of rows into the header, where numpy looks for it."""
        self._write_header(self.rows)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write_header(self, rows: int) -> None:
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": self.dtype.str, "fortran_order": False, "shape": (rows, *self.row_shape)},
        )


def open_unlinked(path: Path) -> io.FileIO:
    """Open a file for reading and writing, made where there is none.

    Raises `DataError` where the name is a link: in a folder that somebody else made, it may lead to any file.
    """
    try:
        return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataError(f"{path} is a link, and may lead out of the folder; delete it.") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk. Raises `DataError` where the name is a link."""
    with open_unlinked(path) as file:
        file.truncate(0)
        write_all(file.fileno(), content)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, content: bytes) -> None:
    """Write to a file descriptor until nothing is left: one `write` may stop short, as on a full disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
