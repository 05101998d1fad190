"""What the service says of an index that has lost a file, or holds what does not belong there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from colours import export_colours
from serving import Place, client_of, copy_place, make_place

from vsrn.search.build import update_index


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def own_place(place: Place, tmp_path: Path) -> Place:
    """A copy that a test may spoil."""
    return copy_place(place, tmp_path)


DAMAGE = ["vectors-1.f16", "regions-1.bin", "thumbnails-1.bin"]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_service_whose_index_lost_a_file_is_not_ready(
    own_place: Place, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for client in client_of(own_place):
        assert client.get("/readyz").status_code == 200
        (own_place.idx / name).rename(own_place.idx / "elsewhere")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert str(own_place.idx) not in answer.text
        assert client.get("/healthz").status_code == 200
        assert name.partition("-")[0] in caplog.text
        assert "--check" in caplog.text
        assert not re.search("delete|make it again", caplog.text)
        (own_place.idx / "elsewhere").rename(own_place.idx / name)
        assert client.get("/readyz").status_code == 200


def test_an_empty_index_is_ready(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/notes.txt").write_text("no photo")
    update_index(tmp_path / "photos", tmp_path / "idx", export_colours(tmp_path / "model"))
    for client in client_of(Place(tmp_path / "photos", tmp_path / "idx")):
        assert client.get("/api/about").json()["num_photos"] == 0
        assert client.get("/readyz").status_code == 200


def test_a_broken_index_is_named_in_the_log_alone(own_place: Place, caplog: pytest.LogCaptureFixture) -> None:
    for client in client_of(own_place):
        (own_place.idx / "thumbnails-1.bin").unlink()
        answer = client.get("/api/thumbnail?id=00.png")
        assert answer.status_code == 503
        assert str(own_place.idx) not in answer.text
        assert "thumbnails-1.bin is missing" in caplog.text
        assert client.get("/api/search?sentence=red").status_code == 200


def test_nothing_but_a_jpeg_is_sent_as_a_thumbnail(own_place: Place) -> None:
    """Whoever made the index may have put anything there, or a link to anything."""
    secret = b"root:x:0:0:root:/root:/bin/bash\n" * 1_000
    for client in client_of(own_place):
        assert client.get("/api/thumbnail?id=00.png").content.startswith(b"\xff\xd8\xff")
        (own_place.idx / "thumbnails-1.bin").write_bytes(secret)
        answer = client.get("/api/thumbnail?id=00.png")
        assert answer.status_code == 503
        assert "root:" not in answer.text
