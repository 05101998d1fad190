"""From an index folder to a process that answers until it is told to end."""

from __future__ import annotations

import ctypes
import errno
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI

from vsrn.errors import ConfigError
from vsrn.search.index import Index
from vsrn.server.app import create_app
from vsrn.server.connections import Connection, Listener, connections_for, raise_file_limit
from vsrn.server.indexing import Indexer
from vsrn.server.security import Access, Limits

BACKLOG = 512
# glibc's numbers for the settings, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Bytes of a piece of memory from which on it goes back to the system as soon as it is freed.
LARGE_PIECE = 128 * 1024
SECONDS_TO_FINISH = 5


def serve(
    folder: Path,
    host: str,
    port: int,
    access: Access,
    started: Callable[[str, int | None], None],
    uri: str = "",
    device: str = "auto",
    *,
    plugins: Sequence[str] = (),
    may_lack: bool = False,
) -> None:
    """Serve an index until SIGINT or SIGTERM, then finish what is in work and return.

    started   called with the address and the number of photos, None without an index, when requests are taken
    uri       as in `Index`, and so is `device`
    plugins   modules that indexing imports first
    may_lack  whether the index may be made later, on the page or by `vsrn index`

    Raises `SearchError` or `CheckpointError` where the index cannot be opened, and `ConfigError` where the device is
    not there or nothing can be bound to the address.
    """
    keep_memory_small()
    limits = Limits()
    if device not in ("auto", "cpu"):
        # torch takes seconds to import; a model may do without it on the CPU.
        from vsrn.devices import pick_device  # noqa: PLC0415

        pick_device(device)
    indexer = Indexer(folder, access, uri, device, plugins)
    index = None if may_lack and not indexer.has_index else Index(folder, uri, device)
    if index is not None:
        # What is missing or damaged is said here in one sentence; once the server runs it would be a stack trace.
        index.search("", 1)
    listener = listen(host, port)
    server = server_of(create_app(index, None, access, limits, indexer), listener, limits)
    started(address_of(listener, host), None if index is None else len(index))
    # uvicorn raises the signal again when it has ended; by then there is nothing left to do.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


def server_of(app: FastAPI, listener: Listener, limits: Limits) -> uvicorn.Server:
    """A server of an app whose connections keep to the limits; `run(sockets=[listener])` runs it.

    Raises the process's limit of open files.
    """
    listener.most = connections_for(raise_file_limit(), limits)
    config = uvicorn.Config(
        app,
        # Both are named, since uvicorn takes others where they are installed, and these would not ask the listener.
        loop="asyncio",
        http=cast("type[Connection]", partial(Connection, listener, limits)),
        ws="none",
        log_level="warning",
        access_log=False,  # what people search for is theirs
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    return uvicorn.Server(config)


def keep_memory_small() -> None:
    """Let all threads take memory from one heap, and what is freed go back at once, where the C library is glibc.

    By itself it gives threads heaps of their own, whose free space the others cannot use: under load from fifty
    clients the service then grew by 1.5 KB a request, and with one heap not at all. And each large piece that is freed
    makes it keep larger ones from then on: photos of 12 megapixels left 60 MB that nothing used.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)
            mallopt(M_MMAP_THRESHOLD, LARGE_PIECE)
            mallopt(M_TRIM_THRESHOLD, LARGE_PIECE)


def listen(host: str, port: int) -> Listener:
    """A socket that takes connections. Raises `ConfigError` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = Listener(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"--host {host} is no address of this machine; try 127.0.0.1.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use; end what uses it, or choose another --port.") from error
        raise ConfigError(f"{host}, port {port} cannot be served from ({error.strerror}); try another.") from error
    return listener


def address_of(listening: socket.socket, host: str) -> str:
    """Where a browser on this machine finds it."""
    port = listening.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
