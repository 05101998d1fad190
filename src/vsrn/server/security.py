"""What a service allows: how much of everything, and whom, which is checked before anything else of a request.

A browser on this machine will send requests here for any page it shows. So a request must name us as we are called
(against DNS rebinding), must not come from another origin, and, where a token is set, must bring it.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsrn.server.answers import problem

LEAST_TOKEN_LETTERS = 16


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them together, may ask for. Whoever asks for more gets a 4xx answer."""

    sentence_letters: int = 500  # of a query
    id_letters: int = 4096  # of a photo's id, or a folder
    name_letters: int = 255  # of a part of a file name
    most_hits: int = 200  # k
    upload_bytes: int = 20_000_000  # of a photo to search by
    upload_pixels: int = 25_000_000  # the same, before it is decoded
    upload_seconds: float = 30.0  # for such a photo to arrive
    pause_seconds: float = 5.0  # in which nothing of such a photo arrives
    arriving_at_once: int = 32  # photos of which a part has arrived; above it the one that paused longest is refused
    arriving_bytes: int = 160_000_000  # of all these parts together; the same
    uploads_at_once: int = 8  # photos that have arrived and are searched by
    requests_at_once: int = 128  # in work or waiting
    connections: int = 1024  # open, however many files the process may have
    head_bytes: int = 16_384  # of a request before its body
    head_seconds: float = 10.0  # for these to arrive, counted from the connection or the answer before
    answer_seconds: float = 30.0  # in which a client takes nothing of its answer
    photo_side: int = 1600  # pixels of the longer side of a photo that is sent
    large_pixels: int = 12_000_000  # of a photo that is sent to look at closely


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    token: str | None = None  # what a request must bring; None where everybody on this machine may ask
    names: frozenset[str] = frozenset({"localhost"})  # of the service, besides plain addresses; in lower case
    local: bool = True  # whether only this machine reaches it, not even through a proxy
    # Whether whoever is let in may name folders of this machine to index, which then needs a token: other accounts of
    # this machine would read with the rights of this one.
    may_choose: bool = False

    def __post_init__(self) -> None:
        assert self.token or not self.may_choose, "whoever may choose a folder must bring a token"


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


PAGES = ("/", "/docs")
# What shows nothing of the photos: the pages, their parts, what the service offers, and whether it is alive.
OPEN_PATHS = (*PAGES, "/openapi.json", "/healthz", "/readyz")
OPEN_FOLDER = "/static/"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses strangers, and sends headers that keep browsers strict."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access
        # What a browser keeps instead of the token; it dies with the process.
        self.session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a stranger, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(scope) or self.app)(scope, receive, send_strictly)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not is_our_name(headers.get("host", ""), self.access.names):
            return problem(421, "this service is not called by that name; start it with --allow-host to add one.")
        if is_foreign(headers, scope["method"], path):
            return problem(403, "pages of other sites may not read this service.")
        if self.access.token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        if path == "/api/session":
            return self._open_session(headers, scope)
        session = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")
        return None if self._brings_token(headers) or _equal(session, self.session) else _unauthorised()

    def _open_session(self, headers: Headers, scope: Scope) -> Response:
        """Give a browser that brings the token a cookie, since its pictures cannot bring one."""
        if scope["method"] != "POST" or not self._brings_token(headers):
            return _unauthorised()
        answer = Response(status_code=204)
        answer.set_cookie(
            cookie_name(scope), self.session, httponly=True, samesite="strict", secure=scope["scheme"] == "https"
        )
        return answer

    def _brings_token(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and _equal(token.strip(), self.access.token or "")


def cookie_name(scope: Scope) -> str:
    """The name of our cookie: browsers send cookies to every port of a machine, and keep one of each name.

    >>> cookie_name({"server": ("127.0.0.1", 8150)})
    'vsrn_session_8150'
    """
    return f"vsrn_session_{scope['server'][1]}"


def is_our_name(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is a plain address, or one of our names; only a name can be rebound to us.

    >>> names = frozenset({"localhost"})
    >>> [is_our_name(host, names) for host in ("LocalHost.:8000", "[::1]:8000", "192.168.0.7", "evil.example", "")]
    [True, True, True, False, False]
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].removesuffix(".").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True


def is_foreign(headers: Headers, method: str, path: str) -> bool:
    """Whether a page of another origin sent this request; following a link to our page is no such thing."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return True
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    followed = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return not (followed and method == "GET" and path in PAGES)


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _unauthorised() -> Response:
    said = "this service asks for a token; send it as `Authorization: Bearer TOKEN`."
    return problem(401, said, {"WWW-Authenticate": "Bearer"})
