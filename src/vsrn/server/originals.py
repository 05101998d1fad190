"""Photos from the disk to the wire: only what was indexed, and only as a picture.

A record leads to a file, but files change and links can be turned elsewhere. So the bytes are sent on only where they
are those that were indexed, by their hash; and they are drawn anew, without what a camera wrote beside the picture.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

from vsrn.errors import PhotoError
from vsrn.search.records import PhotoRecord

JPEG_QUALITY = 88
# Windows has neither; its pipes have no names in folders.
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def draw_photo(path: Path, record: PhotoRecord, side: int) -> bytes:
    """A JPEG of an indexed photo, upright, its longer side at most `side` pixels.

    Raises `PhotoError` where the file is not what was indexed, or cannot be read any more.
    """
    # Pillow takes a tenth of a second to load, and searches do without it.
    from vsrn.data.photos import decode_photo  # noqa: PLC0415

    photo = decode_photo(read_unchanged(path, record), target_size=side)
    photo.thumbnail((side, side))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def read_unchanged(path: Path, record: PhotoRecord) -> bytes:
    """The bytes of a file, if they are those that were indexed. Raises `PhotoError`, without its path, if not."""
    try:
        # Opening a pipe would wait for its other end for ever.
        descriptor = os.open(path, os.O_RDONLY | NO_WAITING)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            same = stat.S_ISREG(status.st_mode) and status.st_size == record.size
            content = file.read(record.size) if same else b""
    except OSError as error:
        raise PhotoError("this photo is gone since it was indexed; run `vsrn index` again.") from error
    if not same or hashlib.sha256(content).hexdigest() != record.sha256:
        raise PhotoError("this photo has changed since it was indexed; run `vsrn index` again.")
    return content
