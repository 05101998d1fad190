"""Indexing over HTTP: who may start it, over which folders, and that one runs at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from colours import save_photo
from fastapi.testclient import TestClient
from serving import HOME, SMALL, Place, copy_place, make_place

from vsrn.server.app import create_app
from vsrn.server.indexing import Indexer
from vsrn.server.security import Access

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
REMOTE = Access(TOKEN, local=False)
CHOOSING = Access(TOKEN, may_choose=True)
SETPRIV = shutil.which("setpriv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), num_photos=5)


@pytest.fixture(autouse=True)
def _sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds what this process finds, and a plugin that sleeps until it is stopped."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(tmp_path)]))


@contextmanager
def asking(folder: Path, access: Access, plugins: tuple[str, ...] = ("sleeper",)) -> Iterator[TestClient]:
    """A client of a service over the index in a folder, where there is one."""
    indexer = Indexer(folder, access, plugins=plugins, niceness=0)
    index = indexer.open() if indexer.has_index else None
    app = create_app(indexer, index, SMALL)
    with TestClient(app, base_url=HOME, headers=BEARER, raise_server_exceptions=False) as client:
        yield client


def ended(client: TestClient) -> dict[str, Any]:
    """What the service says when the run has ended."""
    begun = time.monotonic()
    while (state := client.get("/api/indexing").json())["running"]:
        assert time.monotonic() < begun + 300, state
        time.sleep(0.05)
    assert isinstance(state, dict)
    return state


def test_one_runs_at_a_time_and_is_stopped(place: Place) -> None:
    with asking(place.idx, Access()) as client:
        assert client.get("/api/indexing").json()["ended"] == ""
        started = client.post("/api/indexing")
        assert (started.status_code, started.json()["running"], started.json()["total"]) == (202, True, None)
        again = client.post("/api/indexing")
        assert (again.status_code, again.json()["detail"]) == (409, "indexing runs already.")
        stopped = client.delete("/api/indexing").json()
        assert (stopped["running"], stopped["ended"]) == (False, "stopped")
        assert "What was finished stays" in stopped["said"]
        assert client.post("/api/indexing").status_code == 202
    # A service that ends takes the run with it; leaving the block waits for that.


def test_a_run_finds_new_photos_which_are_searched_at_once(place: Place, tmp_path: Path) -> None:
    own = copy_place(place, tmp_path / "own")
    save_photo(own.photos / "new.png", 77)
    (own.photos / "notes.txt").write_text("x")
    with asking(own.idx, REMOTE, ("colour_extractor",)) as client:
        assert client.get("/api/search", params={"sentence": "red", "k": 50}).json()["hits"].__len__() == 6
        assert client.post("/api/indexing").status_code == 202
        state = ended(client)
        assert (state["ended"], state["num_photos"], state["skipped"]) == ("well", 7, {"no-photo": 1})
        assert (state["done"], state["total"]) == (8, 8)
        assert client.get("/api/search", params={"sentence": "red", "k": 50}).json()["hits"].__len__() == 7


def test_there_is_no_index_until_a_folder_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "Pictures").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (home / "Pictures/broken.jpg").write_bytes(b"\xff\xd8\xff")
    with asking(tmp_path / "idx", CHOOSING, ()) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", "/api/about", "/api/search?sentence=a", "/api/photos"):
            answer = client.get(path)
            assert (answer.status_code, "there is no index yet" in answer.json()["detail"]) == (503, True)
        state = client.get("/api/indexing").json()
        assert (state["num_photos"], state["refusal"]) == (None, "")
        assert state["choice"] == {"index": str(tmp_path / "idx"), "folders": [str(home / "Pictures")]}
        for wrong in ("nowhere", "/nowhere", "~no-such-account/x", "x" * 4000, str(home / "Pictures/broken.jpg")):
            answer = client.post("/api/indexing", params={"folder": wrong})
            assert (answer.status_code, "there is no folder" in answer.json()["detail"]) == (422, True), wrong
        assert client.post("/api/indexing").status_code == 422
        assert client.post("/api/indexing", params={"folder": "~/Pictures"}).status_code == 202
        state = ended(client)
        assert (state["ended"], state["num_photos"], state["skipped"]) == ("well", 0, {"damaged": 1})
        assert client.get("/api/about").json()["num_photos"] == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
    ],
)
def test_no_other_page_and_no_stranger_starts_or_stops_it(
    place: Place, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    with asking(place.idx, CHOOSING) as client:
        assert client.post("/api/indexing").status_code == 202
        assert client.delete("/api/indexing", headers=headers).status_code == status
        assert client.get("/api/indexing").json()["running"]
        client.delete("/api/indexing")
        assert client.post("/api/indexing", headers=headers).status_code == status
        assert client.post("/api/indexing", params={"folder": str(tmp_path)}, headers=headers).status_code == status
        assert not client.get("/api/indexing").json()["running"]


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("access", [Access(), REMOTE], ids=["local", "remote"])
def test_folders_are_neither_shown_nor_taken_where_nobody_may_choose(
    place: Place, access: Access, has_index: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Pictures").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    with asking(place.idx if has_index else tmp_path / "idx", access) as client:
        assert str(tmp_path) not in client.get("/api/indexing").text
        answer = client.post("/api/indexing", params={"folder": str(tmp_path / "Pictures")})
        assert (answer.status_code, "--choose-folder" in answer.json()["detail"]) == (403, True)


def test_through_a_proxy_without_a_token_nothing_is_indexed(place: Place) -> None:
    with asking(place.idx, Access(local=False)) as client:
        assert "set VSRN_TOKEN" in client.get("/api/indexing").json()["refusal"]
        assert client.post("/api/indexing").status_code == 403


def test_a_failure_is_told_in_full_to_those_alone_who_may_choose(place: Place, tmp_path: Path) -> None:
    own = copy_place(place, tmp_path / "own")
    shutil.rmtree(own.photos)
    told = []
    for access in (Access(), CHOOSING):
        with asking(own.idx, access, ()) as client:
            client.post("/api/indexing")
            state = ended(client)
            assert state["ended"] == "badly"
            told.append(state["said"])
    assert told[0] == "indexing failed; the log of the service says why."
    assert str(own.photos) in told[1]


@pytest.mark.skipif(SETPRIV is None or os.geteuid() != 0, reason="only root may take the rights of another account")
def test_a_service_that_may_only_read_says_so(place: Place, tmp_path: Path) -> None:
    own = copy_place(place, tmp_path / "own")
    for path in (own.idx, *own.idx.rglob("*")):
        os.chown(path, 65534, 65534)
    program = "import sys; from pathlib import Path; from vsrn.server.indexing import *; "
    program += "print(Indexer(Path(sys.argv[1]), Access()).refusal())"
    assert SETPRIV is not None
    command = [SETPRIV, "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", program, str(own.idx)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("this service may only read the index;")
