"""What a service allows: how much of everything, and whom."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field

LEAST_TOKEN_LETTERS = 16


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them together, may ask for. Whoever asks for more gets a 4xx answer.

    sentence_letters    of a query
    id_letters          of a photo's id, or a folder
    most_hits           k
    upload_bytes        of a photo to search by
    upload_pixels       the same, before it is decoded
    upload_seconds      for such a photo to arrive
    pause_seconds       in which nothing of such a photo arrives
    arriving_at_once    photos of which a part has arrived; above it the one that paused longest is refused
    arriving_bytes      of all these parts together; the same
    uploads_at_once     photos that have arrived and are searched by
    requests_at_once    in work or waiting
    connections         open, however many files the process may have
    head_bytes          of a request before its body
    head_seconds        for these to arrive, counted from the connection or the answer before
    answer_seconds      in which a client takes nothing of its answer
    photo_side          pixels of the longer side of a photo that is sent
    """

    sentence_letters: int = 500
    id_letters: int = 4096
    most_hits: int = 200
    upload_bytes: int = 20_000_000
    upload_pixels: int = 25_000_000
    upload_seconds: float = 30.0
    pause_seconds: float = 5.0
    arriving_at_once: int = 32
    arriving_bytes: int = 160_000_000
    uploads_at_once: int = 8
    requests_at_once: int = 128
    connections: int = 1024
    head_bytes: int = 16_384
    head_seconds: float = 10.0
    answer_seconds: float = 30.0
    photo_side: int = 1600


@dataclass(frozen=True)
class Access:
    """Who may ask.

    token  what a request must bring, or None where everybody on this machine may ask
    names  host names by which the service may be called besides plain addresses, in lower case
    """

    token: str | None = None
    names: frozenset[str] = field(default_factory=lambda: frozenset({"localhost"}))


def names_of(host: str, more: tuple[str, ...] = ()) -> frozenset[str]:
    """The names by which a service that is bound to `host` may be called."""
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), host, *more))


def is_loopback(host: str) -> bool:
    """Whether a service bound to `host`, an address or a name, can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        found = {address[4][0] for address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
