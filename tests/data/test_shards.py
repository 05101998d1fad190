"""Shards are read as the store that one process writes: whatever is missing, foreign, damaged or empty."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shy import (
    BATCH,
    NUM_PHOTOS,
    UNREADABLE,
    Shy,
    captions_of,
    extract_part,
    extract_shards,
    save_photos,
    vsrn,
    vsrn_extract,
)
from training_runs import assert_same_run, train

from vsrn.cli import main
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig
from vsrn.data.listing import PhotoFile
from vsrn.data.region_store import RegionStore, open_region_store, splits_of
from vsrn.data.regions import ARRAYS, Regions
from vsrn.data.shards import JoinedRows, Shard, shard_folder, shard_of_folder
from vsrn.data.splits import open_split
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.extract import extract


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[PhotoFile]:
    return save_photos(tmp_path_factory.mktemp("photos"))


@given(num_photos=st.integers(0, 500), of=st.integers(1, 60), batch_size=st.integers(1, 40))
def test_blocks_are_disjoint_complete_in_order_and_within_one_batch(num_photos: int, of: int, batch_size: int) -> None:
    places = list(range(num_photos))
    batches = [places[start : start + batch_size] for start in range(0, num_photos, batch_size)]
    blocks = [places[Shard(number, of, batch_size, num_photos).block()] for number in range(1, of + 1)]
    assert [place for block in blocks for place in block] == places
    # Each block is whole batches, and no block has two batches more than another.
    cut = [[batch for batch in batches if set(batch) <= set(block)] for block in blocks]
    assert [[place for batch in block for place in batch] for block in cut] == blocks
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@given(of=st.integers(1, 10**9), data=st.data())
def test_a_shards_folder_says_which_shard_it_is(of: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, of))
    assert shard_of_folder(shard_folder("out", number, of)) == (number, of)


def assert_alike(one: RegionStore, other: RegionStore) -> None:
    """Everything that anybody reads of two stores is the same."""
    assert (len(one), one.ids, one.names, one.info) == (len(other), other.ids, other.names, other.info)
    assert (one.counts is None) == (other.counts is None)
    assert one.counts is None or one.counts.tolist() == np.asarray(other.counts).tolist()
    for array in ARRAYS:
        ours, theirs = (getattr(store.regions, array.name) for store in (one, other))
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert (ours.shape, ours.dtype, ours.ndim) == (theirs.shape, theirs.dtype, theirs.ndim)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert one.names == other.names


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, NUM_PHOTOS + 8])
@pytest.mark.parametrize("bare", [False, True])
def test_shards_are_read_as_what_one_process_writes(
    photos: list[PhotoFile], tmp_path: Path, of: int, bare: bool
) -> None:
    extract_part(photos, tmp_path / "alone", bare=bare)
    extract_shards(photos, tmp_path / "parts", of, bare=bare)
    assert splits_of(tmp_path / "parts") == ["train"]
    alone, parts = (open_region_store(tmp_path / name, "train") for name in ("alone", "parts"))
    assert_alike(parts, alone)
    for row in range(len(alone)):
        assert_same_regions(parts.read_regions(row), alone.read_regions(row))
    if bare:
        with pytest.raises(DataError, match="has regions but no captions"):
            open_split(tmp_path / "parts", "train")
        return
    ours, theirs = (open_split(tmp_path / name, "train") for name in ("parts", "alone"))
    assert (ours.captions, ours.image_ids()) == (theirs.captions, theirs.image_ids())
    assert ours.image_of_caption.tolist() == theirs.image_of_caption.tolist()
    rng = np.random.default_rng(of)
    for images in (rng.permutation(len(alone)), rng.integers(0, len(alone), 5), np.array([], dtype=np.int64)):
        for got, wanted in zip(ours.read_images(images), theirs.read_images(images), strict=True):
            np.testing.assert_array_equal(got, wanted)


def assert_same_regions(one: Regions, other: Regions) -> None:
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(one, array.name), getattr(other, array.name))


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any), data=st.data())
def test_joined_rows_answer_as_one_array(sizes: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = np.arange(sum(sizes) * 6, dtype=np.float16).reshape(-1, 2, 3)
        for place, rows in enumerate(np.split(whole, np.cumsum(sizes)[:-1])):
            np.save(f"{folder}/{place}.npy", rows)
        joined = JoinedRows([np.lib.format.open_memmap(f"{folder}/{place}.npy", "r") for place in range(len(sizes))])
        row = st.integers(-len(whole), len(whole) - 1)
        for wanted in (data.draw(row), data.draw(st.lists(row)), slice(data.draw(row), data.draw(row)), slice(None)):
            index = np.array(wanted, dtype=np.int64) if isinstance(wanted, list) else wanted
            np.testing.assert_array_equal(joined[index], whole[index])
        with pytest.raises(IndexError):
            joined[len(whole)]


def test_more_shards_than_files_a_process_may_open(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_shards(photos, tmp_path, 30)
    program = (
        "import resource, sys\n"
        "from vsrn.data.region_store import open_region_store\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))\n"
        "store = open_region_store(sys.argv[1], 'train')\n"
        "print([store.where(row).split('/')[-2] for row in range(len(store))], store.read(range(len(store))).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "(14, 2, 3)" in done.stdout


def test_a_run_on_shards_is_the_run_on_one_store_and_is_evaluated_alike(
    photos: list[PhotoFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_part(photos, tmp_path / "alone")
    extract_shards(photos, tmp_path / "parts", 5)
    evaluated = []
    for name in ("alone", "parts"):
        config = Config(
            data=DataConfig(path=str(tmp_path / name), validation="train", min_count=1),
            model=ModelConfig(joint_dim=8, word_dim=4, captioner=CaptionerConfig(enabled=False)),
            train=TrainConfig(batch_size=8, epochs=2, learning_rate_drop=[], device="cpu"),
        )
        train(config, tmp_path / f"run-{name}")
        capsys.readouterr()
        assert vsrn("evaluate", tmp_path / f"run-{name}", "--split", "train", "--json") == 0
        evaluated.append(json.loads(capsys.readouterr().out.replace(f"run-{name}", "run")))
    assert_same_run(tmp_path / "run-alone", tmp_path / "run-parts")
    assert str(evaluated[0]).replace("alone", "parts") == str(evaluated[1])


def test_a_row_is_named_by_the_shard_that_it_lies_in(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_shards(photos, tmp_path, 3)
    broken = np.lib.format.open_memmap(shard_folder(tmp_path, 2, 3) / "train_ims.npy", "r+")
    broken[1] = np.nan
    broken.flush()
    store = open_region_store(tmp_path, "train")
    row = len(open_region_store(shard_folder(tmp_path, 1, 3), "train")) + 1
    with pytest.raises(DataError, match=rf"2-of-3/train_ims\.npy: row 1 \({store.ids[row]}\) holds NaN"):
        store.read(range(len(store)))


def test_every_missing_shard_is_named_at_once(photos: list[PhotoFile], tmp_path: Path) -> None:
    for number in (1, 3, 6):
        extract_part(photos, tmp_path, (number, 6))
    with pytest.raises(DataError, match=r"'train' lacks shards 2,4-5 of 6; run `vsrn extract` with --shard"):
        open_region_store(tmp_path, "train")
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        open_region_store(tmp_path, "test")


def test_shards_that_do_not_belong_together_are_refused(photos: list[PhotoFile], tmp_path: Path) -> None:
    """Shard 2 of 3 in another way; the list without its last photo leaves the block of shard 2 as it is."""
    foreign: list[tuple[str, str, Callable[..., object], list[PhotoFile]]] = [
        (
            "weights",
            "shard 2 .* another extractor",
            functools.partial(extract_part, extractor=Shy("0" * 64)),
            photos,
        ),
        ("list", "from another list of photos", extract_part, photos[:-1]),
        ("batches", r"another --batch-size \(4, not 3\)", functools.partial(extract_part, batch_size=4), photos),
        ("captions", "only some shards of split 'train'", functools.partial(extract_part, bare=True), photos),
    ]
    for name, says, extract_otherwise, of_photos in foreign:
        folder = tmp_path / name
        for number in (1, 3):
            extract_part(photos, folder, (number, 3))
        extract_otherwise(of_photos, folder, (2, 3))
        with pytest.raises(DataError, match=says):
            open_region_store(folder, "train")
    extract_part(photos, tmp_path / "weights", (1, 4))
    with pytest.raises(DataError, match="cut into 3 and 4 shards"):
        open_region_store(tmp_path / "weights", "train")


def test_a_renamed_or_damaged_shard_is_refused(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_shards(photos, tmp_path, 3)
    second, third = shard_folder(tmp_path, 2, 3), shard_folder(tmp_path, 3, 3)
    second.rename(tmp_path / "aside")
    third.rename(second)
    (tmp_path / "aside").rename(third)
    with pytest.raises(DataError, match=r"is of another shard; extract shard 2/3 again"):
        open_region_store(tmp_path, "train")
    for folder, number in ((second, 2), (third, 3)):
        header = folder / "train_shard.json"
        header.write_bytes(header.read_bytes().replace(b'"number": %d' % (5 - number), b'"number": %d' % number))
    with pytest.raises(DataError, match=r"does not hold the \d photos of its shard"):
        open_region_store(tmp_path, "train")
    (third / "train_shard.json").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_region_store(tmp_path, "train")


def test_shards_of_which_no_photo_could_be_read_are_no_store(photos: list[PhotoFile], tmp_path: Path) -> None:
    bad = [photo for number, photo in enumerate(photos) if number in UNREADABLE]
    extract_shards(bad, tmp_path, 2)
    with pytest.raises(DataError, match="none of the photos of split 'train'"):
        open_region_store(tmp_path, "train")


def test_a_shard_is_a_store_of_its_own_and_may_be_empty(photos: list[PhotoFile], tmp_path: Path) -> None:
    # 8 batches in 8 shards: the second holds unreadable photos only, and of 30 shards most hold no photo at all.
    report = extract_part(photos, tmp_path, (2, 8))
    assert (report.num_done, len(report.skipped)) == (0, 3)
    assert len(open_region_store(shard_folder(tmp_path, 2, 8), "train")) == 0
    assert extract_part(photos, tmp_path, (1, 30)).num_done == 0
    extract_part(photos, tmp_path, (1, 8))
    assert open_region_store(shard_folder(tmp_path, 1, 8), "train").ids == ["00.png", "02.png"]
    assert extract_part(photos, tmp_path, (2, 8)).already_done


def test_an_interrupted_shard_goes_on(photos: list[PhotoFile], tmp_path: Path) -> None:
    def interrupt(stop: int, split: str, done: int, total: int) -> None:
        assert (split, total) == ("train", 12)
        if done >= stop:
            raise KeyboardInterrupt

    for stop in (0, 3, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            extract(
                photos,
                Shy(),
                tmp_path,
                "train",
                captions=captions_of(photos),
                shard=(1, 2),
                batch_size=BATCH,
                progress=functools.partial(interrupt, stop),
            )
    with pytest.raises(DataError, match=r"lacks shards 1-2 of 2"):
        open_region_store(tmp_path, "train")
    assert extract_part(photos, tmp_path, (1, 2)).num_resumed == 12
    extract_part(photos, tmp_path, (2, 2))
    extract_part(photos, tmp_path / "alone")
    assert_alike(open_region_store(tmp_path, "train"), open_region_store(tmp_path / "alone", "train"))


def test_a_shard_begun_or_finished_otherwise_is_not_gone_on_with(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_part(photos, tmp_path, (1, 3))
    with pytest.raises(DataError, match="from another list of photos"):
        extract_part(photos[:-1], tmp_path, (1, 3))
    with pytest.raises(DataError, match="with another --batch-size"):
        extract_part(photos, tmp_path, (1, 3), batch_size=1)
    for shard in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(ConfigError, match="--shard is"):
            extract_part(photos, tmp_path, shard)


# The command as a user meets it, with the real network.


def test_the_commands_of_a_batch_queue(
    photos: list[PhotoFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, alone, joined = photos[0].path.parent, tmp_path / "alone", tmp_path / "joined"
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "images": [
                    {
                        "filename": photo.id,
                        "split": "val" if number % 3 else "test",
                        "sentences": [{"raw": text} for text in captions_of(photos)[photo.id]],
                    }
                    for number, photo in enumerate(photos)
                ]
            }
        )
    )
    source: list[str | Path] = [folder, "--captions", tmp_path / "dataset.json", "--batch-size", "4"]
    assert vsrn_extract(*source, "-o", alone) == 0
    for number in (2, 1):
        assert vsrn_extract(*source, "-o", joined, "--shard", f"{number}/2", "--json") == 0
    said = capsys.readouterr().out
    assert str(joined / "shards" / "1-of-2") in said
    for split in ("val", "test"):
        assert_alike(open_region_store(joined, split), open_region_store(alone, split))
    for folder in (alone, joined):
        with pytest.raises(SystemExit) as left:
            main(["vocab", str(folder), "--splits", "val", "-o", str(folder / "vocabulary.json")])
        assert left.value.code == 0
    assert (alone / "vocabulary.json").read_bytes() == (joined / "vocabulary.json").read_bytes()


def test_mistakes_about_shards_are_named(
    photos: list[PhotoFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos[0].path.parent
    mistakes: list[tuple[list[str | Path], str]] = [
        ([folder, "--shard", "0/2"], "the first of 2 shards is 1/2"),
        ([folder, "--shard", "one"], "write it as i/n"),
        ([folder, "--shard", ""], "write it as i/n"),
    ]
    for arguments, says in mistakes:
        assert vsrn_extract(*arguments, "-o", tmp_path / "store") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ")
        assert says in said
        assert not (tmp_path / "store").exists()
