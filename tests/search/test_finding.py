"""Filters by name, reading all photos in pieces, folders, a photo with words, photos that look the same, thumbnails."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from colours import export_colours, save_photo
from PIL import Image
from serving import ODD_ID, Place, make_place

import vsrn
from vsrn.cli import main
from vsrn.errors import SearchError, UnknownFolderError
from vsrn.pretrained import find_model
from vsrn.search.build import update_index
from vsrn.search.index import WORDS_WEIGHT, Index
from vsrn.search.reading import thumbnail


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


def test_a_part_of_a_file_name_in_any_case_filters(index: Index) -> None:
    for part in ("Ü", "u\N{COMBINING DIAERESIS}", "% OFF"):
        assert [hit.id for hit in index.search("red", 20, vsrn.Where(name=part))] == [ODD_ID]
    # Folders are not part of it, and nothing in it has a meaning of its own.
    for part in ("holiday", "%0%", "0_"):
        assert index.search("red", 20, vsrn.Where(name=part)) == []
    both = vsrn.Where("holiday/beach", name="0")
    assert {hit.id for hit in index.search("red", 20, both)} == {f"holiday/beach/{n:02}.png" for n in (2, 5, 8)}
    assert index.count(both) == 3


def test_all_photos_can_be_read_in_pieces(index: Index) -> None:
    for where in (vsrn.Where(), vsrn.Where("holiday"), vsrn.Where(name=".png", since=date(2000, 1, 1))):
        whole, pieces = index.latest(99, where), []
        after = None
        while piece := index.latest(5, where, after):
            pieces += piece
            after = piece[-1].taken, piece[-1].row
        assert pieces == whole
        assert len(whole) == index.count(where)
    with pytest.raises(UnknownFolderError):
        index.latest(5, vsrn.Where("nowhere"))


def test_folders_count_what_lies_below(index: Index) -> None:
    assert index.folders() == {"holiday": 8, "holiday/beach": 3}


def test_a_photo_with_words_is_searched_by_both(place: Place, index: Index) -> None:
    photo, words = index.vector("00.png"), index.encoder.encode_captions(["dark red"])[0]
    both = (1 - WORDS_WEIGHT) * photo / np.linalg.norm(photo) + WORDS_WEIGHT * words / np.linalg.norm(words)
    expected = index.search_vector((both / np.linalg.norm(both)).astype(np.float32), 12)
    found = index.search_image(place.photos / "00.png", 12, sentence="dark red")
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=2e-3)
    others = [hit.id for hit in expected if hit.id != "00.png"]
    assert [hit.id for hit in index.search_like("00.png", 11, sentence="dark red")] == others
    assert (
        index.search_like("00.png", sentence="zorp")
        == index.search_image(place.photos / "00.png", sentence="zorp")
        == []
    )
    assert index.search_like("00.png", sentence=" ") == index.search_like("00.png")


def test_what_is_the_same_picture_is_folded_and_other_photos_are_not(tmp_path: Path) -> None:
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    photos = tmp_path / "photos"
    for number, name in enumerate(["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]):
        with Image.open(data / name) as opened:
            photo = opened.convert("RGB")
        width, height = photo.size
        cut = (width // 50, height // 50, width - width // 50, height - height // 50)
        versions = {
            "original": photo,
            "half": photo.resize((width // 2, height // 2)),
            "cropped": photo.crop(cut),
            "light": photo.point(lambda value: min(255, value * 6 // 5)),
        }
        for kind, version in versions.items():
            (photos / kind).mkdir(parents=True, exist_ok=True)
            version.save(photos / kind / f"{number}.jpg", quality=40 if kind == "original" else 90)
    shutil.copy(photos / "original/0.jpg", photos / "copy.jpg")
    update_index(photos, tmp_path / "idx", find_model())
    with vsrn.open_index(tmp_path / "idx") as index:
        hits = index.search("a person", 99)
        folded = index.fold(hits)
        first = {number_of(hit): hit.id for hit in reversed(hits)}
        assert sorted(hit.id for hit in folded) == sorted(first.values())
        for hit in folded:
            numbers = {number_of(one) for one in (hit, *hit.alike)}
            assert len(numbers) == 1
            assert len(hit.alike) == (4 if numbers == {"0"} else 3)
            assert [one.score for one in hit.alike] == sorted((one.score for one in hit.alike), reverse=True)


def number_of(hit: vsrn.Hit) -> str:
    """Which of the photos it is a version of."""
    return "0" if hit.id == "copy.jpg" else hit.id[-5]


def run(command: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == code


def test_the_command_searches_and_folds_as_the_library_does(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place.photos, tmp_path / "photos")
    shutil.copy(tmp_path / "photos/00.png", tmp_path / "photos/again.png")
    update_index(tmp_path / "photos", tmp_path / "idx", place.idx / "model")
    with vsrn.open_index(tmp_path / "idx") as index:
        expected = index.fold(index.search_like("03.png", 20, vsrn.Where(name="n"), "dark"))
    command = ["search", str(tmp_path / "idx"), "dark", "--like", "03.png", "--name", "N", "-k", "20", "--fold"]
    run(command, 0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected) == 11
    (line,) = (line for line in lines if "  = " in line)
    assert {part.rpartition("/")[2] for part in line.split("  = ")} == {"00.png", "again.png"}
    run([*command, "--json"], 0)
    assert '"alike": [' in capsys.readouterr().out
    run(["search", str(tmp_path / "idx"), "red", "--name", "zzz"], 0)
    assert "passes the filters" in capsys.readouterr().err
    run(["search", str(tmp_path / "idx"), "--like", "00.png", "--image", "x.png"], 2)


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((4000, 3000), (512, 384)),
        ((300, 400), (300, 400)),
        ((3000, 1000), (576, 192)),
        ((1000, 4000), (192, 768)),
        ((8000, 1000), (1024, 192)),
        ((100, 9000), (100, 1024)),
        ((30, 20), (30, 20)),
    ],
)
def test_thumbnails_are_of_bounded_size_and_their_thin_side_can_be_seen(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    with Image.open(io.BytesIO(thumbnail(photo, 512))) as made:
        assert made.size == pytest.approx(small, abs=1)


def test_the_size_of_thumbnails_is_kept_in_the_index(tmp_path: Path) -> None:
    save_photo(tmp_path / "photos/a.png", 1)
    with Image.open(tmp_path / "photos/a.png") as photo:
        photo.resize((900, 600)).save(tmp_path / "photos/a.png")
    model = export_colours(tmp_path / "model")
    update_index(tmp_path / "photos", tmp_path / "idx", model, thumbnail_side=96)
    shutil.copy(tmp_path / "photos/a.png", tmp_path / "photos/b.png")
    with (tmp_path / "photos/b.png").open("ab") as file:
        file.write(b"another file")
    update_index(tmp_path / "photos", tmp_path / "idx")
    with vsrn.open_index(tmp_path / "idx") as index:
        for name in ("a.png", "b.png"):
            with Image.open(io.BytesIO(index.thumbnail(name))) as made:
                assert made.size == (96, 64)
    with pytest.raises(SearchError, match="was made with --thumbnail-side 96, which cannot be changed"):
        update_index(tmp_path / "photos", tmp_path / "idx", thumbnail_side=512)
    with pytest.raises(SearchError, match="64 to 1024 pixels"):
        update_index(tmp_path / "photos", tmp_path / "new", model, thumbnail_side=5000)
    # An index from before there was the setting goes on as it was.
    info = tmp_path / "idx/index.json"
    info.write_text(info.read_text().replace(',\n "thumbnail_side": 96', ""))
    assert vsrn.open_index(tmp_path / "idx").info.thumbnail_side == 256
