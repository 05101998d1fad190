"""Whether a child process opens a connection: a proxy that it would use, and a hook that sees its own calls.

The proxy catches native code, which takes its proxy from the environment as Python does. The hook, which Python runs
as `sitecustomize`, catches connections and look-ups of names that go past any proxy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOOK = """
import ipaddress, os, sys

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")

def note(event, arguments):
    if event not in EVENTS:
        return
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    # A Unix socket has a path for an address; a netlink socket has a number.
    if not isinstance(host, str) or not host or host.startswith(("/", "\\0", *LOOPBACK)):
        return
    if event == "socket.getaddrinfo" and is_address(host):
        return
    with open(os.environ["VSRN_TEST_CALLS"], "a") as calls:
        calls.write(f"{event} {host}\\n")

def is_address(host):
    # Nothing is looked up for it.
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

sys.addaudithook(note)
"""
SILENCED_OR_CACHED = (
    *(
        "ORT_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_TELEMETRY",
        "RAY_USAGE_STATS_ENABLED",
        "WANDB_ERROR_REPORTING",
        "DO_NOT_TRACK",
    ),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TORCH_HOME"),
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")


@dataclass
class Ear:
    """What child processes did that were run in `environment`.

    asked  the first line of each connection that the proxy got
    home   their HOME, in which caches appear
    """

    port: int
    home: Path
    calls_file: Path
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a child: this process's, with the proxy, the hook and a HOME of its own."""
        proxy = f"http://127.0.0.1:{self.port}"
        ours = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        # What this process has set by importing vsrn must not silence the child, nor its caches serve it.
        for name in SILENCED_OR_CACHED:
            ours.pop(name, None)
        return (
            ours
            | {name: proxy for upper in PROXIES for name in (upper, upper.lower())}
            | {
                "HOME": str(self.home),
                "XDG_CACHE_HOME": str(self.home / ".cache"),
                "PYTHONPATH": os.pathsep.join([str(self.calls_file.parent), *sys.path[1:]]),
                "VSRN_TEST_CALLS": str(self.calls_file),
                "OMP_NUM_THREADS": "1",
            }
        )

    @property
    def heard(self) -> Sequence[str]:
        """Every connection through the proxy, and every one past it to anywhere but this machine."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [*self.asked, *calls]


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[Ear]:
    """A proxy on a free port of this machine, and the hook in a folder of its own, until the block ends."""
    home, hook = folder / "home", folder / "hook"
    home.mkdir(parents=True)
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ear = Ear(server.getsockname()[1], home, hook / "calls.txt")
        ends = threading.Event()
        thread = threading.Thread(target=_answer, args=(server, ear.asked, ends))
        thread.start()
        try:
            yield ear
        finally:
            ends.set()
            thread.join()


def _answer(server: socket.socket, asked: list[str], ends: threading.Event) -> None:
    server.settimeout(0.1)
    while not ends.is_set():
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(5)
            try:
                asked.append(connection.recv(500).split(b"\r\n")[0].decode("latin-1"))
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError as error:
                asked.append(f"a connection that said nothing ({error})")
