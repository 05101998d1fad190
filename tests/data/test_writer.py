"""The writer: whatever kills it, the store that comes out is the one an unbroken run would have written."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import killed_in_a_batch

from vsrn.data.region_store import SkippedPhoto, open_region_store
from vsrn.data.region_writer import RegionWriter, digest_of
from vsrn.data.regions import ARRAYS, Regions
from vsrn.data.shards import SplitHeader
from vsrn.errors import DataError

IDS = [f"{number}.jpg" for number in range(60)]


def header(ids: list[str] = IDS, extractor: str = "invented", scores: bool = True) -> SplitHeader:
    return SplitHeader(extractor, "f" * 64, digest_of(ids), num_regions=3, feature_dim=5, has_scores=scores)


def regions_of(number: int) -> Regions:
    """What this photo's regions are, by a rule that needs no network."""
    generator = np.random.default_rng(number)
    boxes, scores = generator.random((3, 4), np.float32), generator.random(3, np.float32)
    return Regions(generator.random((3, 5), np.float32), boxes, scores)


def write_on(folder: Path, stop: int = len(IDS), batch: int = 4, finish: bool = True) -> None:
    """Go on from where the split is; every seventh photo is skipped."""
    with RegionWriter(folder, "train", header()) as writer:
        for start in range(writer.num_seen, stop, batch):
            numbers = range(start, min(start + batch, stop))
            kept = [number for number in numbers if number % 7]
            skipped = [SkippedPhoto(IDS[number], "it is a seventh") for number in numbers if number % 7 == 0]
            writer.append([IDS[number] for number in kept], [regions_of(number) for number in kept], skipped)
        if finish:
            writer.finish([[f"caption of {photo_id}"] * 2 for photo_id in writer.ids])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken")
    write_on(folder)
    return contents(folder)


def test_what_was_written_is_what_the_store_reads(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    write_on(tmp_path)
    assert sorted(unbroken) == [
        "train.json",
        "train_boxes.npy",
        "train_caps.txt",
        "train_ids.txt",
        "train_ims.npy",
        "train_scores.npy",
        "train_skipped.json",
    ]
    store = open_region_store(tmp_path, "train")
    kept = [number for number in range(60) if number % 7]
    assert store.ids == [IDS[number] for number in kept]
    assert store.features.dtype == np.float16
    assert store.boxes is not None
    assert store.regions.scores is not None
    for row, number in enumerate(kept):
        regions = regions_of(number)
        assert np.array_equal(store.features[row], regions.features.astype(np.float16))
        assert np.array_equal(store.boxes[row], regions.boxes)
        assert np.array_equal(store.regions.scores[row], np.asarray(regions.scores))
    assert (store.info.extractor, store.info.captions_per_image) == ("invented", 2)
    skipped = json.loads((tmp_path / "train_skipped.json").read_text())
    assert skipped == [{"id": f"{number}.jpg", "reason": "it is a seventh"} for number in range(0, 60, 7)]


def test_the_number_of_captions_is_one_number_or_one_per_row(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, "uneven", header(IDS[:2])) as writer:
        writer.append(IDS[:2], [regions_of(0), regions_of(1)])
        writer.finish([["one", "two"], ["three"]])
    assert open_region_store(tmp_path, "uneven").info.captions_per_image == [2, 1]
    assert (tmp_path / "uneven_caps.txt").read_text() == "one\ntwo\nthree\n"
    with RegionWriter(tmp_path, "bare", header(IDS[:1], scores=False)) as writer:
        writer.append(IDS[:1], [regions_of(0)])
        writer.finish()
    store = open_region_store(tmp_path, "bare")
    assert (store.info.captions_per_image, store.regions.scores) == (None, None)
    assert not (tmp_path / "bare_caps.txt").exists()


def write_varying(folder: Path, counts: list[int], stops: list[int]) -> None:
    """Photos with so many regions each; the writer is left and opened anew at each stop, then finished."""
    ids = IDS[: len(counts)]
    for start, end in itertools.pairwise([0, *stops, len(counts)]):
        with RegionWriter(folder, "train", header(ids)) as writer:
            assert writer.num_seen == start
            cut = [regions_of(number) for number in range(start, end)]
            short = [
                Regions(full.features[:count], full.boxes[:count], np.asarray(full.scores)[:count])
                for full, count in zip(cut, counts[start:end], strict=True)
            ]
            writer.append(ids[start:end], short)
            if end == len(counts):
                writer.finish()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.data())
def test_photos_may_have_fewer_regions_than_the_most(counts: list[int], data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.integers(1, len(counts)), unique=True, max_size=3).map(sorted))
    stops = [stop for stop in stops if stop < len(counts)]
    with tempfile.TemporaryDirectory() as folder:
        write_varying(Path(folder), counts, stops)
        assert not list(Path(folder).glob("*.partial"))
        store = open_region_store(folder, "train")
        assert (Path(folder) / "train_counts.npy").exists() == (set(counts) != {3})
        assert counts == ([3] * len(counts) if store.counts is None else store.counts.tolist())
        assert store.boxes is not None
        for row, count in enumerate(counts):
            full = regions_of(row)
            assert np.array_equal(store.features[row, :count], full.features[:count].astype(np.float16))
            assert np.array_equal(store.boxes[row, :count], full.boxes[:count])
            assert not store.features[row, count:].any()
            assert not store.boxes[row, count:].any()


@pytest.mark.parametrize("stop", [0, 1, 4, 28, 56, 60])
def test_a_stopped_split_is_invisible_and_goes_on(tmp_path: Path, unbroken: dict[str, bytes], stop: int) -> None:
    write_on(tmp_path, stop, finish=False)
    assert all(name.endswith(".partial") for name in contents(tmp_path))
    write_on(tmp_path)
    assert contents(tmp_path) == unbroken


def test_what_was_not_acknowledged_is_cut_off(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    write_on(tmp_path, 20, finish=False)
    for name in ("train_ims.npy", "train_scores.npy"):
        with (tmp_path / f"{name}.partial").open("ab") as file:
            file.write(b"rows that no line of the journal speaks of")
    with (tmp_path / "train_journal.jsonl.partial").open("ab") as file:
        file.write(b'{"ids":["20.jpg"],"ski')
    write_on(tmp_path)
    assert contents(tmp_path) == unbroken


def test_a_journal_whose_first_line_is_torn_is_begun_again(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    (tmp_path / "train_journal.jsonl.partial").write_bytes(b'{"extractor":"inv')
    write_on(tmp_path)
    assert contents(tmp_path) == unbroken


@pytest.mark.parametrize("renamed", range(7))
def test_a_kill_between_two_renamings_is_made_good(tmp_path: Path, unbroken: dict[str, bytes], renamed: int) -> None:
    """Undo the last renamings of a finished split by hand, as if it had been killed before them."""
    write_on(tmp_path, finish=False)
    journal = (tmp_path / "train_journal.jsonl.partial").read_bytes()
    write_on(tmp_path)
    order = [*sorted(name for name in unbroken if name != "train_ims.npy"), "train_ims.npy"]
    for name in order[renamed:]:
        (tmp_path / name).rename(tmp_path / f"{name}.partial")
    publish = json.dumps({"publish": [name.removeprefix("train") for name in order]}, separators=(",", ":"))
    (tmp_path / "train_journal.jsonl.partial").write_bytes(journal + publish.encode() + b"\n")
    with pytest.raises(DataError, match="already holds a split 'train'"):
        RegionWriter(tmp_path, "train", header())
    assert contents(tmp_path) == unbroken


# Each batch waits for a line, so that however slow the machine, only what was asked for can be written before the kill.
TESTS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
WRITE_SLOWLY = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
import test_writer
append = test_writer.RegionWriter.append
def slowly(*arguments):
    sys.stdin.readline()
    append(*arguments)
    print("batch", flush=True)
test_writer.RegionWriter.append = slowly
print("ready", flush=True)
test_writer.write_on(Path(sys.argv[1]), batch=2)
"""


def test_killed_at_random_moments_it_ends_as_if_unbroken(tmp_path: Path) -> None:
    dice = random.Random(0)
    kills = 0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_on(whole, batch=2)
    program = [sys.executable, "-c", WRITE_SLOWLY.format(tests=TESTS), str(broken)]
    for _ in range(40):
        kills += killed_in_a_batch(program, dice.randrange(7), dice.random() * 0.004)
        if (broken / "train_ims.npy").exists():
            break
    if not (broken / "train_ims.npy").exists():
        write_on(broken, batch=2)
    assert kills >= 3
    with pytest.raises(DataError, match="already holds"):  # and what a last kill left to rename is renamed
        RegionWriter(broken, "train", header())
    assert contents(broken) == contents(whole)


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
import test_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    test_writer.write_on(Path(sys.argv[1]))
except test_writer.DataError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 150, 400, 700, 1500, 1800])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, unbroken: dict[str, bytes], limit: int) -> None:
    """The system refuses to let any file grow beyond `limit` bytes; some limits fall inside a row or a line."""
    program = [sys.executable, "-c", FILL_THE_DISK.format(tests=TESTS)]
    store = tmp_path / "store"
    done = subprocess.run([*program, str(store), str(limit)], capture_output=True, text=True, check=True)
    assert f"no space left on the disk of {store}" in done.stdout
    assert "run the same command again" in done.stdout
    assert not (store / "train_ims.npy").exists()
    write_on(store)
    assert contents(store) == unbroken


def test_a_split_begun_otherwise_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_on(tmp_path, 8, finish=False)
    before = contents(tmp_path)
    for other, says in [
        (header(IDS[:-1]), "another list of photos"),
        (header([IDS[1], IDS[0], *IDS[2:]]), "another list of photos"),
        (header(extractor="other"), "another extractor"),
    ]:
        with pytest.raises(DataError, match=says) as refusal:
            RegionWriter(tmp_path, "train", other)
        assert f"delete {tmp_path / 'train'}_*.partial" in str(refusal.value)
    assert contents(tmp_path) == before
    with RegionWriter(tmp_path, "val", header(extractor="other")) as writer:
        assert writer.num_seen == 0


def test_two_writers_of_one_split_do_not_meet(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, "train", header()):
        with pytest.raises(DataError, match="being written by another"):
            RegionWriter(tmp_path, "train", header())
        RegionWriter(tmp_path, "val", header()).close()
    RegionWriter(tmp_path, "train", header()).close()


def test_files_that_contradict_their_journal_are_refused(tmp_path: Path) -> None:
    write_on(tmp_path, 20, finish=False)
    features = tmp_path / "train_ims.npy.partial"
    os.truncate(features, features.stat().st_size - 1)
    with pytest.raises(DataError, match="shorter than its journal says"):
        RegionWriter(tmp_path, "train", header())
    journal = tmp_path / "train_journal.jsonl.partial"
    journal.write_bytes(journal.read_bytes().replace(b'"ids"', b'"idz"'))
    with pytest.raises(DataError, match="cannot be read"):
        RegionWriter(tmp_path, "train", header())


def test_regions_of_another_shape_are_refused(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, "train", header()) as writer:
        wrong = Regions(np.zeros((3, 6), np.float32), np.zeros((3, 4), np.float32), np.zeros(3, np.float32))
        with pytest.raises(DataError, match=r"rows of shape \(3, 5\), not \(3, 6\)"):
            writer.append(["a.jpg"], [wrong])


@pytest.mark.parametrize("split", ["", "../train", "a/b", ".hidden", "a b", "a\n"])
def test_a_split_cannot_be_named_so_that_files_land_elsewhere(tmp_path: Path, split: str) -> None:
    with pytest.raises(DataError, match="cannot name a split"):
        RegionWriter(tmp_path, split, header())
    assert contents(tmp_path) == {}


def test_a_discarded_split_leaves_nothing(tmp_path: Path) -> None:
    with RegionWriter(tmp_path, "train", header()) as writer:
        writer.append(["1.jpg"], [regions_of(1)])
        writer.discard()
    assert contents(tmp_path) == {}


def test_a_file_in_the_way_of_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"x")
    for folder in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(DataError, match="a file is in its way"):
            RegionWriter(folder, "train", header())


@pytest.mark.parametrize(
    "name", ["train_journal.jsonl.partial", "train_ims.npy.partial", "train_ids.txt.partial", "train.json.partial"]
)
def test_a_link_in_somebody_elses_store_is_not_written_through(tmp_path: Path, name: str) -> None:
    precious, store = tmp_path / "precious", tmp_path / "store"
    precious.write_bytes(b"precious")
    store.mkdir()
    (store / name).symlink_to(precious)
    with pytest.raises(DataError, match=f"{name} is a link"):
        write_on(store)
    assert precious.read_bytes() == b"precious"


def test_a_journal_that_renames_files_of_other_folders_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_on(store, stop=8, finish=False)
    (store / "train").mkdir()
    (tmp_path / "other.partial").write_bytes(b"other")
    with (store / "train_journal.jsonl.partial").open("ab") as journal:
        journal.write(b'{"publish":["/../../other"]}\n')
    with pytest.raises(DataError, match=r"train_journal\.jsonl\.partial cannot be read"):
        write_on(store)
    assert (tmp_path / "other.partial").read_bytes() == b"other"


def test_every_optional_array_of_the_table_has_a_flag_in_the_header_and_every_file_its_own_name() -> None:
    # Of the others, published features may have no boxes, and no ids.
    optional = {f"has_{array.name}" for array in ARRAYS if array.optional} | {"has_boxes", "has_ids"}
    assert optional == {field for field in SplitHeader.__struct_fields__ if field.startswith("has_")}
    assert {array.suffix for array in ARRAYS} == {
        "_ims.npy",
        "_boxes.npy",
        "_scores.npy",
        "_classes.npy",
        "_attributes.npy",
    }
