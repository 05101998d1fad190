"""`vsrn serve`: an index in the browser, and for other programs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Device, Uri, imported_plugins
from vsrn.cli.progress import say
from vsrn.errors import ConfigError

TOKEN = "VSRN_TOKEN"  # noqa: S105 - the name of a variable


def main(
    index: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[INDEX]")] = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: tuple[str, ...] = (),
    open: bool = False,
    choose_folder: bool = False,
    uri: Uri = "",
    device: Device = "auto",
) -> None:
    """Search an index in the browser, and let other programs ask it over HTTP.

    $ vsrn serve --open

    The page loads nothing from elsewhere; /docs lists the routes, /metrics has counters for Prometheus. Ctrl-C stops
    the service. An address that other machines can reach needs a token; the page takes it after a #:

    $ VSRN_TOKEN=$(openssl rand -hex 16) vsrn serve idx --host 0.0.0.0

    Args:
        index: Folder made by `vsrn index` [default: the one of this account; where there is none, the page makes it].
        host: Address to listen at. Any but this machine's own needs a token, as VSRN_TOKEN in the environment.
        port: Port to listen at; 0 takes a free one.
        allow_host: Further host names that requests may carry, for instance those of a proxy.
        open: Open the page in the browser.
        choose_folder: Let whoever has the token choose folders of this machine on the page, to be indexed and shown.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; it must be 0 to 65535.")
    try:
        from vsrn.server.running import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"vsrn serve needs the package {error.name}; run `pip install '.[serve]'` in the checkout."
        ) from error
    from vsrn.search.layout import INFO_FILE
    from vsrn.search.places import default_index
    from vsrn.server.indexing import Indexer
    from vsrn.server.security import Access, is_loopback, names_of

    folder = index or default_index()
    lacks = index is None and not (folder / INFO_FILE).is_file()
    local = is_loopback(host) and not allow_host
    may_choose = choose_folder or (lacks and local)
    given = _token(host)
    token = given or (secrets.token_urlsafe(16) if may_choose else None)
    access = Access(token, names_of(host, allow_host), local=local, may_choose=may_choose)

    def started(address: str, num_photos: int | None) -> None:
        page = f"{address}#token={token}" if token else address
        # A token that was given is a secret of the environment, and not for the log.
        shown = f"{address}#token=... with the token of {TOKEN}" if given else page
        _say_where(folder, address, shown if token else "", num_photos, may_choose=may_choose)
        if open:
            import webbrowser

            webbrowser.open(page)

    serve(Indexer(folder, access, uri, device, imported_plugins), host, port, started, may_lack=index is None)


def _say_where(folder: Path, address: str, page: str, num_photos: int | None, *, may_choose: bool) -> None:
    """Say where the service is; `page` is its address with the token, or empty where none is needed."""
    if num_photos is not None:
        say(f"{folder}: {num_photos:,} photos at {address} (Ctrl-C stops it)")
        if page:
            say(f"In a browser: {page}")
    elif may_choose:
        say(f"There is no index yet. Choose the folder of your photos in a browser: {page}")
        say(f"The index will be kept in {folder}. (Ctrl-C stops the service)")
    else:
        say(f"There is no index yet at {address}: run `vsrn index PHOTOS -o {folder}`, or add --choose-folder.")


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
