"""What becomes of photos that move, vanish, change while they are read, or have odd times and neighbours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from colours import Colours, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.cli import run_command
from vsrn.errors import UnknownPhotoError
from vsrn.search.build import update_index


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One photo at the top, and ten below `nas`."""
    save_photo(tmp_path / "photos" / "top.png", 0)
    for number in range(1, 11):
        save_photo(tmp_path / "photos" / "nas" / "2024" / f"{number:02}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def idx(photos: Path, model: Path, tmp_path: Path) -> Path:
    update_index(photos, tmp_path / "idx", model)
    return tmp_path / "idx"


def rows(idx: Path) -> dict[str, int]:
    with vsrn.open_index(idx) as index:
        return {photo.id: photo.row for photo in index.latest(99)}


def test_a_renamed_folder_keeps_what_the_index_has_of_it(photos: Path, idx: Path) -> None:
    before = rows(idx)
    (photos / "nas").rename(photos / "disk")
    report = update_index(photos, idx)
    assert (report.num_moved, report.num_added, report.num_changed, report.num_removed) == (10, 0, 0, 0)
    assert rows(idx) == {name.replace("nas/", "disk/"): row for name, row in before.items()}
    with vsrn.open_index(idx) as index:
        assert all(hit.path.is_file() for hit in index.search("red", 99))
        assert index.regions("disk/2024/03.png") is not None
        assert index.thumbnail("disk/2024/03.png")


def test_a_moved_photo_is_not_taken_for_a_copy_and_a_copy_not_for_a_moved_one(photos: Path, idx: Path) -> None:
    shutil.copy(photos / "nas/2024/01.png", photos / "copy.png")
    (photos / "nas/2024/02.png").rename(photos / "moved.png")
    shutil.copy(photos / "moved.png", photos / "moved too.png")
    report = update_index(photos, idx)
    assert (report.num_moved, report.num_added, report.num_removed) == (1, 2, 0)
    assert len(rows(idx)) == 13


def test_a_disk_that_is_away_takes_nothing_with_it(photos: Path, idx: Path, tmp_path: Path) -> None:
    before = rows(idx)
    (photos / "nas" / "2024").rename(tmp_path / "away")
    report = update_index(photos, idx)
    assert (report.num_removed, len(report.missing), report.num_photos) == (0, 10, 11)
    assert rows(idx) == before
    (tmp_path / "away").rename(photos / "nas" / "2024")
    report = update_index(photos, idx)
    assert (report.num_added, report.num_changed, report.missing) == (0, 0, [])
    assert rows(idx) == before


def test_an_empty_folder_keeps_its_few_photos_and_prune_removes_them(
    photos: Path, idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of eleven are fewer than a fifth; that their folder is there and empty is what a lost mount looks like."""
    (photos / "usb").mkdir()
    (photos / "nas/2024/01.png").rename(photos / "usb/01.png")
    update_index(photos, idx)
    (photos / "usb/01.png").unlink()
    assert run_command("index", [str(photos), "-o", str(idx)]) == 0
    assert "1 photos are not where they were, such as usb/01.png" in capsys.readouterr().err
    assert "usb/01.png" in rows(idx)
    assert run_command("index", [str(photos), "-o", str(idx), "--prune", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_removed"], report["missing"]) == (1, [])
    assert "usb/01.png" not in rows(idx)


def test_a_few_deleted_photos_go_without_a_question_and_a_folder_too(photos: Path, idx: Path) -> None:
    (photos / "nas/2024/01.png").unlink()
    (photos / "nas/2024/02.png").unlink()
    assert update_index(photos, idx).num_removed == 2


def test_removals_come_last(photos: Path, idx: Path) -> None:
    """A run that is stopped before its end has removed nothing."""
    (photos / "nas/2024/01.png").unlink()
    for number in range(50, 53):
        save_photo(photos / f"{number}.png", number)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index(photos, idx, progress=stop, batch_size=1)
    assert "nas/2024/01.png" in rows(idx)
    assert update_index(photos, idx).num_removed == 1


def test_a_photo_with_its_old_size_and_time_and_another_content_is_read_again(photos: Path, idx: Path) -> None:
    """Editors and EXIF tools that keep times, and `cp -p`: only the inode or the change time tells."""
    photo = photos / "top.png"
    Image.new("RGB", (24, 16), (9, 9, 9)).save(photo, compress_level=0)
    update_index(photos, idx)
    before = photo.stat()
    Image.new("RGB", (24, 16), (250, 9, 9)).save(photo, compress_level=0)
    assert photo.stat().st_size == before.st_size
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    with vsrn.open_index(idx) as index:
        vector = index.vector("top.png")
    assert update_index(photos, idx).num_changed == 1
    with vsrn.open_index(idx) as index:
        assert (index.vector("top.png") != vector).any()


def test_a_photo_that_changes_while_it_is_indexed_is_what_its_hash_says(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another picture of the same size takes a photo's place right after the extractor saw it."""
    victim, other = photos / "top.png", tmp_path / "other.png"
    Image.new("RGB", (24, 16), (9, 9, 9)).save(victim, compress_level=0)
    Image.new("RGB", (24, 16), (250, 9, 9)).save(other, compress_level=0)
    prepare = Colours.prepare

    def prepare_and_swap(self: Colours, photo: Image.Image) -> object:
        prepared = prepare(self, photo)
        if other.exists() and photo.getpixel((0, 0)) == (9, 9, 9):
            other.replace(victim)
        return prepared

    monkeypatch.setattr(Colours, "prepare", prepare_and_swap)
    update_index(photos, tmp_path / "idx", model)
    assert not other.exists()
    assert update_index(photos, tmp_path / "idx").num_changed == 1
    update_index(photos, tmp_path / "fresh", model)
    with vsrn.open_index(tmp_path / "idx") as index, vsrn.open_index(tmp_path / "fresh") as fresh:
        for photo in fresh.latest(99):
            assert (index.vector(photo.id) == fresh.vector(photo.id)).all()
            assert index.photo(photo.id).sha256 == photo.sha256


def test_times_beyond_those_of_a_database_and_a_calendar_stop_nothing(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    for name, seconds in (("2300.png", 10_413_792_000), ("2446.png", 15_032_385_535), ("old.png", -6_000_000_000)):
        save_photo(photos / name, seconds % 1000)
        os.utime(photos / name, (seconds, seconds))
    report = update_index(photos, tmp_path / "idx", model)
    assert (report.num_photos, report.skipped) == (14, [])
    with vsrn.open_index(tmp_path / "idx") as index:
        assert index.photo("2300.png").taken.startswith("2300-01-01")
    assert update_index(photos, tmp_path / "idx").num_changed == 0


def test_no_photo_is_one_line_and_is_not_opened_again(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        (photos / f"IMG_{number}.jpg.json").write_text("{}")
    (photos / "zoo.jpg").write_bytes((photos / "top.png").read_bytes()[:60])
    (photos / b"caf\xe9.txt".decode(errors="surrogateescape")).write_text("no photo")
    (photos / "esc\x1b[31m.jpg").write_bytes(b"")
    arguments = [str(photos), "-o", str(tmp_path / "idx"), "--model", str(model)]
    for _ in range(2):
        assert run_command("index", arguments) == 0
        output = capsys.readouterr().out
        damaged, others = output.index("zoo.jpg is damaged"), output.index("61 other files were passed over")
        assert damaged < others
        assert "60 .json" in output
        assert "\x1b" not in output
    # A file that grows into a photo is opened again.
    shutil.copy(photos / "top.png", photos / "IMG_2.jpg.json")
    assert run_command("index", arguments) == 0
    assert "12 photos (1 new" in capsys.readouterr().out


def test_what_is_no_photo_is_opened_once(photos: Path, model: Path, tmp_path: Path) -> None:
    (photos / "IMG_1.jpg.json").write_text("{}")
    (photos / "clip.mp4").write_bytes(b"no photo")
    program = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, arguments: event == 'open' and opened.append(str(arguments[0])))\n"
        "import colours\n"
        "from vsrn.search.build import update_index\n"
        "report = update_index(*sys.argv[1:])\n"
        "print(len(report.skipped), sum(name.endswith(('.mp4', '.jpg.json')) for name in opened))"
    )
    arguments = [sys.executable, "-c", program, str(photos), str(tmp_path / "idx"), str(model)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = [subprocess.run(arguments, capture_output=True, check=True, text=True, env=environment) for _ in range(2)]
    assert [run.stdout.strip() for run in said] == ["2 2", "2 0"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_compare_in_one_form(form: Literal["NFC", "NFD"], model: Path, tmp_path: Path) -> None:
    """macOS writes é as two characters, other systems as one; a person types either."""
    name, folder = unicodedata.normalize(form, "café.png"), unicodedata.normalize(form, "Été")
    save_photo(tmp_path / "photos" / folder / name, 1)
    save_photo(tmp_path / "photos" / "a.png", 2)
    update_index(tmp_path / "photos", tmp_path / "idx", model)
    with vsrn.open_index(tmp_path / "idx") as index:
        typed: Literal["NFC", "NFD"]
        for typed in ("NFC", "NFD"):
            typed_id = unicodedata.normalize(typed, "Été/café.png")
            assert index.photo(typed_id).id == "Été/café.png"
            where = vsrn.Where(unicodedata.normalize(typed, "Été"))
            assert [hit.id for hit in index.search("red", 9, where)] == ["Été/café.png"]
            assert [hit.id for hit in index.search_like(typed_id, 9)] == ["a.png"]
        assert index.path("Été/café.png").is_file()


def test_like_takes_what_search_prints(photos: Path, idx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("search", [str(idx), "red", "-k", "3"]) == 0
    path = capsys.readouterr().out.splitlines()[0].partition("  ")[2]
    answers = []
    for name in (path, str(Path(path).relative_to(photos)), os.path.relpath(path)):
        assert run_command("search", [str(idx), "--like", name, "-k", "3", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["hits"])
    assert answers[0] == answers[1] == answers[2]
    assert path not in [hit["path"] for hit in answers[0]]
    with vsrn.open_index(idx) as index, pytest.raises(UnknownPhotoError, match="holds no photo '/nowhere.png'"):
        index.id_of("/nowhere.png")


def test_leftovers_of_killed_runs_are_cleared(photos: Path, idx: Path) -> None:
    gone = 2**22 - 1
    (idx / f".model.{gone}.tmp").mkdir()
    (idx / f".model.{gone}.tmp" / "image_encoder.onnx").write_bytes(b"half")
    (idx / f".index.json.{gone}.tmp").write_text("{")
    update_index(photos, idx)
    assert not [path.name for path in idx.iterdir() if path.name.startswith(".")]


def test_photos_that_are_excluded_leave_the_index_and_return(
    photos: Path, idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Ten of eleven, but nobody need ask whether their disk is away: they are there.
    report = update_index(photos, idx, exclude=["nas"])
    assert (report.num_photos, report.num_removed, report.missing) == (1, 10, [])
    assert (report.num_folders_left_out, report.num_files_left_out) == (1, 0)
    assert set(rows(idx)) == {"top.png"}
    report = update_index(photos, idx, exclude=())
    assert (report.num_photos, report.num_added, report.num_folders_left_out) == (11, 10, 0)
    shutil.copytree(photos / "nas", photos / "@eaDir")
    assert run_command("index", [str(photos), "-o", str(idx), "--exclude", "nas/2024/0*", "top.*"]) == 0
    shown = capsys.readouterr().out
    assert "1 photos (0 new, 0 read again, 10 gone)" in shown
    assert "  1 folder and 10 files were left out (hidden, of the system, or excluded)\n" in shown
    assert set(rows(idx)) == {"nas/2024/10.png"}


def test_thumbnails_that_an_earlier_version_indexed_leave_without_being_asked(photos: Path, idx: Path) -> None:
    # The index as it stood when folders of systems were searched.
    with contextlib.closing(sqlite3.connect(idx / "records.sqlite")) as records, records:
        records.execute("UPDATE photos SET id = replace(id, 'nas', '@eaDir')")
        records.execute("UPDATE photos SET path = CAST(id AS BLOB)")
    (photos / "nas").rename(photos / "@eaDir")
    report = update_index(photos, idx)
    assert (report.num_photos, report.num_removed, report.missing) == (1, 10, [])
    assert (set(rows(idx)), report.num_folders_left_out) == ({"top.png"}, 1)
