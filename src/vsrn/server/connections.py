"""How many connections there may be, and how long each may keep the service waiting.

A connection costs a file, and whoever can reach the port can open one without any token. So their number stays below
the process's limit of files, a newcomer takes the place of the one that has been idle longest, and a connection that
does not send its request, or does not take its answer, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vsrn.server.security import Limits

if sys.platform != "win32":  # which has no such limit
    import resource

# Tried from the first on: macOS names no hard limit, and then refuses more than 10,240.
FILES_WANTED = (65_536, 10_240)
FILES_WITHOUT_LIMIT = 512
# For the index, its records (4 readers of 3 files each), the model, and what Python has open itself.
FILES_OF_THE_SERVICE = 64
LEAST_CONNECTIONS = 8
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SECONDS_WITHOUT_FILES = 0.05
# Requests sent before the answers to earlier ones. uvicorn goes on reading while it answers: one client that read
# no answers had it hold 90 MB within 2 seconds.
PIPELINED_BYTES = 65_536

log = logging.getLogger("vsrn.server.connections")


class OneLineASecond(logging.Filter):
    """Lets one warning a second through, which says how many were left out before it; errors always pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives the time in seconds, from any beginning."""
        super().__init__()
        self._clock, self._next, self._left_out = clock, -math.inf, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno > logging.WARNING:
            return True
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out:,} such lines left out before)", ()
        self._next, self._left_out = now + 1, 0
        return True


log.addFilter(OneLineASecond())


def raise_file_limit() -> int:
    """Let this process open as many files as the system allows it, at most 65,536, and return that number."""
    if sys.platform == "win32":
        return FILES_WITHOUT_LIMIT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in FILES_WANTED:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= more:
            return max(soft, more)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            return more
    return soft


def connections_for(num_files: int, limits: Limits) -> int:
    """How many connections a process with that many files may hold: each may have a file of its own being sent."""
    return max(LEAST_CONNECTIONS, min(limits.connections, (num_files - FILES_OF_THE_SERVICE) // 2))


class Listener(socket.socket):
    """A listening socket that holds no more than `most` connections at a time.

    asyncio takes all connections that wait before it looks at the first. Where the files run out meanwhile, it
    logs a stack trace for each try, up to 2,048 in a row and again and again: 466,501 lines in 12 seconds. So the
    connections are counted here, where asyncio takes them.
    """

    most = LEAST_CONNECTIONS

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.idle: dict[Connection, None] = {}  # without a request in work, the one that is longest so first
        self._coming, self._open = 0, 0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises `BlockingIOError` where there is none, or asyncio must do other things first."""
        full = self._coming + self._open >= self.most
        if full and (self._coming or self._close_one()):
            raise BlockingIOError
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in NO_MORE_FILES:
                raise
            if not self._close_one():
                log.warning("a connection waits: %s", error.strerror)
                time.sleep(SECONDS_WITHOUT_FILES)  # or asyncio would try again at once, at full load
            raise BlockingIOError from error
        if full:
            log.warning("a connection was refused: requests are in work on all %d that are allowed", self.most)
            connection.close()
            raise BlockingIOError
        self._coming += 1
        return connection, address

    def opened(self) -> None:
        """Count a connection that `accept` gave and that asyncio has now begun to serve."""
        self._coming, self._open = self._coming - 1, self._open + 1

    def closed(self, connection: Connection) -> None:
        """Forget a connection whose file is about to be closed."""
        self._open -= 1
        self.idle.pop(connection, None)

    def _close_one(self) -> bool:
        """Close the connection that has been idle longest, and say whether there was one."""
        if not self.idle:
            return False
        connection = next(iter(self.idle))
        del self.idle[connection]
        log.warning("an idle connection was closed for a new one: %d are allowed", self.most)
        connection.transport.abort()
        return True


class Connection(H11Protocol):
    """One connection: uvicorn's, with limits of time and strict about where a request ends."""

    def __init__(self, listener: Listener, limits: Limits, *arguments: Any, **options: Any) -> None:
        """What it takes behind its listener and limits is what uvicorn gives each connection."""
        super().__init__(*arguments, **options)
        self.logger = log
        self.conn = StrictParser(h11.SERVER, limits.head_bytes)
        self._listener, self._limits = listener, limits
        self._waits_for: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._listener.opened()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.closed(self)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and close where more has come than is answered one by one."""
        super().data_received(data)
        if len(self.conn.trailing_data[0]) > PIPELINED_BYTES:
            self.transport.abort()
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn names no cause
        """Refuse what is no request, and close."""
        self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP request that the service reads.")

    def _should_upgrade(self) -> bool:
        # There are no web sockets here: such a request is answered like any other, and nothing is logged.
        return False

    def _note(self) -> None:
        """Note whether a request is in work, and start the clock of what the other side is to do next, if anything."""
        waits_for = None
        # Before the first request there is no cycle.
        if not getattr(self.cycle, "response_complete", True):
            self._listener.idle.pop(self, None)
        else:
            self._listener.idle.setdefault(self)
            waits_for = "request"
        if self.flow.write_paused:
            waits_for = "answer"
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            if self._timer is not None:
                self._timer.cancel()
            seconds = {"request": self._limits.head_seconds, "answer": self._limits.answer_seconds}.get(waits_for or "")
            self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        """Close; first say why where that can be heard: part of a request has come, and nothing waits to be sent."""
        begun = bool(self.conn.trailing_data[0]) and self.conn.our_state is h11.IDLE
        if begun and not self.transport.is_closing() and self.transport.get_write_buffer_size() == 0:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive; send it again.")
        else:
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        body = json.dumps({"detail": sentence})
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write((head + body).encode("ascii"))
        self.transport.close()


class StrictParser(h11.Connection):
    """Refuses requests whose end is told twice: behind a proxy that believes the other of the two, what one of them
    takes for the body is to the other a second request (RFC 9112, 6.1)."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next part of a request. Raises `h11.RemoteProtocolError` for what is none."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        return event
