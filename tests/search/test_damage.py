"""Damage of every kind to an index: it is said, nothing is lost by it, and `vsrn index` mends it from the photos."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colours import export_colours, save_photo

import vsrn
from vsrn.cli import run_command
from vsrn.errors import CheckpointError, SearchError, VsrnError
from vsrn.search.build import update_index
from vsrn.search.mend import check_index

NUM_PHOTOS = 6
# Bytes of each photo's vector: 8 halves.
VECTOR = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(NUM_PHOTOS):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def idx(photos: Path, model: Path, tmp_path: Path) -> Path:
    update_index(photos, tmp_path / "idx", model)
    return tmp_path / "idx"


def contents(idx: Path) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Everything that an index knows of each photo; the scores of a search among it."""
    with vsrn.open_index(idx) as index:
        hits = index.search("red", 99)
        assert len(hits) == len(index)
        return {
            hit.id: (index.vector(hit.id).tobytes(), index.regions(hit.id).features.tobytes(), index.thumbnail(hit.id))
            for hit in hits
        }


def ask_everything(idx: Path) -> None:
    """Open an index and have it use its records, both encoders and everything of a photo."""
    with vsrn.open_index(idx) as index:
        assert index.search("red", 99)
        for photo in index.latest(99):
            index.explain(photo.id, "red")
            index.thumbnail(photo.id)


def change(path: Path, at: int, to: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(to)] = to
    path.write_bytes(bytes(content))


def flip(path: Path, at: int) -> None:
    change(path, at, bytes([path.read_bytes()[at] ^ 1]))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def records_of(idx: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(idx / "records.sqlite")) as records:
        records.execute(statement)
        records.commit()


def scramble_page(idx: Path) -> None:
    """The page of the table of photos, where SQLite's own check finds it."""
    path = idx / "records.sqlite"
    size = int.from_bytes(path.read_bytes()[16:18], "big")
    with contextlib.closing(sqlite3.connect(path)) as records:
        (page,) = records.execute("SELECT rootpage FROM sqlite_master WHERE name = 'photos'").fetchone()
    change(path, (page - 1) * size, b"\xff" * 200)


def rename_in_the_table(idx: Path) -> None:
    """One letter of an id in the table, where its index still has the old one: what a flipped bit looks like."""
    path = idx / "records.sqlite"
    content = path.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    with contextlib.closing(sqlite3.connect(path)) as records:
        (page,) = records.execute("SELECT rootpage FROM sqlite_master WHERE name = 'photos'").fetchone()
    place = content.index(b"3.png", (page - 1) * size)
    change(path, place, b"7")


Damage = Callable[[Path], object]
# What is done, which photos are concerned, and what searches say of it; None where a search does not meet it.
OF_PHOTOS: list[tuple[str, Damage, set[str], str | None]] = [
    ("a bit of a vector", lambda idx: flip(idx / "vectors-1.f16", 2 * VECTOR), {"2"}, "is not what was written"),
    ("vectors of zeros", lambda idx: (idx / "vectors-1.f16").write_bytes(bytes(96)), set("012345"), "no model gives"),
    (
        "NaN",
        lambda idx: change(idx / "vectors-1.f16", VECTOR, b"\xff\x7f" * 8),
        {"1"},
        "no model gives, such as that of .1.png",
    ),
    ("no vectors", lambda idx: (idx / "vectors-1.f16").unlink(), set("012345"), "is missing"),
    ("cut vectors", lambda idx: os.truncate(idx / "vectors-1.f16", 5 * VECTOR), {"5"}, "shorter than the records say"),
    ("a bit of regions", lambda idx: flip(idx / "regions-1.bin", 3), {"0"}, None),
    ("no regions", lambda idx: (idx / "regions-1.bin").unlink(), set("012345"), None),
    ("a bit of a thumbnail", lambda idx: flip(idx / "thumbnails-1.bin", 99), {"0"}, None),
    ("cut thumbnails", lambda idx: os.truncate(idx / "thumbnails-1.bin", 10), set("012345"), None),
]


@pytest.mark.parametrize(
    ("damage", "concerned", "sentence"), [case[1:] for case in OF_PHOTOS], ids=[case[0] for case in OF_PHOTOS]
)
def test_damage_is_said_and_only_the_photos_concerned_are_read_again(
    damage: Damage, concerned: set[str], sentence: str | None, photos: Path, idx: Path
) -> None:
    before = contents(idx)
    assert check_index(idx) == []
    damage(idx)
    found = check_index(idx)
    assert {name.removesuffix(".png") for one in found for name in one.ids} == concerned
    with vsrn.open_index(idx) as index:
        if sentence is None:
            assert len(index.search("red", 99)) == NUM_PHOTOS
        else:
            with pytest.raises(SearchError, match=sentence):
                index.search("red", 99)
    report = update_index(photos, idx)
    assert (report.num_changed, report.num_added, report.num_removed) == (len(concerned), 0, 0)
    assert report.num_mended == len(concerned)
    assert check_index(idx) == []
    assert contents(idx) == before


def test_what_a_photo_has_is_not_given_out_damaged(idx: Path) -> None:
    flip(idx / "regions-1.bin", 3)
    flip(idx / "thumbnails-1.bin", 99)
    with vsrn.open_index(idx) as index:
        for ask in (index.regions, index.thumbnail, lambda name: index.explain(name, "red")):
            with pytest.raises(SearchError, match="is damaged.*vsrn index PHOTOS"):
                ask("0.png")
            assert ask("1.png") is not None


def test_damage_to_a_photo_that_is_gone_goes_with_it(photos: Path, idx: Path) -> None:
    flip(idx / "vectors-1.f16", 2 * VECTOR)
    (photos / "2.png").unlink()
    assert update_index(photos, idx).num_removed == 1
    assert check_index(idx) == []


def test_a_killed_repair_goes_on(photos: Path, idx: Path) -> None:
    before = contents(idx)
    (idx / "vectors-1.f16").write_bytes(bytes(VECTOR * NUM_PHOTOS))

    def stop(done: int, _: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index(photos, idx, batch_size=1, progress=stop)
    assert update_index(photos, idx).num_mended == NUM_PHOTOS - 2
    assert contents(idx) == before


def test_a_bit_that_rots_without_a_trace_is_found_by_check(
    photos: Path, idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk does not say what it lost: the file has the size and the time of before."""
    assert run_command("index", ["--check", "-o", str(idx)]) == 0
    assert "everything is as it was written" in capsys.readouterr().out
    status = (idx / "regions-1.bin").stat()
    flip(idx / "regions-1.bin", 3)
    os.utime(idx / "regions-1.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run_command("index", ["--check", "-o", str(idx), "--json"]) == 1
    damage = json.loads(capsys.readouterr().out)["damage"]
    assert damage == [{"what": "the regions of 1 photos are not what was written", "ids": ["0.png"]}]
    assert run_command("index", ["--check", "-o", str(idx)]) == 1
    assert "  0.png\n" in capsys.readouterr().out
    assert run_command("index", [str(photos), "-o", str(idx)]) == 0
    assert run_command("index", ["--check", "-o", str(idx)]) == 0


@pytest.mark.parametrize("name", ["caption_encoder.onnx", "image_encoder.onnx", "config.toml", "vocabulary.json"])
def test_a_changed_model_is_refused_before_anything_is_written(name: str, photos: Path, model: Path, idx: Path) -> None:
    before = contents(idx)
    files = {path.name: path.read_bytes() for path in idx.glob("*-1.*")}
    file = idx / "model" / name
    flip(file, file.stat().st_size // 2)
    assert any(name in one.what for one in check_index(idx))
    save_photo(photos / "9.png", 9)
    with pytest.raises(CheckpointError, match=f"{name} is not the file .*--model MODEL"):
        update_index(photos, idx)
    with pytest.raises(CheckpointError, match=f"{name} is not the file"):
        ask_everything(idx)
    assert {path.name: path.read_bytes() for path in idx.glob("*-1.*")} == files
    assert update_index(photos, idx, model).num_added == 1
    assert contents(idx).items() >= before.items()
    assert check_index(idx) == []


@pytest.mark.parametrize(
    ("old", "new"), [('"joint_dim": 8', '"joint_dim": 4'), ('"feature_dim": 6', '"feature_dim": 3')]
)
def test_sizes_that_do_not_fit_the_model_cut_nothing(old: str, new: str, photos: Path, idx: Path) -> None:
    before = contents(idx)
    edit(idx / "index.json", old, new)
    save_photo(photos / "9.png", 9)
    for use in (lambda: update_index(photos, idx), lambda: vsrn.open_index(idx)):
        with pytest.raises(SearchError, match="index.json was changed: it says"):
            use()
    assert any("was changed" in one.what for one in check_index(idx))
    # The sentence names the remedy.
    (idx / "index.json").unlink()
    assert update_index(photos, idx).num_added == 1
    assert contents(idx).items() >= before.items()


def test_what_the_page_of_an_index_says_may_not_change(photos: Path, idx: Path) -> None:
    """An index that is told that it keeps no regions would add photos without them."""
    before = contents(idx)
    edit(idx / "index.json", '"explain": true', '"explain": false')
    with pytest.raises(SearchError, match="index.json was changed: it says explain False, and the records True"):
        update_index(photos, idx)
    (idx / "index.json").unlink()
    update_index(photos, idx)
    assert contents(idx) == before


@pytest.mark.parametrize("content", [None, b"", b"[1, 2"])
def test_a_lost_page_of_the_index_is_made_again(content: bytes | None, photos: Path, idx: Path) -> None:
    before, page = contents(idx), (idx / "index.json").read_bytes()
    (idx / "index.json").unlink()
    if content is not None:
        (idx / "index.json").write_bytes(content)
    assert update_index(photos, idx).num_added == 0
    assert (idx / "index.json").read_bytes() == page
    assert contents(idx) == before


BROKEN_RECORDS: list[tuple[str, Damage, int]] = [
    ("no records", lambda idx: (idx / "records.sqlite").unlink(), NUM_PHOTOS),
    ("no database", lambda idx: (idx / "records.sqlite").write_bytes(b"no database" * 999), NUM_PHOTOS),
    ("an empty file", lambda idx: (idx / "records.sqlite").write_bytes(b""), NUM_PHOTOS),
    ("half", lambda idx: os.truncate(idx / "records.sqlite", 6000), NUM_PHOTOS),
    ("a page", scramble_page, NUM_PHOTOS),
    ("a letter", rename_in_the_table, 0),
    ("no state", lambda idx: records_of(idx, "DELETE FROM state"), 0),
    ("a negative place", lambda idx: records_of(idx, "UPDATE photos SET thumbnail_at = -5 WHERE row = 3"), 1),
    ("a text for a number", lambda idx: records_of(idx, "UPDATE photos SET num_regions = 'x' WHERE row = 3"), 1),
]


@pytest.mark.parametrize(
    ("damage", "read_again"), [case[1:] for case in BROKEN_RECORDS], ids=[case[0] for case in BROKEN_RECORDS]
)
def test_damaged_records_are_said_and_mended(damage: Damage, read_again: int, photos: Path, idx: Path) -> None:
    before = contents(idx)
    damage(idx)
    assert check_index(idx)
    with pytest.raises(VsrnError, match="vsrn index|holds no photo"):
        ask_everything(idx)
    report = update_index(photos, idx)
    assert report.num_added + report.num_changed == read_again
    assert check_index(idx) == []
    assert contents(idx) == before


def test_an_index_of_before_checksums_opens_is_searched_and_kept(photos: Path, model: Path, tmp_path: Path) -> None:
    """What the first version wrote: fewer columns, and no checksums in index.json."""
    idx = tmp_path / "idx"
    update_index(photos, idx, model)
    before = contents(idx)
    with contextlib.closing(sqlite3.connect(idx / "records.sqlite", isolation_level=None)) as records:
        for table in ("files", "info", "settings"):
            records.execute(f"DROP TABLE {table}")
        for column in ("inode", "changed_ns", "vector_crc", "regions_crc", "thumbnail_crc"):
            records.execute(f"ALTER TABLE photos DROP COLUMN {column}")
        for column in ("kind", "reader", "size", "modified_ns", "changed_ns", "inode"):
            records.execute(f"ALTER TABLE skipped DROP COLUMN {column}")
    info = json.loads((idx / "index.json").read_text())
    del info["files"]
    (idx / "index.json").write_text(json.dumps(info))
    shutil.copytree(idx, tmp_path / "old")
    assert contents(idx) == before
    assert check_index(idx) == []
    (idx / "vectors-1.f16").write_bytes(bytes(VECTOR) + (idx / "vectors-1.f16").read_bytes()[VECTOR:])
    assert [one.ids for one in check_index(idx)] == [["0.png"]]
    assert update_index(photos, idx).num_changed == 1
    assert contents(idx) == before
    (tmp_path / "old" / "index.json").unlink()
    update_index(photos, tmp_path / "old")
    assert contents(tmp_path / "old") == before
    np.testing.assert_equal(json.loads((tmp_path / "old" / "index.json").read_text())["joint_dim"], 8)
