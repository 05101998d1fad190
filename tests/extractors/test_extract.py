"""From photos on disk, good and hostile, to a region store that reads right: the whole way, with the real network."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vsrn.cli import main
from vsrn.cli.options import skipped_lines
from vsrn.data.listing import PhotoFile, find_photos
from vsrn.data.region_store import SkippedPhoto, open_region_store
from vsrn.data.splits import open_split
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.base import Prepared, make_extractor, prepare_photo
from vsrn.extractors.extract import extract, extract_karpathy
from vsrn.extractors.grid import GridExtractor


@dataclass(frozen=True)
class Photos:
    """A folder of photos, and which of them can be read."""

    folder: Path
    good: list[str]
    bad: dict[str, str]


def scene(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC)


def save_good(folder: Path) -> list[str]:
    scene(0).save(folder / "plain.jpg")
    scene(1).convert("CMYK").save(folder / "cmyk.jpg")
    scene(2).convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10).save(folder / "grey16.png")
    scene(3).save(folder / "animated.gif", save_all=True, append_images=[scene(4), scene(5)])
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(6).save(folder / "rotated.jpg", exif=exif)
    (folder / "deep").mkdir()
    scene(7).convert("1").save(folder / "deep" / "one-bit.png")
    scene(8).save(folder / "no-extension", "WEBP")
    found = ["animated.gif", "cmyk.jpg", "deep/one-bit.png", "grey16.png", "no-extension"]
    return [*found, "palette.png", "plain.jpg", "rotated.jpg"]


def save_bad(folder: Path) -> dict[str, str]:
    stream = io.BytesIO()
    scene(9).save(stream, "JPEG")
    (folder / "truncated.jpg").write_bytes(stream.getvalue()[:-400])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not a photo")
    bomb = io.BytesIO()
    Image.new("1", (1, 1)).save(bomb, "BMP")
    claims = bytearray(bomb.getvalue())
    claims[18:26] = (60_000).to_bytes(4, "little") * 2
    (folder / "bomb.bmp").write_bytes(claims)
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {
        "bomb.bmp": "pixels",
        "broken-link.jpg": "a link that leads nowhere",
        "empty.jpg": "is empty",
        "notes.txt": "is not an image",
        "pipe.jpg": "is not a regular file",
        "truncated.jpg": "is damaged or cut short",
    }


KINDS = {
    "bomb.bmp": "too-large",
    "broken-link.jpg": "link",
    "empty.jpg": "damaged",
    "notes.txt": "no-photo",
    "pipe.jpg": "unreadable",
    "truncated.jpg": "damaged",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    return Photos(folder, save_good(folder), save_bad(folder))


@pytest.fixture(scope="module")
def grid() -> GridExtractor:
    return GridExtractor()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def dataset(path: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """A Karpathy JSON in which the n-th photo of a split has n % 3 + 1 captions."""
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"caption {count} of  {name}"} for count in range(place % 3 + 1)],
        }
        for split, names in splits.items()
        for place, name in enumerate(names)
    ]
    path.write_text(json.dumps({"images": images}))
    return path


def test_good_photos_have_their_regions_and_the_others_their_reason(
    photos: Photos, grid: GridExtractor, tmp_path: Path
) -> None:
    report = extract(find_photos(photos.folder), grid, tmp_path, "photos", batch_size=3, workers=3)
    assert report.num_done == len(photos.good)
    assert {skipped.id: True for skipped in report.skipped} == dict.fromkeys(photos.bad, True)
    for skipped in report.skipped:
        assert photos.bad[skipped.id] in skipped.reason
        assert str(photos.folder / skipped.id) in skipped.reason
    assert {skipped.id: skipped.kind for skipped in report.skipped} == KINDS
    stored = json.loads((tmp_path / "photos_skipped.json").read_text())
    assert stored == [{"id": skipped.id, "reason": skipped.reason, "kind": skipped.kind} for skipped in report.skipped]
    store = open_region_store(tmp_path, "photos")
    assert store.ids == photos.good
    assert store.features.shape == (len(photos.good), 36, 1280)
    assert store.features.dtype == np.float16
    assert (store.info.extractor, store.info.fingerprint) == ("grid", grid.fingerprint)
    for row, name in enumerate(store.ids):
        (alone,) = grid([prepare_photo(grid, photos.folder / name)])
        assert np.abs(store.features[row] - alone.features).max() < 0.01
        assert store.boxes is not None
        assert np.array_equal(store.boxes[row], alone.boxes)


def test_one_odd_file_is_one_skipped_entry(grid: GridExtractor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "old").mkdir(parents=True)
    scene(0).save(folder / "a.png")
    scene(1).save(folder / "z.png")
    within = os.fsencode(folder / "old")
    Path(os.fsdecode(within + b"/vid\xe9o.mp4")).write_bytes(b"no photo")
    Path(os.fsdecode(within + b"/caf\xe9.jpg")).write_bytes(b"no photo")
    os.utime(folder / "a.png", (13_000_000_000, 13_000_000_000))  # in the year 2381
    report = extract(find_photos(folder), grid, tmp_path / "store", "photos", batch_size=1)
    assert report.num_done == 2
    assert {skipped.id: skipped.kind for skipped in report.skipped} == {
        "old/caf\\xe9.jpg": "damaged",
        "old/vid\\xe9o.mp4": "no-photo",
    }
    again = extract(find_photos(folder), grid, tmp_path / "store", "photos", batch_size=1)
    assert (again.already_done, again.skipped) == (True, report.skipped)


class Stumbling(GridExtractor):
    """Prepares photos as the grid does, but for one of 77 pixels in width, at which it raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def prepare(self, photo: Image.Image) -> Prepared:
        if photo.width == 77:
            raise self.error
        return super().prepare(photo)


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("too large"), RecursionError("too deep"), ValueError("odd\x1b[2J\nshape")]
)
def test_what_an_extractor_raises_at_a_photo_costs_that_photo(error: Exception, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    scene(0).save(folder / "a.png")
    Image.new("RGB", (77, 50)).save(folder / "b.png")
    scene(1).save(folder / "c.png")
    report = extract(find_photos(folder), Stumbling(error), tmp_path / "store", "photos")
    assert open_region_store(tmp_path / "store", "photos").ids == ["a.png", "c.png"]
    (skipped,) = report.skipped
    assert skipped.reason.startswith(str(folder / "b.png"))
    assert skipped.reason.isprintable()


def test_a_list_of_skipped_photos_without_kinds_is_still_read(grid: GridExtractor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    scene(0).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"")
    extract(find_photos(folder), grid, tmp_path / "store", "photos")
    (tmp_path / "store" / "photos_skipped.json").write_text('[{"id": "b.jpg", "reason": "b.jpg is empty."}]')
    report = extract(find_photos(folder), grid, tmp_path / "store", "photos")
    assert report.already_done
    assert [(skipped.id, skipped.kind) for skipped in report.skipped] == [("b.jpg", "")]


@pytest.mark.parametrize(("in_json", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_json_names_photos_in_any_unicode_form(
    in_json: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"], grid: GridExtractor, tmp_path: Path
) -> None:
    folder, name = tmp_path / "photos", "été.png"
    folder.mkdir()
    scene(0).save(folder / unicodedata.normalize(on_disk, name))
    path = dataset(tmp_path / "dataset.json", {"train": [unicodedata.normalize(in_json, name)]})
    (report,) = extract_karpathy(path, folder, grid, tmp_path / "store")
    assert (report.num_done, report.skipped) == (1, [])
    assert open_split(tmp_path / "store", "train").image_ids() == [unicodedata.normalize("NFC", name)]


def test_a_store_whose_ids_are_in_another_unicode_form_is_found_finished(grid: GridExtractor, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    scene(0).save(folder / "été.png")
    extract(find_photos(folder), grid, tmp_path / "store", "photos")
    apart = unicodedata.normalize("NFD", "été.png")
    (tmp_path / "store" / "photos_ids.txt").write_text(f"{apart}\n", encoding="utf-8")
    assert extract(find_photos(folder), grid, tmp_path / "store", "photos").already_done


def test_a_karpathy_json_gives_splits_with_the_captions_of_the_photos_that_were_read(
    photos: Photos, grid: GridExtractor, tmp_path: Path
) -> None:
    named = {
        "train": [photos.good[0], "empty.jpg", photos.good[1], "missing.jpg", photos.good[2]],
        "val": photos.good[3:],
    }
    path = dataset(tmp_path / "dataset.json", named)
    reports = extract_karpathy(path, photos.folder, grid, tmp_path / "store")
    assert [(report.split, report.num_done) for report in reports] == [("train", 3), ("val", 5)]
    assert [skipped.id for skipped in reports[0].skipped] == ["empty.jpg", "missing.jpg"]
    train = open_split(tmp_path / "store", "train")
    assert train.image_ids() == photos.good[:3]
    # Places 0, 2 and 4 of the JSON: 1, 3 and 2 captions.
    assert train.image_of_caption.tolist() == [0, 1, 1, 1, 2, 2]
    assert train.captions[1] == f"caption 0 of {photos.good[1]}"
    assert all(train.image_ids()[image] in train.captions[row] for row, image in enumerate(train.image_of_caption))
    assert not (tmp_path / "store" / "val_skipped.json").exists()


def test_only_the_splits_asked_for_are_extracted(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    path = dataset(tmp_path / "dataset.json", {"train": photos.good[:2], "val": photos.good[2:4]})
    (report,) = extract_karpathy(path, photos.folder, grid, tmp_path / "store", splits=["val"])
    assert (report.split, report.num_done) == ("val", 2)
    assert not list((tmp_path / "store").glob("train*"))
    with pytest.raises(DataError, match=r"has no split 'vall'; it has train, val\. Did you mean 'val'\?"):
        extract_karpathy(path, photos.folder, grid, tmp_path / "store", splits=["vall"])
    with pytest.raises(DataError, match="there is no folder"):
        extract_karpathy(path, photos.folder / "nowhere", grid, tmp_path / "store")


def test_interrupted_anywhere_it_goes_on_to_the_same_store(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    found = find_photos(photos.folder)
    extract(found, grid, tmp_path / "whole", "photos", batch_size=2)

    def interrupt(stop: int, split: str, done: int, total: int) -> None:
        assert (split, total) == ("photos", len(found))
        if done >= stop:
            raise KeyboardInterrupt

    for stop in (0, 2, 6, 10, len(found)):
        stopping = functools.partial(interrupt, stop)
        with pytest.raises(KeyboardInterrupt):
            extract(found, grid, tmp_path / "broken", "photos", batch_size=2, progress=stopping)
        assert not (tmp_path / "broken" / "photos_ims.npy").exists()
    report = extract(found, grid, tmp_path / "broken", "photos", batch_size=2)
    assert report.num_resumed == len(found)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_float32_keeps_what_the_extractor_said(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    found = [PhotoFile(name, photos.folder / name) for name in photos.good[:3]]
    extract(found, grid, tmp_path / "wide", "photos", float32=True)
    extract(found, grid, tmp_path / "half", "photos")
    wide, half = (open_region_store(tmp_path / name, "photos").features for name in ("wide", "half"))
    assert wide.dtype == np.float32
    assert np.array_equal(wide.astype(np.float16), half)
    assert not np.array_equal(wide, half)
    with pytest.raises(DataError, match="made as float32"):
        extract(found, grid, tmp_path / "wide", "photos")


def test_a_finished_split_is_found_finished_and_guarded(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    found = find_photos(photos.folder)
    captions = {photo.id: ["a caption"] for photo in found}
    first = extract(found, grid, tmp_path, "photos", captions=captions)
    before = contents(tmp_path)
    again = extract(found, grid, tmp_path, "photos", captions=captions)
    assert again.already_done
    assert (again.num_done, again.skipped) == (first.num_done, first.skipped)
    others = {photo_id: ["another caption"] for photo_id in captions}
    for asked, with_captions, says in [
        (found[:-1], captions, "another list of photos"),
        ([*found, PhotoFile("more.jpg", photos.folder / "more.jpg")], {**captions, "more.jpg": ["x"]}, "another list"),
        (found[::-1], captions, "another list of photos"),
        (found, others, "with other captions"),
    ]:
        with pytest.raises(DataError, match=f"already holds a split 'photos', made .*{says}"):
            extract(asked, grid, tmp_path, "photos", captions=with_captions)
    other = GridExtractor()
    other.fingerprint = "0" * 64
    with pytest.raises(DataError, match="with another extractor"):
        extract(found, other, tmp_path, "photos", captions=captions)
    assert contents(tmp_path) == before


def test_when_no_photo_can_be_read_nothing_is_left_behind(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    bad = [PhotoFile(name, photos.folder / name) for name in photos.bad]
    with pytest.raises(DataError, match="none of the 6 photos of split 'photos' could be read, the first because"):
        extract(bad, grid, tmp_path, "photos")
    with pytest.raises(DataError, match="none of the 0 photos"):
        extract([], grid, tmp_path, "photos")
    assert contents(tmp_path) == {}


def test_settings_and_captions_that_cannot_be_are_refused(photos: Photos, grid: GridExtractor, tmp_path: Path) -> None:
    found = find_photos(photos.folder)
    with pytest.raises(ConfigError, match="--batch-size is 0"):
        extract(found, grid, tmp_path, "photos", batch_size=0)
    with pytest.raises(ConfigError, match="--workers is -1"):
        extract(found, grid, tmp_path, "photos", workers=-1)
    with pytest.raises(DataError, match=r"animated\.gif of split 'photos' has no captions"):
        extract(found, grid, tmp_path, "photos", captions={})
    with pytest.raises(DataError, match="cannot name a split"):
        extract(found, grid, tmp_path, "../photos")
    assert contents(tmp_path) == {}


# The command as a user meets it.


def vsrn(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["extract", *map(str, arguments)])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_command_lists_what_it_skipped(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vsrn(photos.folder, "-o", tmp_path / "store") == 0
    said = capsys.readouterr().out
    assert "split 'photos': 8 photos" in said
    lines = said.splitlines()
    headings = ["  2 damaged:", "  1 too large:", "  1 unreadable:", "  1 not followed:"]
    assert [line for line in lines if line.endswith(":")] == headings, "damaged photos come first"
    assert lines[-1] == "  1 other file was passed over (1 .txt)"
    assert all(str(photos.folder / name) in said for name in photos.bad if name != "notes.txt")
    assert vsrn(photos.folder, "-o", tmp_path / "store", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["store"] == str(tmp_path / "store")
    (split,) = result["splits"]
    assert (split["split"], split["num_done"], split["already_done"]) == ("photos", 8, True)
    assert [(skipped["id"], skipped["kind"]) for skipped in split["skipped"]] == sorted(KINDS.items())


def test_a_long_list_of_skipped_photos_is_cut_and_names_the_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "photos"
    many.mkdir()
    scene(0).save(many / "good.png")
    for number in range(25):
        (many / f"{number:02}.jpg").write_bytes(b"")
    assert vsrn(many, "-o", tmp_path / "store", "--split", "mine") == 0
    said = capsys.readouterr().out
    assert said.count("is empty") == 20
    assert "and 5 more" in said
    assert f"all that was skipped: {tmp_path / 'store' / 'mine_skipped.json'}" in said


def test_what_needs_an_extra_is_counted_by_its_name() -> None:
    kinds = ["needs-heif"] * 1_200 + ["needs-raw", "needs-video", "no-photo", "damaged"]
    lines = skipped_lines([SkippedPhoto(f"{number}.x", f"why {kind}", kind) for number, kind in enumerate(kinds)])
    assert lines == [
        "  1 damaged:",
        "    why damaged",
        "  1 other file was passed over (1 .x)",
        "  1,200 HEIC photos need the extra heif: run `pip install '.[heif]'` in the checkout",
        "  1 raw file needs the extra raw: run `pip install '.[raw]'` in the checkout",
        "  1 video needs the extra video: run `pip install '.[video]'` in the checkout",
    ]


def test_what_is_no_photo_is_counted_and_hides_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    scene(0).save(folder / "good.jpg")
    for number in range(58):
        (folder / f"IMG_{number}.jpg.json").write_text("{}")
    (folder / "film.MPG").write_bytes(b"\0\0\1\xba")
    (folder / "LICENCE").write_text("words")
    (folder / "zoo.jpg").write_bytes((folder / "good.jpg").read_bytes()[:300])
    assert vsrn(folder, "-o", tmp_path / "store") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  1 damaged:"
    assert str(folder / "zoo.jpg") in lines[2]
    assert lines[3] == "  60 other files were passed over (58 .json, 1 without an ending, 1 .mpg)"


def test_names_reach_the_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pho\x1b[2Jtos"
    folder.mkdir()
    scene(0).save(folder / "good.png")
    (folder / "bad\x1b]0;title\x07.jpg").write_bytes(b"")
    (folder / "odd.e\x1b[m").write_bytes(b"")
    assert vsrn(folder, "-o", tmp_path / "st\x1b[1more") == 0
    said = capsys.readouterr()
    assert "bad\\x1b]0;title\\x07.jpg is empty" in said.out
    assert "1 .e\\x1b[m" in said.out
    assert "st\\x1b[1more, split 'photos'" in said.out
    assert vsrn(folder / "no\x1b[2J\nwhere", "-o", tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "there is no folder" in error.splitlines()[-1]
    assert "\x1b" not in said.out + said.err + error


def test_links_out_of_the_folder_are_followed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, private = tmp_path / "photos", tmp_path / "private"
    folder.mkdir()
    private.mkdir()
    scene(0).save(folder / "a.png")
    scene(1).save(private / "b.png")
    (folder / "holiday").symlink_to(private)
    assert vsrn(folder, "-o", tmp_path / "inside") == 0
    said = capsys.readouterr().out
    assert "split 'photos': 1 photos" in said
    assert "1 not followed:" in said
    assert "--follow-links" in said
    assert vsrn(folder, "-o", tmp_path / "all", "--follow-links") == 0
    assert open_region_store(tmp_path / "all", "photos").ids == ["a.png", "holiday/b.png"]


def test_mistakes_get_one_sentence_and_exit_code_2(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset(tmp_path / "dataset.json", {"train": photos.good})
    mistakes: list[tuple[list[str | Path], str]] = [
        ([photos.folder, "-o", "/proc/store"], "/proc/store cannot be written or read ("),
        ([tmp_path / "nowhere"], "there is no folder"),
        ([photos.folder, "--extractor", "gird"], "Did you mean 'grid'?"),
        ([photos.folder, "--splits", "train", "val"], "with --captions"),
        ([photos.folder, "--captions", path, "--split", "mine"], "has no split 'mine'"),
        ([photos.folder, "--captions", path, "--splits", "tain"], "Did you mean 'train'?"),
        ([photos.folder, "--captions", photos.folder / "notes.txt"], "does not name an image and a caption"),
    ]
    for arguments, says in mistakes:
        where: list[str | Path] = [] if "-o" in arguments else ["-o", tmp_path / "store"]
        assert vsrn(*where, *arguments) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert says in last
        assert not (tmp_path / "store").exists()


SLOWLY = """
import sys
import time
from vsrn.cli import main
from vsrn.data.region_writer import RegionWriter

append = RegionWriter.append


def append_slowly(self, *arguments):
    append(self, *arguments)
    time.sleep(0.5)


RegionWriter.append = append_slowly
main(sys.argv[1:])
"""


def test_killed_and_interrupted_the_command_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, dice = tmp_path / "photos", random.Random(1)
    folder.mkdir()
    for number in range(120):
        scene(number).save(folder / f"{number:03}.png")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert vsrn(folder, "-o", whole, "--batch-size", "4") == 0
    capsys.readouterr()
    # A batch takes half a second longer, so that a test that has to wait for the processor is still in time.
    program = [sys.executable, "-c", SLOWLY, "extract", str(folder), "-o", str(broken), "--batch-size", "4"]
    journal = broken / "photos_journal.jsonl.partial"
    for kill in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        reached = len(journal.read_bytes()) if journal.exists() else 0
        # A shell that puts this run in the background has Ctrl-C ignored, which a child would inherit.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:  # noqa: PLW1509
            while process.poll() is None and (not journal.exists() or len(journal.read_bytes()) <= reached + 200):
                time.sleep(0.005)
            time.sleep(dice.random() * 0.05)
            process.send_signal(kill)
            _, said = process.communicate()
        assert process.returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
        assert kill == signal.SIGKILL or "The same command goes on" in said
        assert not (broken / "photos_ims.npy").exists()
    assert vsrn(folder, "-o", broken, "--batch-size", "4", "--json") == 0
    (split,) = json.loads(capsys.readouterr().out)["splits"]
    assert split["num_done"] == 120
    assert split["num_resumed"] > 8
    assert contents(broken) == contents(whole)


def test_real_photos_are_all_read(shared: Path, tmp_path: Path) -> None:
    found = find_photos(shared / "flickr8k" / "images")
    assert len(found) == 7000
    report = extract(found[:40], make_extractor("grid"), tmp_path, "photos")
    assert (report.num_done, report.skipped) == (40, [])
    features = np.asarray(open_region_store(tmp_path, "photos").features, np.float32)
    assert np.isfinite(features).all()
    # Two photos differ more than two windows of one photo: the regions say something.
    means = features.mean(axis=1)
    assert np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(40, dtype=bool)].min() > 1
