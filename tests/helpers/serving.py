"""An index of small photos, and the real service over it, in this process."""

from __future__ import annotations

import contextlib
import gc
import http.server
import os
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from colours import export_colours, save_photo
from fastapi.testclient import TestClient
from PIL import Image

from vsrn.pretrained import find_model
from vsrn.search.build import update_index
from vsrn.search.index import Index
from vsrn.server.app import create_app
from vsrn.server.indexing import Indexer
from vsrn.server.running import listen, server_of
from vsrn.server.security import Access, Limits

ODD_ID = "holiday/50% off & more #1? ü\"<b>'.png"
SHAPES = [(24, 16), (16, 24), (20, 20), (40, 16), (30, 20)]
HOME = "http://localhost"
SMALL = Limits(upload_bytes=5_000, upload_pixels=10_000)


@dataclass(frozen=True)
class Place:
    """Photos, and the index of them."""

    photos: Path
    idx: Path

    def open(self) -> Index:
        return Index(self.idx)


def make_place(folder: Path, num_photos: int = 11) -> Place:
    """An index of photos of several shapes in several folders, one of them with an odd name."""
    photos = folder / "photos"
    for number in range(num_photos):
        path = save_photo(photos / ["", "holiday", "holiday/beach"][number % 3] / f"{number:02}.png", number)
        with Image.open(path) as photo:
            photo.resize(SHAPES[number % len(SHAPES)], Image.Resampling.NEAREST).save(path)
    save_photo(photos / ODD_ID, 99)
    update_index(photos, folder / "idx", export_colours(folder / "model"))
    return Place(photos, folder / "idx")


# Photos in scikit-image's wheel that are CC0 or in the public domain, by what its documentation calls them.
PHOTOS = {
    "astronaut": "Eileen Collins, NASA, public domain",
    "brick": "CC0Textures, CC0",
    "camera": "Lav Varshney, CC0",
    "chelsea": "Stefan van der Walt, CC0",
    "coffee": "Rachel Michetti, CC0",
    "grass": "linolafett, CC0",
    "gravel": "CC0Textures, CC0",
    "hubble_deep_field": "NASA, public domain",
    "retina": "Mikael Häggström, CC0",
    "rocket": "SpaceX, public domain",
}


def make_real_place(folder: Path) -> Place:
    """An index of real photos, as `vsrn index` makes it, with the model in the package."""
    skimage = pytest.importorskip("skimage")
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for name in PHOTOS:
        (found,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        with Image.open(found) as photo:
            photo.convert("RGB").save(photos / f"{name}.jpg", quality=92)
    update_index(photos, folder / "idx", find_model())
    return Place(photos, folder / "idx")


def copy_place(place: Place, folder: Path) -> Place:
    """A copy of photos and index, which knows its own photos only."""
    shutil.copytree(place.idx, folder / "idx")
    shutil.copytree(place.photos, folder / "photos")
    own = Place(folder / "photos", folder / "idx")
    with contextlib.closing(sqlite3.connect(own.idx / "records.sqlite")) as records:
        records.execute("UPDATE state SET root = ?", (os.fsencode(own.photos),))
        records.commit()
    return own


def client_of(place: Place, limits: Limits = SMALL) -> Iterator[TestClient]:
    """A client of the app itself, once."""
    app = create_app(Indexer(place.idx, Access()), place.open(), limits)
    with TestClient(app, base_url=HOME, raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def serving(
    place: Place, access: Access | None = None, limits: Limits | None = None, plugins: tuple[str, ...] = ()
) -> Iterator[str]:
    """The address of a service that runs for the block, over an index or where there is none yet."""
    limits, access = limits or Limits(), access or Access()
    indexer = Indexer(place.idx, access, plugins=plugins, niceness=0)
    index = indexer.open() if indexer.has_index else None
    app = create_app(indexer, index, limits)
    listening = listen("127.0.0.1", 0)
    server = server_of(app, listening, limits)
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        # Connections that clients hold open end with the loop, unclosed; a later test must not be blamed for them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@contextlib.contextmanager
def serving_a_page() -> Iterator[str]:
    """The address of an empty page on a site of its own."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            # To a browser localhost is another site than 127.0.0.1.
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
