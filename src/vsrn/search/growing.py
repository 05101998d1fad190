"""Files that only grow, and their end as the records know it."""

from __future__ import annotations

import io
import os
from pathlib import Path

from vsrn.errors import SearchError


class GrowingFile:
    """A file of which the first `end` bytes are acknowledged; what stands behind them never was."""

    def __init__(self, path: Path, end: int) -> None:
        """Open `path` and cut off what nobody acknowledged. Raises `SearchError` where it is shorter than that."""
        self.path, self.end = path, end
        self._file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        if self._file.seek(0, os.SEEK_END) < end:
            self._file.close()
            raise SearchError(f"{path} is shorter than the records say; delete the index and make it again.")
        self._file.truncate(end)

    def append(self, content: bytes) -> int:
        """Write behind everything else; where it begins."""
        start, rest = self.end, memoryview(content)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self.end + len(content) - len(rest))
            rest = rest[written:]
        self.end += len(content)
        return start

    def rewind(self, end: int) -> None:
        """Forget what stands behind `end`: the next piece is written over it."""
        self.end = end

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
