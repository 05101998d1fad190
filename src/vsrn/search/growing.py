"""Files that only grow, and their end as the records know it."""

from __future__ import annotations

import io
import os
from pathlib import Path

from vsrn.errors import SearchError
from vsrn.files import open_plain, write_at


class GrowingFile:
    """A file of which the first `end` bytes are acknowledged; bytes after those were never acknowledged."""

    def __init__(self, path: Path, end: int) -> None:
        """Open `path`, made where it is missing, and bring it to `end` bytes.

        A longer file is cut. A shorter one has lost what its records still name: it is filled up with zeros, and
        whoever checks it (`vsrn.search.damage`) finds them. Raises `SearchError` where `path` is a link or no file.
        """
        self.path, self.end = path, end
        try:
            self._file = io.FileIO(open_plain(path, os.O_RDWR | os.O_CREAT), "r+")
        except OSError as error:
            raise not_ours(path, error) from error
        if self.status().st_size != end:  # a cut to the same size would change the file's time
            self._file.truncate(end)

    def append(self, content: bytes) -> int:
        """Write `content` after everything else; gives the place of its first byte."""
        start, rest = self.end, memoryview(content)
        while rest:
            written = write_at(self._file.fileno(), rest, self.end + len(content) - len(rest))
            rest = rest[written:]
        self.end += len(content)
        return start

    def rewind(self, end: int) -> None:
        """Forget what stands after `end`: the next piece is written over it."""
        self.end = end

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def status(self) -> os.stat_result:
        """Size, time and inode of the file."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def not_ours(path: Path, error: OSError) -> SearchError:
    """The error for a file of an index that is a link, no regular file, or may not be opened."""
    return SearchError(
        f"{path} cannot be used ({error.strerror}); the files of an index are regular files that `vsrn index` made, so"
        " do not use an index whose files are links or devices, and check the permissions of your own."
    )
