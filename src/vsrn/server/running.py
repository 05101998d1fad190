"""From an index folder to a process that answers until it is told to end."""

from __future__ import annotations

import ctypes
import errno
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from vsrn.errors import ConfigError
from vsrn.inference.exported import ExportedEncoder
from vsrn.search.index import open_index
from vsrn.server.app import create_app
from vsrn.server.settings import Access

BACKLOG = 512
# glibc's number for the setting, from its malloc.h.
M_ARENA_MAX = -8
SECONDS_TO_FINISH = 5


def serve(folder: Path, host: str, port: int, access: Access, started: Callable[[str, int], None]) -> None:
    """Serve an index until SIGINT or SIGTERM, then finish what is in work and return.

    started  called with the address and the number of photos when requests are taken

    Raises `SearchError` or `CheckpointError` where the index cannot be opened, and `ConfigError` where nothing can
    be bound to the address.
    """
    share_one_heap()
    index = open_index(folder)
    encoder = index.encoder
    assert isinstance(encoder, ExportedEncoder)
    listening = listen(host, port)
    app = create_app(index, encoder, access)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # what people search for is theirs
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    started(address_of(listening, host), len(index))
    # uvicorn raises the signal again when it has ended; by then there is nothing left to do.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def share_one_heap() -> None:
    """Let all threads take memory from one heap, where the C library is glibc; elsewhere nothing happens.

    By itself it gives threads heaps of their own, whose free space the others cannot use: under load from fifty
    clients the service then grew by 1.5 KB a request, and with one heap not at all.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises `ConfigError` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"--host {host} is no address of this machine; try 127.0.0.1.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use; end what uses it, or choose another --port.") from error
        raise ConfigError(f"{host}, port {port} cannot be served from ({error.strerror}); try another.") from error
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """Where a browser on this machine finds it."""
    port = listening.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
