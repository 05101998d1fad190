"""A photo in the body of a request: into memory, and only so much of it, so fast and so many at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request

from vsrn.server.refusals import refuse
from vsrn.server.settings import Limits


class Uploads:
    """Receives photos."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._running = 0

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """The body, held for the block. Raises `HTTPException` 400, 408, 413 or 429."""
        if self._running >= self.limits.uploads_at_once:
            raise refuse(429, "too many photos are being searched by; send this one again in a moment.")
        self._running += 1
        try:
            yield await self._read_in_time(request)
        finally:
            self._running -= 1

    async def _read_in_time(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                return await self._read(request)
        except TimeoutError as error:
            raise refuse(408, "the photo took too long to arrive; send it again.") from error

    async def _read(self, request: Request) -> bytes:
        most = self.limits.upload_bytes
        too_large = refuse(413, f"the photo is larger than {most:,} bytes; send a smaller one.")
        claimed = request.headers.get("content-length", "0")
        if claimed.isdecimal() and int(claimed[:12]) > most:
            raise too_large
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise too_large
        if not content:
            raise refuse(400, "the body is empty; send the bytes of a photo.")
        return bytes(content)
