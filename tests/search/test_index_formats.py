"""An index of raw files, videos and Live photos, and of photos that need an extra."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from colours import export_colours, save_photo
from made_files import dng, drawing, jpeg, video
from PIL import Image

import vsrn
from vsrn.search.build import update_index
from vsrn.server.photos import draw_photo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A plain photo, a raw file on its side, a video, a Live photo, and a photo with its raw file."""
    folder = tmp_path / "photos"
    save_photo(folder / "plain.png", 0)
    contents = {
        "raw.dng": dng([drawing((320, 240))], orientation=6),
        "film.mp4": video(),
        "live.jpg": jpeg(drawing((80, 60))),
        "live.MOV": video("mov"),
        "both.JPG": jpeg(drawing((60, 80))),
        "both.NEF": dng([drawing((320, 240))]),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def ids(idx: Path) -> set[str]:
    with vsrn.open_index(idx) as index:
        return {photo.id for photo in index.latest(99)}


def test_they_are_found_and_shown_as_photos(photos: Path, model: Path, tmp_path: Path) -> None:
    report = update_index(photos, tmp_path / "idx", model)
    assert (report.num_photos, report.num_files_left_out, report.skipped) == (5, 2, [])
    assert ids(tmp_path / "idx") == {"plain.png", "raw.dng", "film.mp4", "live.jpg", "both.JPG"}
    with vsrn.open_index(tmp_path / "idx") as index:
        raw, film = index.photo("raw.dng"), index.photo("film.mp4")
        assert (raw.width, raw.height, raw.taken) == (240, 320, "2024-05-17 14:03:00")
        assert (film.width, film.height) == (160, 120)
        for photo, on_its_side in ((raw, True), (film, False)):
            for shown in (draw_photo(index.path(photo.id), photo, 256), index.thumbnail(photo.id)):
                picture = Image.open(io.BytesIO(shown)).convert("RGB")
                corner = (picture.width - 9, 9) if on_its_side else (9, 9)
                red, green, blue = picture.getpixel(corner)  # type: ignore[misc]
                assert red > 230
                assert max(green, blue) < 30
    again = update_index(photos, tmp_path / "idx")
    assert (again.num_added, again.num_changed, again.num_removed) == (0, 0, 0)


def test_a_video_that_becomes_part_of_a_photo_makes_room_for_it(photos: Path, model: Path, tmp_path: Path) -> None:
    for name in ("plain.png", "raw.dng", "live.jpg", "both.JPG", "both.NEF"):
        (photos / name).unlink()
    update_index(photos, tmp_path / "idx", model)
    assert ids(tmp_path / "idx") == {"film.mp4", "live.MOV"}
    (photos / "live.jpg").write_bytes(jpeg(drawing((80, 60))))
    assert update_index(photos, tmp_path / "idx").missing == []
    assert ids(tmp_path / "idx") == {"film.mp4", "live.jpg"}


def test_what_needs_an_extra_is_told_and_what_was_indexed_with_it_stays(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_index(photos, tmp_path / "idx", model)
    (photos / "raw.dng").write_bytes(dng([drawing((160, 120))]))
    (photos / "new.mov").write_bytes(video("mov"))
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setitem(sys.modules, "av", None)
    report = update_index(photos, tmp_path / "idx")
    assert [(file.id, file.kind) for file in report.skipped] == [("new.mov", "needs-video"), ("raw.dng", "needs-raw")]
    assert "run `pip install '.[video]'` in the checkout." in report.skipped[0].reason
    assert {"raw.dng", "film.mp4"} <= ids(tmp_path / "idx")
