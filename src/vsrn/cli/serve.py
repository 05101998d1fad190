"""`vsrn serve`: an index in the browser, and for other programs."""

from __future__ import annotations

import os

from vsrn.cli.options import Device, Index, Uri
from vsrn.cli.progress import say
from vsrn.errors import ConfigError

TOKEN = "VSRN_TOKEN"  # noqa: S105 - the name of a variable


def main(
    index: Index,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: tuple[str, ...] = (),
    open: bool = False,
    uri: Uri = "",
    device: Device = "auto",
) -> int:
    """Search an index in the browser, and let other programs ask it over HTTP.

    $ vsrn serve idx --open

    The page loads nothing from elsewhere; /docs lists the routes, /metrics has counters for Prometheus. Ctrl-C stops
    the service. An address that other machines can reach needs a token; the page takes it after a #:

    $ VSRN_TOKEN=$(openssl rand -hex 16) vsrn serve idx --host 0.0.0.0

    Args:
        host: Address to listen at. Any but this machine's own needs a token, as VSRN_TOKEN in the environment.
        port: Port to listen at; 0 takes a free one.
        allow_host: Further host names that requests may carry, for instance those of a proxy.
        open: Open the page in the browser.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; it must be 0 to 65535.")
    try:
        from vsrn.server.running import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"vsrn serve needs the package {error.name}; run `pip install '.[serve]'` in the checkout."
        ) from error
    from vsrn.server.security import Access, names_of

    access = Access(_token(host), names_of(host, allow_host))

    def started(address: str, num_photos: int) -> None:
        say(f"{index}: {num_photos:,} photos at {address} (Ctrl-C stops it)")
        if access.token is not None:
            say(f"In a browser: {address}#token=... with the token of {TOKEN}")
        if open:
            import webbrowser

            webbrowser.open(f"{address}#token={access.token}" if access.token else address)

    serve(index, host, port, access, started, uri, device)
    return 0


def _token(host: str) -> str | None:
    """The token that requests must bring. Raises `ConfigError` where one is needed and none is set."""
    from vsrn.server.security import LEAST_TOKEN_LETTERS, is_loopback

    token = os.environ.get(TOKEN, "").strip()
    if token and (len(token) < LEAST_TOKEN_LETTERS or not token.isascii() or not token.isprintable()):
        raise ConfigError(f"{TOKEN} must be {LEAST_TOKEN_LETTERS} plain characters or more; `openssl rand -hex 16`.")
    if not token and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets others than this machine in; set {TOKEN} to a secret of {LEAST_TOKEN_LETTERS} or more"
            " characters, or leave --host out."
        )
    return token or None
