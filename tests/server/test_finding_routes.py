"""The routes that browse, filter by name, combine a photo with words, and fold what looks the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import Place, client_of, make_place

import vsrn
from vsrn.search.build import update_index
from vsrn.search.index import Index


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Photos, one of them twice."""
    place = make_place(tmp_path_factory.mktemp("place"))
    shutil.copy2(place.photos / "00.png", place.photos / "holiday/again.png")
    update_index(place.photos, place.idx)
    return place


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    yield from client_of(place)


@pytest.fixture
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


def test_pieces_join_to_the_whole_index(client: TestClient, index: Index) -> None:
    found: list[str] = []
    after: Any = ""
    for size in (5, 5, 3):
        piece = client.get("/api/photos", params={"k": 5} | ({"after": after} if after else {})).json()
        assert (piece["num_photos"], piece["num_passing"], len(piece["photos"])) == (13, 13, size)
        found += [photo["id"] for photo in piece["photos"]]
        after = piece["next"]
    assert after is None
    assert found == [photo.id for photo in index.latest(99)]
    some = client.get("/api/photos?folder=holiday&name=AGAIN").json()
    assert [photo["id"] for photo in some["photos"]] == ["holiday/again.png"]
    assert (some["num_photos"], some["num_passing"]) == (13, 1)
    for wrong in ("after=x", "after=a~b", "folder=nowhere", "until=May"):
        assert client.get(f"/api/photos?{wrong}").status_code == 422


def test_folders_are_listed(client: TestClient) -> None:
    assert client.get("/api/folders").json() == {
        "folders": [{"folder": "holiday", "num_photos": 9}, {"folder": "holiday/beach", "num_photos": 3}]
    }


def test_a_photo_with_words_finds_what_the_library_finds(client: TestClient, place: Place, index: Index) -> None:
    where = vsrn.Where(name="0")
    like = client.get("/api/search/like?id=03.png&sentence=dark red&k=5&name=0").json()
    assert [hit["id"] for hit in like["hits"]] == [hit.id for hit in index.search_like("03.png", 5, where, "dark red")]
    content = (place.photos / "03.png").read_bytes()
    by_photo = client.post("/api/search/photo?sentence=dark red&k=5&name=0", content=content).json()
    expected = index.search_image(place.photos / "03.png", 5, where, "dark red")
    assert [hit["id"] for hit in by_photo["hits"]] == [hit.id for hit in expected]
    assert {hit["fit"] for hit in like["hits"]} == {None}
    nothing = client.get("/api/search/like?id=03.png&sentence=zorp").json()
    assert (nothing["hits"], nothing["unknown_words"]) == ([], ["zorp"])


def test_copies_are_folded_where_that_is_asked_for(client: TestClient) -> None:
    asked = ("/api/search?sentence=red&k=99", "/api/search/like?id=03.png&k=99", "/api/photos?k=99")
    for url in asked:
        plain, folded = (client.get(f"{url}&fold={fold}").json() for fold in ("false", "true"))
        whole, few = (answer.get("hits", answer.get("photos")) for answer in (plain, folded))
        assert len(few) == len(whole) - 1
        assert all(photo["alike"] == [] for photo in whole)
        (pair,) = ({photo["id"], *(one["id"] for one in photo["alike"])} for photo in few if photo["alike"])
        assert pair == {"00.png", "holiday/again.png"}
