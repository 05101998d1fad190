"""Photos that come and go: received from the body of a request, and sent from the disk.

Only what was indexed is sent, known by its hash: files change, and links can be turned elsewhere. To be looked at
photos are drawn anew, without what a camera wrote beside the picture; to be kept they are sent as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import math
import os
import re
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO
from urllib.parse import quote

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vsrn.errors import PhotoError
from vsrn.search.records import PhotoRecord
from vsrn.server.security import Limits


@dataclass(eq=False)
class Arrival:
    """A photo of which a part has come."""

    clock: asyncio.Timeout  # ends it
    ends: float  # at the latest, by the event loop's time in seconds
    content: bytearray = field(default_factory=bytearray)
    gave_way: bool = False  # whether it was ended for others that send faster


class Uploads:
    """Receives photos. Clients that send slowly, or stop, hold up nobody: they give way to those that send."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._searching = limits, 0
        # The one whose last piece came longest ago is first.
        self._arriving: dict[Arrival, None] = {}

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """The body, held for the block. Raises `HTTPException` 400, 408, 413 or 429."""
        content = await self._read_in_time(request)
        if self._searching >= self.limits.uploads_at_once:
            raise HTTPException(429, "too many photos are being searched by; send this one again in a moment.")
        self._searching += 1
        try:
            yield content
        finally:
            self._searching -= 1

    async def _read_in_time(self, request: Request) -> bytes:
        ends = asyncio.get_running_loop().time() + self.limits.upload_seconds
        arrival = Arrival(asyncio.timeout_at(ends), ends)
        try:
            async with arrival.clock:
                return await self._read(request, arrival)
        except TimeoutError as error:
            if arrival.gave_way:
                raise HTTPException(429, "too many photos are arriving; send this one again in a moment.") from error
            raise HTTPException(408, "the photo took too long to arrive; send it again.") from error
        except ClientDisconnect as error:
            # Nobody reads this answer, but without it the log would get a stack trace for each who hangs up.
            raise HTTPException(400, "the photo did not arrive whole; send it again.") from error
        finally:
            self._arriving.pop(arrival, None)

    async def _read(self, request: Request, arrival: Arrival) -> bytes:
        most = self.limits.upload_bytes
        too_large = HTTPException(413, f"the photo is larger than {most:,} bytes; send a smaller one.")
        claimed = request.headers.get("content-length", "0")
        if claimed.isdecimal() and int(claimed[:12]) > most:
            raise too_large
        self._note(arrival)
        async for part in request.stream():
            arrival.content += part
            if len(arrival.content) > most:
                raise too_large
            self._note(arrival)
        if not arrival.content:
            raise HTTPException(400, "the body is empty; send the bytes of a photo.")
        return bytes(arrival.content)

    def _note(self, arrival: Arrival) -> None:
        """Give the next piece its time, and end what is too much. Raises `TimeoutError` where that is this one."""
        if arrival.gave_way:
            raise TimeoutError
        self._arriving.pop(arrival, None)
        self._arriving[arrival] = None
        now = asyncio.get_running_loop().time()
        arrival.clock.reschedule(min(arrival.ends, now + self.limits.pause_seconds))
        while self._too_much():
            slowest = next(iter(self._arriving))
            del self._arriving[slowest]
            slowest.gave_way = True
            if slowest is arrival:
                raise TimeoutError
            if not slowest.clock.expired():
                slowest.clock.reschedule(now)

    def _too_much(self) -> bool:
        held = sum(len(arrival.content) for arrival in self._arriving)
        return len(self._arriving) > self.limits.arriving_at_once or held > self.limits.arriving_bytes


JPEG_QUALITY = 88
# Of a file that is sent as it is, a piece at a time.
PIECE_BYTES = 1 << 18
MOST_NAME_LETTERS = 120
# Endings by which programs know pictures, and videos. A file is known by its content to us, but by its ending to those
# who open it: a photo that is called `x.hta` must not start anything.
ENDING = re.compile(
    r"\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif|hei[cf]|hif|3fr|arw|cr[23w]|dcr|dng|erf|fff|gpr|iiq|kdc|mef|mos|mrw"
    r"|nef|nrw|orf|pef|raf|rw2|rwl|sr[2fw]|x3f|mp4|m4v|mov|avi|mkv|webm|3gp|mpe?g|m2?ts|wmv)",
    re.IGNORECASE,
)


def draw_photo(path: Path, record: PhotoRecord, side: int) -> bytes:
    """A JPEG of an indexed photo, upright, its longer side at most `side` pixels.

    Raises `PhotoError` where the file is not what was indexed, or cannot be read any more.
    """
    # Pillow takes a tenth of a second to load, and searches do without it.
    from vsrn.data.photos import decode_photo, read_file  # noqa: PLC0415

    content = None
    try:
        # Of a file that has grown nothing needs to be read.
        if path.stat().st_size == record.size:
            content = read_file(path)
    except (OSError, PhotoError) as error:
        raise PhotoError("this photo is gone since it was indexed; run `vsrn index` again.") from error
    if content is None or hashlib.sha256(content.content).hexdigest() != record.sha256:
        raise PhotoError("this photo has changed since it was indexed; run `vsrn index` again.")
    # Twice of this is what its shorter side becomes.
    target = math.ceil(side * min(record.width, record.height) / max(record.width, record.height) / 2)
    photo = decode_photo(content, target_size=target, always_twice=True)
    photo.thumbnail((side, side))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def open_unchanged(path: Path, record: PhotoRecord) -> BinaryIO:
    """A file, open at its first byte, if it is what was indexed; it takes little memory, however large the file is.

    Raises `PhotoError`, without its path, if it is not.
    """
    try:
        # A pipe in the file's place would be waited for.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except OSError as error:
        raise PhotoError("this photo is gone since it was indexed; run `vsrn index` again.") from error
    with contextlib.suppress(OSError):
        status = os.fstat(file.fileno())
        is_same = stat.S_ISREG(status.st_mode) and status.st_size == record.size
        if is_same and record.sha256 in _digests(file, record.size):
            file.seek(0)
            return file
    file.close()
    raise PhotoError("this photo has changed since it was indexed; run `vsrn index` again.")


def _digests(file: io.BufferedReader, size: int) -> Iterator[str]:
    """What a record may have as SHA-256 of this file: of a long video that of both its ends, else that of all of it."""
    from vsrn.data.photos import MAX_BYTES  # noqa: PLC0415 - as above
    from vsrn.data.stills import END_BYTES  # noqa: PLC0415 - as above

    if size > 2 * END_BYTES:
        ends = hashlib.sha256(file.read(END_BYTES))
        file.seek(-END_BYTES, os.SEEK_END)
        ends.update(file.read(END_BYTES))
        yield ends.hexdigest()
        file.seek(0)
    if size <= MAX_BYTES:
        yield hashlib.file_digest(file, "sha256").hexdigest()


class FileAnswer(StreamingResponse):
    """An open file as an answer, in pieces; it is closed when the answer has gone out, or its client has."""

    def __init__(self, file: BinaryIO, size: int, headers: dict[str, str]) -> None:
        """`size` is how many bytes are sent, however long the file has become."""
        super().__init__(_pieces_of(file, size), headers=headers, media_type="application/octet-stream")
        self.file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self.file:
            await super().__call__(scope, receive, send)


def _pieces_of(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(PIECE_BYTES, size))):
        size -= len(piece)
        yield piece


def attachment(photo_id: str) -> str:
    """What tells a browser to keep a photo, and under which name: the last part of its id, without what harms.

    >>> attachment("holiday/beach.jpg")
    "attachment; filename*=UTF-8''beach.jpg"
    >>> attachment('a/.."b\\u202egpj.exe')
    "attachment; filename*=UTF-8''_._b_gpj.exe.jpg"
    """
    name = photo_id.rpartition("/")[2]
    # Control letters, and those that turn the direction of writing, hide an ending.
    name = "".join(letter if letter.isprintable() and letter not in '<>:"/\\|?*' else "_" for letter in name)
    stem, ending = PurePath(name).stem, PurePath(name).suffix
    if not ENDING.fullmatch(ending):
        stem, ending = name, ".jpg"
    stem = re.sub(r"^[. ]", "_", stem[:MOST_NAME_LETTERS])
    return f"attachment; filename*=UTF-8''{quote(stem + ending, safe='')}"
