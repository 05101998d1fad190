"""One index of several folders, what it keeps for its next runs, and what `vsrn info` says of it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from colours import Colours, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.cli import main, run_command
from vsrn.errors import DataError, SearchError, UnknownFolderError
from vsrn.search.build import update_index
from vsrn.search.mend import check_index
from vsrn.search.overview import read_overview


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`home` and `nas` have photos of one name each, which show different colours."""
    for number, name in enumerate(("home/a.png", "home/trip/b.png", "nas/a.png", "nas/trip/b.png", "nas/trip/c.png")):
        save_photo(tmp_path / name, number)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def idx(model: Path) -> Path:
    """Made of `home`, to which `nas` was added."""
    update_index("home", "idx", model)
    assert update_index(["nas"], "idx").num_added == 3
    return Path("idx")


IDS = {"a.png": "home/a.png", "trip/b.png": "home/trip/b.png", "nas/a.png": "nas/a.png"}
IDS |= {name: name for name in ("nas/trip/b.png", "nas/trip/c.png")}


def places(idx: Path) -> dict[str, str]:
    """Where the photos of an index are, below the working directory, by their ids; each is asked for by itself."""
    with vsrn.open_index(idx) as index:
        found = {photo.id: os.path.relpath(index.path(photo.id)) for photo in index.latest(99)}
        assert {hit.id: os.path.relpath(hit.path) for hit in index.search("red", 99)} == found
        assert all(index.id_of(path) == name for name, path in found.items())
        return found


def test_ids_of_one_folder_stay_and_those_of_another_begin_with_its_name(idx: Path, tmp_path: Path) -> None:
    assert places(idx) == IDS
    save_photo(tmp_path / "home/new.png", 11)
    save_photo(tmp_path / "nas/new.png", 12)
    # Whichever folder is named, or none, all are gone over.
    report = update_index(None, idx)
    assert (report.num_added, report.num_removed, report.num_changed, report.num_photos) == (2, 0, 0, 7)
    assert update_index(tmp_path / "nas", idx).num_added == 0
    assert check_index(idx) == []
    # What the index has of a photo was made of the file at its path.
    with vsrn.open_index(idx) as index, Image.open("nas/new.png") as photo:
        (made,) = Colours()([Colours().prepare(photo)])
        np.testing.assert_allclose(index.regions("nas/new.png").features, made.features, atol=1e-3)


def test_all_folders_of_a_new_index_have_labels_that_no_two_share(model: Path, tmp_path: Path) -> None:
    save_photo(tmp_path / "old/nas/z.png", 9)
    report = update_index(["home", "nas", "old/nas"], "idx", model)
    assert report.folders == [str(tmp_path / name) for name in ("home", "nas", "old/nas")]
    assert set(places(Path("idx"))) == {
        *(f"home/{name}" for name in ("a.png", "trip/b.png")),
        *(f"nas/{name}" for name in ("a.png", "trip/b.png", "trip/c.png")),
        "nas 2/z.png",
    }


def test_a_folder_filter_takes_labels_and_paths(idx: Path, tmp_path: Path) -> None:
    with vsrn.open_index(idx) as index:

        def inside(folder: str) -> set[str]:
            return {hit.id for hit in index.search("red", 99, vsrn.Where(folder))}

        assert inside("trip") == inside("home/trip") == {"trip/b.png"}
        assert inside("nas/trip") == inside(str(tmp_path / "nas/trip")) == {"nas/trip/b.png", "nas/trip/c.png"}
        assert inside("nas") == inside(str(tmp_path / "nas")) == {name for name in IDS if name.startswith("nas/")}
        assert inside(str(tmp_path / "home")) == inside("./home") == {"a.png", "trip/b.png"}
        assert inside(".") == set(IDS)
        with pytest.raises(UnknownFolderError, match="Did you mean 'nas/trip'"):
            inside("nas/trap")
        with pytest.raises(UnknownFolderError):  # a service says nothing of paths
            index.search("red", 9, vsrn.Where(str(tmp_path / "nas"), paths=False))


def test_a_folder_with_the_label_of_another_is_refused_and_nothing_is_mixed_up(idx: Path, tmp_path: Path) -> None:
    save_photo(tmp_path / "home/nas/a.png", 7)
    report = update_index(None, idx)
    assert (report.num_photos, report.num_changed) == (5, 0)
    (skipped,) = report.skipped
    assert skipped.reason == f"{tmp_path}/home/nas has the name that photos of {tmp_path}/nas go by; rename it."
    (tmp_path / "home/nas").rename(tmp_path / "home/attached")
    report = update_index(None, idx)
    assert (report.num_added, report.skipped) == (1, [])


def test_a_folder_is_taken_away_with_its_photos(idx: Path, tmp_path: Path) -> None:
    report = update_index(None, idx, remove=["nas"])
    assert (report.num_removed, report.missing, report.folders) == (3, [], [str(tmp_path / "home")])
    assert set(places(idx)) == {"a.png", "trip/b.png"}
    with pytest.raises(SearchError, match=f"nas is no folder of the index, which is of {tmp_path}/home"):
        update_index(None, idx, remove=["nas"])
    with pytest.raises(SearchError, match="of no folder; name a folder of photos to add, or delete the index"):
        update_index(None, idx, remove=["home"])
    # The first folder, whose ids have no label, may go too, and the photos stay known where they lie in another.
    report = update_index(tmp_path / "nas", idx)
    assert report.num_added == 3
    (tmp_path / "home/trip/b.png").rename(tmp_path / "nas/from home.png")
    report = update_index(None, idx, remove=["home"])
    assert (report.num_moved, report.num_removed, report.num_photos) == (1, 1, 4)
    assert set(places(idx)) == {"nas/a.png", "nas/trip/b.png", "nas/trip/c.png", "nas/from home.png"}
    assert update_index(None, idx).num_changed == 0


def test_a_folder_in_another_is_refused_and_the_larger_one_may_take_its_place(idx: Path, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=f"nas/trip lies in {tmp_path}/nas, which is searched with all its folders"):
        update_index("nas/trip", idx)
    with pytest.raises(SearchError, match=f"home/trip lies in {tmp_path}/home,"):
        update_index(["home/trip", "home"], "other")
    assert not Path("other").exists()
    (tmp_path / "attic").mkdir()
    (tmp_path / "home").rename(tmp_path / "attic/home")
    Path("home").symlink_to("attic/home")
    # The same folder by another name is no second one.
    assert update_index([Path("attic/home"), Path("nas/../nas")], idx).num_photos == 5
    with pytest.raises(SearchError, match=f"attic holds {tmp_path}/home, a folder of the index; add --remove"):
        update_index("attic", idx)
    report = update_index("attic", idx, remove=["home"])
    assert (report.num_moved, report.num_added, report.num_removed) == (2, 0, 0)
    assert places(idx)["attic/home/trip/b.png"] == "attic/home/trip/b.png"


def test_a_folder_that_is_away_keeps_its_photos_with_one_warning(
    idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nas/broken.png").write_bytes(b"\x89PNG")
    update_index(None, idx)
    (tmp_path / "nas").rename(tmp_path / "off")
    for mount_point in (False, True):
        if mount_point:
            (tmp_path / "nas").mkdir()
        assert run_command("index", ["-o", "idx"]) == 0
        said = capsys.readouterr()
        assert said.err.count(f"warning: {tmp_path}/nas is not there or holds no photos") == 1
        assert "are not where they were" not in said.err
        assert places(idx) == IDS
        assert [one.there for one in read_overview(idx).folders] == [True, False]
    (tmp_path / "nas").rmdir()
    (tmp_path / "off").rename(tmp_path / "nas")
    report = update_index(None, idx)
    assert (report.num_added, report.num_changed, report.away, len(report.skipped)) == (0, 0, [], 1)
    (tmp_path / "nas").rename(tmp_path / "off")
    report = update_index(None, idx, prune=True)
    assert (report.num_removed, report.num_photos, report.skipped) == (3, 2, [])
    # What is gone for good is not asked for again.
    assert update_index(None, idx).folders == [str(tmp_path / "home")]
    (tmp_path / "home").rename(tmp_path / "off too")
    with pytest.raises(DataError, match=f"there is no folder {tmp_path}/home"):
        update_index(None, idx)


def test_a_renamed_folder_is_found_again(idx: Path, tmp_path: Path) -> None:
    (tmp_path / "nas").rename(tmp_path / "raid")
    (tmp_path / "home").rename(tmp_path / "house")
    report = update_index(["raid", "house"], idx)
    assert (report.num_added, report.num_moved, report.away) == (0, 0, [])
    assert set(places(idx)) == set(IDS)
    assert [one.path.name for one in read_overview(idx).folders] == ["house", "raid"]
    # Other names too: then it is another folder, whose photos are known by their content.
    (tmp_path / "raid").rename(tmp_path / "box")
    for number, photo in enumerate(sorted((tmp_path / "box").rglob("*.png"))):
        photo.rename(tmp_path / f"box/{number}.png")
    report = update_index(tmp_path / "box", idx)
    assert (report.num_added, report.num_moved, report.num_removed, report.away) == (0, 3, 0, [])
    assert set(places(idx)) == {"a.png", "trip/b.png", "box/0.png", "box/1.png", "box/2.png"}
    assert update_index(None, idx).folders == [str(tmp_path / "house"), str(tmp_path / "box")]


def test_many_that_vanish_from_one_folder_are_asked_for_whatever_else_there_is(idx: Path, tmp_path: Path) -> None:
    for number in range(20):
        save_photo(tmp_path / f"home/more/{number}.png", 30 + number)
    update_index(None, idx)
    (tmp_path / "nas/a.png").unlink()
    (tmp_path / "nas/trip/b.png").unlink()
    report = update_index(None, idx)
    assert (report.num_removed, report.missing) == (0, ["nas/a.png", "nas/trip/b.png"])
    assert update_index(None, idx, prune=True).num_removed == 2


def test_exclusions_are_kept_replaced_and_cleared(idx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        assert run_command("index", ["-o", "idx", *arguments]) == 0
        return capsys.readouterr().out

    assert "idx: 3 photos (0 new, 0 read again, 2 gone)" in run("--exclude", "nas/trip")
    assert set(places(idx)) == set(IDS) - {"nas/trip/b.png", "nas/trip/c.png"}
    assert "--exclude " in run()
    assert set(places(idx)) == set(IDS) - {"nas/trip/b.png", "nas/trip/c.png"}
    run("--exclude", "trip", "--exclude", "x.*", "y.*")
    assert set(places(idx)) == {"a.png", "nas/a.png"}
    assert read_overview(idx).settings.exclude == ["trip", "x.*", "y.*"]
    assert "--exclude" not in run("--exclude")
    assert set(places(idx)) == set(IDS)


def test_links_are_followed_for_as_long_as_the_index_says(model: Path, tmp_path: Path) -> None:
    (tmp_path / "home/linked").symlink_to(tmp_path / "nas")
    assert update_index("home", "idx", model, follow_links=True).num_photos == 5
    assert update_index(None, "idx").num_photos == 5
    assert run_command("index", ["-o", "idx", "--no-follow-links", "--prune"]) == 0
    assert update_index(None, "idx").num_photos == 2
    assert not read_overview("idx").settings.follow_links


def test_a_run_that_is_stopped_goes_on_with_all_it_was_told(idx: Path, tmp_path: Path) -> None:
    for number in range(4):
        save_photo(tmp_path / f"disk/{number}.png", 40 + number)

    class StoppedError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        update_index("disk", idx, remove=["home"], exclude=["3.png"], batch_size=1, progress=stop)
    found = places(idx)
    assert set(IDS) < set(found), "what was to be removed goes last"
    assert found["disk/0.png"] == "disk/0.png"
    report = update_index(None, idx)
    assert (report.exclude, len(report.folders)) == (["3.png"], 3)
    assert "disk/2.png" in places(idx)
    assert "disk/3.png" not in places(idx)


def test_an_index_of_one_folder_of_before_goes_on(model: Path, tmp_path: Path) -> None:
    """Its records have no settings, and only the place of its one folder."""
    update_index("home", "idx", model)
    with contextlib.closing(sqlite3.connect("idx/records.sqlite", isolation_level=None)) as records:
        records.execute("DROP TABLE settings")
    assert places(Path("idx")) == {"a.png": "home/a.png", "trip/b.png": "home/trip/b.png"}
    assert check_index("idx") == []
    seen = read_overview("idx")
    assert (seen.settings.last_run, [one.path for one in seen.folders]) == (None, [tmp_path / "home"])
    report = update_index("nas", "idx")
    assert (report.num_added, report.num_changed) == (3, 0)
    assert places(Path("idx")) == IDS


def test_lost_records_are_made_again_from_the_folders_that_are_named(idx: Path) -> None:
    Path("idx/records.sqlite").write_bytes(b"no records")
    with pytest.raises(SearchError, match="of no folder; name a folder of photos"):
        update_index(None, idx)
    assert update_index(["home", "nas"], idx).num_added == 5
    assert set(places(idx)) == {"home/a.png", "home/trip/b.png", *(name for name in IDS if name.startswith("nas/"))}


def test_info_says_what_there_is_and_what_is_wrong(
    idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nas/broken.png").write_bytes(b"\x89PNG")
    update_index(None, idx, exclude=["*.gif"])
    assert run_command("info", ["idx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folders"] == [
        {"path": str(tmp_path / "home"), "label": "", "there": True, "num_photos": 2},
        {"path": str(tmp_path / "nas"), "label": "nas", "there": True, "num_photos": 3},
    ]
    assert (said["num_photos"], said["exclude"], said["follow_links"], said["format"]) == (5, ["*.gif"], False, 1)
    assert (said["model"]["extractor"], said["engine"], said["damage"]) == ("colours", {"name": "faiss", "uri": ""}, [])
    assert [one["id"] for one in said["skipped"]] == ["nas/broken.png"]
    on_disk = sum(path.stat().st_size for path in idx.rglob("*") if path.is_file() and "-shm" not in path.name)
    assert abs(sum(said["size"].values()) - on_disk) < 100_000
    assert said["size"]["model"] == sum(path.stat().st_size for path in (idx / "model").iterdir())
    assert run_command("info", ["idx"]) == 0
    shown = capsys.readouterr().out
    for part in ("5 photos", f"{tmp_path}/nas, as nas/: 3 photos", "--exclude *.gif", "broken.png", "--check -o idx"):
        assert part in shown, part
    for name in ("thumbnails-1.bin", "model/vocabulary.json"):
        os.truncate(idx / name, 10)
        assert any(name in what for what in read_overview(idx).damage)
    (idx / "records.sqlite").write_bytes(b"no records")
    assert any("records.sqlite" in what for what in read_overview(idx).damage)
    assert run_command("info", ["home"]) == 2
    assert "is not an index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: name a folder of photos and one for the index, as in `vsrn index photos/ -o idx`"),
        (["home"], "error: name a folder for the index too, as in `vsrn index home -o idx`."),
        (["idx"], "error: idx is an index; `vsrn index -o idx` goes over its photos again."),
        (["-o", "new"], "error: new is no index yet; name the photos too: `vsrn index PHOTOS -o new`."),
        (["nowhere", "-o", "new"], "error: there is no folder nowhere; name the folder that holds the photos."),
    ],
)
@pytest.mark.usefixtures("idx")
def test_a_command_that_names_too_little_is_told_what_to_do(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["index", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert not Path("new").exists()
