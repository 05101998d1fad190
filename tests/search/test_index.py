"""The index against a slow search over embeddings made without it, whatever was done to the folder in between."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import threading
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
from colours import JOINT_DIM, Colours, colour_model, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.data.listing import find_photos
from vsrn.data.region_store import open_region_store
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import SearchError, UnknownFolderError
from vsrn.extractors.extract import extract
from vsrn.files import printable
from vsrn.metrics import FloatArray
from vsrn.model.saved import write_model
from vsrn.search.build import IndexReport, update_index

SENTENCES = ["red", "a green blue", "dark red light", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos in three folders."""
    for number in range(12):
        save_photo(tmp_path / "photos" / ["", "holiday", "holiday/beach"][number % 3] / f"{number:02}.png", number)
    return tmp_path / "photos"


def embeddings_without_an_index(photos: Path, folder: Path) -> dict[str, FloatArray]:
    """By torch, from a region store, as `vsrn extract` writes it."""
    extract(find_photos(photos), Colours(), folder, "all")
    store = open_region_store(folder, "all")
    embeddings = TorchEncoder(colour_model(), device="cpu").encode_regions(
        store.read(range(len(store))).astype(np.float32)
    )
    return dict(zip(store.ids, embeddings, strict=True))


def slow_search(query: FloatArray, embeddings: dict[str, FloatArray], k: int) -> list[tuple[str, float]]:
    scored = [(photo_id, float(query @ embedding)) for photo_id, embedding in embeddings.items()]
    return sorted(scored, key=lambda pair: -pair[1])[:k]


def assert_as_slow(index: vsrn.Index, embeddings: dict[str, FloatArray]) -> None:
    """What the index finds is what a slow search finds; vectors are halves, so scores may differ by 2e-3."""
    assert len(index) == len(embeddings)
    for sentence in SENTENCES:
        query = TorchEncoder(colour_model(), device="cpu").encode_captions([sentence])[0]
        hits = index.search(sentence, k=len(embeddings) + 5)
        expected = slow_search(query, embeddings, len(embeddings))
        assert {hit.id for hit in hits} == set(embeddings)
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=2e-3)
        of_each = dict(expected)
        assert [hit.score for hit in hits] == pytest.approx([of_each[hit.id] for hit in hits], abs=2e-3)
        assert all(hit.path.is_file() for hit in hits)


@pytest.mark.parametrize("engine", ["faiss", "milvus"])
def test_a_search_finds_what_a_slow_one_finds(engine: str, photos: Path, model: Path, tmp_path: Path) -> None:
    report = update_index(photos, tmp_path / "idx", model, engine=engine, batch_size=5)  # type: ignore[arg-type]
    assert report == IndexReport(num_photos=12, num_added=12, folders=[str(photos)])
    embeddings = embeddings_without_an_index(photos, tmp_path / "store")
    with vsrn.open_index(tmp_path / "idx") as index:
        assert_as_slow(index, embeddings)
        by_photo = index.search_image(photos / "holiday" / "04.png", k=3)
        assert by_photo[0].id == "holiday/04.png"
        assert by_photo[0].score == pytest.approx(1, abs=2e-3)
        # The photo itself is not what one asks for by its id.
        assert [hit.id for hit in index.search_like("holiday/04.png", k=2)] == [hit.id for hit in by_photo[1:]]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_to_the_folder_the_index_follows(seed: int, photos: Path, model: Path, tmp_path: Path) -> None:
    """Adding, deleting, changing, touching and moving at random, by the end of which some rows were compacted."""
    chance, generations, number = random.Random(seed), set(), 100
    for _ in range(6):
        for _ in range(chance.randrange(3, 9)):
            number += 1
            here = sorted(path for path in photos.rglob("*") if path.is_file())
            victim = chance.choice(here)
            kind = chance.choice(["add", "delete", "change", "change", "touch", "break"])
            if kind == "add":
                save_photo(photos / f"new{number % 2}" / f"{number}.png", number)
            elif kind == "delete" and len(here) > 3:
                victim.unlink()
            elif kind == "change":
                save_photo(victim, number)
            elif kind == "touch":
                os.utime(victim, ns=(number * 10**9, number * 10**9))
            elif kind == "break":
                victim.write_bytes(b"no photo" * number)
        update_index(photos, tmp_path / "idx", model, batch_size=3, prune=True)
        with vsrn.open_index(tmp_path / "idx") as index:
            broken = {file.id for file in index.skipped()}
            store = tmp_path / f"store{number}"
            expected = embeddings_without_an_index(photos, store)
            skipped = store / "all_skipped.json"
            assert all(name in skipped.read_text() for name in broken)
            assert_as_slow(index, expected)
            for name in expected:
                regions = index.regions(name)
                np.testing.assert_array_equal(regions.boxes, Colours.boxes)
                encoded = index.encoder.encode_regions(regions.features[None])[0]
                np.testing.assert_allclose(encoded, index.vector(name), atol=5e-4)
                thumbnail = Image.open(io.BytesIO(index.thumbnail(name)))
                mean = np.asarray(thumbnail, float).mean(axis=(0, 1))
                with Image.open(index.path(name)) as photo:
                    assert np.abs(mean - np.asarray(photo, float).mean(axis=(0, 1))).max() < 4
        generations |= {path.name for path in (tmp_path / "idx").glob("vectors-*")}
    assert len(generations) > 1, "no compaction happened"


def test_a_compaction_leaves_no_file_of_the_generation_before(photos: Path, model: Path, tmp_path: Path) -> None:
    idx = tmp_path / "idx"
    update_index(photos, idx, model)
    graph = idx / "graph-1-999999.faiss"  # over more rows than there are, so that nobody opens it
    graph.touch()
    update_index(photos, idx)
    assert graph.exists()
    for photo in sorted(path for path in photos.rglob("*") if path.is_file())[2:]:
        photo.unlink()
    update_index(photos, idx, prune=True)
    assert {path.name for path in idx.glob("*-[0-9]*")} == {"vectors-2.f16", "regions-2.bin", "thumbnails-2.bin"}


def test_only_what_changed_is_read_again(photos: Path, model: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", model)
    with vsrn.open_index(tmp_path / "idx") as index:
        rows = {name: index.photo(name).row for name in ("00.png", "03.png", "06.png")}
    os.utime(photos / "00.png", ns=(7, 7))
    save_photo(photos / "03.png", 99)
    report = update_index(photos, tmp_path / "idx")
    assert (report.num_added, report.num_changed, report.num_removed) == (0, 1, 0)
    with vsrn.open_index(tmp_path / "idx") as index:
        assert index.photo("00.png").modified_ns == 7
        assert {name: index.photo(name).row == row for name, row in rows.items()} == {
            "00.png": True,
            "03.png": False,
            "06.png": True,
        }


def test_filters_let_through_what_they_say(photos: Path, model: Path, tmp_path: Path) -> None:
    days = {f"{number:02}.png": f"2024-0{1 + number % 6}-1{number % 10} 12:00:00" for number in range(12)}
    for path in photos.rglob("*.png"):
        moment = datetime.fromisoformat(days[path.name]).timestamp()
        os.utime(path, (moment, moment))
    # A name that only begins like the folder's is not in it.
    save_photo(photos / "holidays" / "50.png", 50)
    # What the camera says goes before the file's own time.
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "1999:12:31 23:59:59"
    Image.new("RGB", (20, 10), "red").save(photos / "old.jpg", exif=exif)
    update_index(photos, tmp_path / "idx", model)
    with vsrn.open_index(tmp_path / "idx") as index:
        taken = {hit.id: index.photo(hit.id).taken for hit in index.search("red", k=99)}
        assert taken["old.jpg"] == "1999-12-31 23:59:59"
        assert all(taken[name] == day for name, day in days.items() if name in taken)
        for folder in (None, "holiday", "holiday/", "holiday/beach", "."):
            for since in (None, date(2024, 3, 12), date(1999, 12, 31)):
                for until in (None, date(2024, 3, 12), date(9999, 12, 31)):
                    inside = "" if folder in (None, ".") else f"{folder}".strip("/") + "/"
                    expected = {
                        name
                        for name, day in taken.items()
                        if name.startswith(inside)
                        and (since is None or date.fromisoformat(day[:10]) >= since)
                        and (until is None or date.fromisoformat(day[:10]) <= until)
                    }
                    hits = index.search("red", 99, vsrn.Where(folder, since, until))
                    assert {hit.id for hit in hits} == expected


def test_a_folder_is_taken_as_a_shell_writes_it_and_one_that_is_not_there_is_an_error(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "only-text").mkdir()
    (photos / "only-text" / "a.jpg").write_text("no photo")
    update_index(photos, tmp_path / "idx", model)
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    below = photos.relative_to(tmp_path)
    with vsrn.open_index(tmp_path / "idx") as index:
        beach = {hit.id for hit in index.search("red", 99) if hit.id.startswith("holiday/beach/")}
        spelled = ["holiday/beach", "./holiday/beach", "holiday//beach/", "holiday/../holiday/beach", "/holiday/beach"]
        spelled += [f"{photos}/holiday/beach", f"./{below}/holiday/beach/", "link/holiday/beach"]
        for folder in spelled:
            assert {hit.id for hit in index.search("red", 99, vsrn.Where(folder))} == beach != set()
        assert {hit.id for hit in index.search("red", 99, vsrn.Where(photos / "holiday" / "beach"))} == beach
        for everything in ("", ".", "./", str(photos), f"{below}/", "link"):
            assert len(index.search("red", 99, vsrn.Where(everything))) == len(index)
        assert index.search("red", 99, vsrn.Where("only-text")) == []
        for folder, hint in [
            ("holidya", " Did you mean 'holiday'?"),
            ("Holiday/Beach", " Did you mean 'holiday/beach'?"),
            ("beach", " Did you mean 'holiday/beach'?"),
            (f"{photos}/holidy", " Did you mean 'holiday'?"),
            ("xyz", ""),
            ("holiday/beach/nowhere/at/all/in/this/index", ""),
            (str(tmp_path), ""),
            ("..", ""),
            ("a\0\udce9\ud800", ""),
        ]:
            with pytest.raises(UnknownFolderError) as error:
                index.search("red", 99, vsrn.Where(folder))
            assert str(error.value) == f"the index has no folder '{printable(folder)}'.{hint}"
        # A service does not say what lies where on its machine.
        for path in (photos / "holiday", below / "holiday", "link"):
            with pytest.raises(UnknownFolderError):
                index.search("red", 99, vsrn.Where(path, paths=False))
        assert {hit.id for hit in index.search("red", 99, vsrn.Where("./holiday/beach/", paths=False))} == beach


def test_hostile_files_are_skipped_and_listed(photos: Path, model: Path, tmp_path: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not a photo")
    (photos / "cut.png").write_bytes((photos / "00.png").read_bytes()[:60])
    (photos / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    (photos / "round").symlink_to(photos)
    os.mkfifo(photos / "pipe.jpg")
    odd = os.fsencode(photos) + b"/caf\xe9\n.png"
    shutil.copy(os.fsencode(photos / "00.png"), odd)
    (photos / "linked.png").symlink_to(save_photo(tmp_path / "elsewhere" / "far.png", 77))
    report = update_index(photos, tmp_path / "idx", model, batch_size=4)
    listed = {file.id for file in report.skipped}
    assert listed == {"empty.jpg", "text.jpg", "cut.png", "nowhere.jpg", "loop.jpg", "pipe.jpg", "linked.png"}
    assert all(str(photos) in file.reason for file in report.skipped)
    assert report.num_photos == 13
    report = update_index(photos, tmp_path / "idx", follow_links=True)
    assert (report.num_photos, report.num_added) == (14, 1)
    assert "linked.png" not in {file.id for file in report.skipped}
    with vsrn.open_index(tmp_path / "idx") as index:
        hit = next(hit for hit in index.search("red", 99) if hit.id.startswith("caf"))
        assert hit.id == "caf\\xe9\\x0a.png"
        assert hit.path.read_bytes() == (photos / "00.png").read_bytes()
        assert index.path("linked.png") == photos / "linked.png"


def test_two_names_that_read_alike_do_not_shadow_each_other(photos: Path, model: Path, tmp_path: Path) -> None:
    save_photo(photos / "a\n.png", 1)
    save_photo(photos / "a\\x0a.png", 2)
    for _ in range(2):
        report = update_index(photos, tmp_path / "idx", model)
        assert report.num_photos == 13
        assert [file.id for file in report.skipped] == ["a\\x0a.png (2)"]
        assert report.skipped[0].reason == "two files read as a\\x0a.png; rename one of them."


def test_a_library_may_move(photos: Path, model: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", model)
    photos.rename(tmp_path / "moved")
    report = update_index(tmp_path / "moved", tmp_path / "idx")
    assert (report.num_photos, report.num_added, report.num_changed) == (12, 0, 0)
    with vsrn.open_index(tmp_path / "idx") as index:
        assert all(hit.path.is_file() for hit in index.search("red", 12))


def test_no_explain_keeps_no_regions(photos: Path, model: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", model, explain=False)
    assert (tmp_path / "idx" / "regions-1.bin").stat().st_size == 0
    with vsrn.open_index(tmp_path / "idx") as index:
        assert_as_slow(index, embeddings_without_an_index(photos, tmp_path / "store"))
        with pytest.raises(SearchError, match="made with --no-explain"):
            index.regions("00.png")


def test_a_run_is_exported_into_its_index(photos: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "run", colour_model())
    with vsrn.build_index(vsrn.load(tmp_path / "run", "cpu"), photos, tmp_path / "idx") as index:
        assert_as_slow(index, embeddings_without_an_index(photos, tmp_path / "store"))
        assert (index.folder / "model").is_dir()
    assert update_index(photos, tmp_path / "idx", tmp_path / "run").num_photos == 12


def test_a_search_needs_no_torch(photos: Path, model: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", model)
    program = (
        "from vsrn.cli import main\n"
        f"try:\n    main(['search', {str(tmp_path / 'idx')!r}, 'a red photo', '-k', '3', '--folder', 'holiday'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "import sys\nprint(sorted({'torch', 'torchvision', 'timm', 'PIL', 'pymilvus', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *hits, loaded = run.stdout.splitlines()
    assert loaded == "[]"
    assert len(hits) == 3
    assert all("/photos/holiday/" in hit for hit in hits)


def test_threads_see_whole_commits_while_photos_come_and_go(photos: Path, model: Path, tmp_path: Path) -> None:
    """Every hit has the score of its own photo, though rows die and move under the searches."""
    update_index(photos, tmp_path / "idx", model)
    for number in range(100, 130):
        save_photo(tmp_path / "all" / f"{number}.png", number)
    known = embeddings_without_an_index(tmp_path / "all", tmp_path / "store_all")
    known |= embeddings_without_an_index(photos, tmp_path / "store")
    wrong: list[str] = []
    searches, done = [0] * 4, threading.Event()

    def ask(worker: int) -> None:
        query = np.random.default_rng(worker).normal(size=JOINT_DIM).astype(np.float32)
        query /= np.linalg.norm(query)
        while not done.is_set():
            for hit in index.search_vector(query, k=9):
                if abs(hit.score - float(query @ known[hit.id])) > 3e-3:
                    wrong.append(hit.id)
            searches[worker] += 1

    with vsrn.open_index(tmp_path / "idx") as index:
        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(len(searches))]
        for thread in threads:
            thread.start()
        try:
            for number in range(100, 130):
                shutil.copy(tmp_path / "all" / f"{number}.png", photos)
                if number % 2:
                    sorted(photos.rglob("*.png"))[number % 5].unlink()
                update_index(photos, tmp_path / "idx", batch_size=1, prune=True)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not wrong
        assert min(searches) > 5
        assert {hit.id for hit in index.search_vector(np.ones(JOINT_DIM, np.float32), 99)} == {
            photo.id for photo in find_photos(photos)
        }
    assert not list((tmp_path / "idx").glob("vectors-1.*")), "no compaction happened"


def test_an_index_that_nobody_may_write_to_can_be_searched(photos: Path, model: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", model)
    disk = tmp_path / "disk"
    disk.mkdir()
    bound = subprocess.run(["mount", "--bind", str(tmp_path / "idx"), str(disk)], capture_output=True, check=False)
    if bound.returncode != 0:
        pytest.skip("only root may make a folder that nobody can write to")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
        with vsrn.open_index(disk) as index:
            assert len(index.search("red", 5)) == 5
    finally:
        subprocess.run(["umount", str(disk)], check=True)
