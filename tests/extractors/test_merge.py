"""Merging: what is missing, foreign or damaged is refused, and what is killed ends as if unbroken."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from killing import killed_in_a_batch
from shy import (
    BATCH,
    UNREADABLE,
    Shy,
    contents,
    extract_part,
    extract_shards,
    save_photos,
)

from vsrn.data.photos import PhotoFile
from vsrn.data.region_writer import RegionWriter
from vsrn.data.shards import shard_folder
from vsrn.errors import DataError
from vsrn.extractors import merge
from vsrn.extractors.extract import extract
from vsrn.extractors.merge import merge_shards


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[PhotoFile]:
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def whole(photos: list[PhotoFile], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    extract_part(photos, folder)
    return contents(folder)


def test_every_missing_shard_is_named_at_once_and_nothing_is_written(photos: list[PhotoFile], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shards"):
        merge_shards(tmp_path)
    for number in (1, 3, 6):
        extract_part(photos, tmp_path, (number, 6))
    extract(photos, Shy(), tmp_path, "val", shard=(2, 6), batch_size=BATCH)
    with pytest.raises(DataError, match=r"'train' lacks shards 2,4-5 of 6; split 'val' lacks shards 1,3-6 of"):
        merge_shards(tmp_path)
    assert contents(tmp_path) == {}


def test_shards_that_do_not_belong_together_are_refused(photos: list[PhotoFile], tmp_path: Path) -> None:
    """Shard 2 of 3 in another way; the list without its last photo leaves the block of shard 2 as it is."""
    foreign: list[tuple[str, str, Callable[..., object], list[PhotoFile]]] = [
        ("weights", "by different extractors", functools.partial(extract_part, extractor=Shy("0" * 64)), photos),
        ("list", "from different lists of photos", extract_part, photos[:-1]),
        ("batches", r"different --batch-size \(3 and 4\)", functools.partial(extract_part, batch_size=4), photos),
        ("captions", "only some shards of split 'train'", functools.partial(extract_part, bare=True), photos),
    ]
    for name, says, extract_otherwise, of_photos in foreign:
        folder = tmp_path / name
        for number in (1, 3):
            extract_part(photos, folder, (number, 3))
        extract_otherwise(of_photos, folder, (2, 3))
        with pytest.raises(DataError, match=says):
            merge_shards(folder)
        assert not (folder / "train_ims.npy").exists()
    extract_part(photos, tmp_path / "weights", (1, 4))
    with pytest.raises(DataError, match="cut into 3 and 4 shards"):
        merge_shards(tmp_path / "weights")


def test_a_renamed_or_damaged_shard_is_refused(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_shards(photos, tmp_path, 3)
    second, third = shard_folder(tmp_path, 2, 3), shard_folder(tmp_path, 3, 3)
    second.rename(tmp_path / "aside")
    third.rename(second)
    (tmp_path / "aside").rename(third)
    with pytest.raises(DataError, match="is of another shard"):
        merge_shards(tmp_path)
    header = second / "train_shard.json"
    header.write_bytes(header.read_bytes().replace(b'"number": 3', b'"number": 2'))
    with pytest.raises(DataError, match=r"is of another shard; extract shard 3/3 again"):
        merge_shards(tmp_path)
    header = third / "train_shard.json"
    header.write_bytes(header.read_bytes().replace(b'"number": 2', b'"number": 3'))
    with pytest.raises(DataError, match="does not hold the 9 photos of its shard"):
        merge_shards(tmp_path)
    header.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        merge_shards(tmp_path)


def test_where_no_photo_can_be_read_the_merge_says_what_one_process_says(
    photos: list[PhotoFile], tmp_path: Path
) -> None:
    bad = [photo for number, photo in enumerate(photos) if number in UNREADABLE]
    with pytest.raises(DataError) as alone:
        extract_part(bad, tmp_path / "alone")
    extract_shards(bad, tmp_path, 2)
    with pytest.raises(DataError) as joined:
        merge_shards(tmp_path)
    assert str(joined.value) == str(alone.value)
    assert contents(tmp_path) == {}


def test_a_finished_merge_is_found_finished_and_guarded(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    extract_shards(photos, tmp_path, 3)
    merge_shards(tmp_path)
    (again,) = merge_shards(tmp_path)
    assert (again.already_done, again.num_done, len(again.skipped)) == (True, 14, 8)
    # And one process, asked for the same, has nothing left to do.
    assert extract_part(photos, tmp_path).already_done
    assert contents(tmp_path) == whole
    extract_shards(photos[:-1], tmp_path / "other", 3)
    for name, content in whole.items():
        (tmp_path / "other" / name).write_bytes(content)
    with pytest.raises(DataError, match="already holds a split 'train', made from another list of photos"):
        merge_shards(tmp_path / "other")


def test_shards_go_only_when_told_and_only_after_success(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_shards(photos, tmp_path, 3)
    notes = tmp_path / "shards" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt is no shard; move it away"):
        merge_shards(tmp_path, delete_shards=True)
    notes.unlink()
    merge_shards(tmp_path)
    assert len(list((tmp_path / "shards").iterdir())) == 3

    def stop(folder: Path) -> None:
        (folder / "1-of-3" / "train_ims.npy").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            merge_shards(tmp_path, delete_shards=True)
    assert merge_shards(tmp_path, delete_shards=True) == []
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert contents(tmp_path) == whole


def test_a_half_done_merge_and_a_half_done_extraction_do_not_go_on_with_each_other(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They settle skipped photos in another order; going on would lose photos without a word."""
    extract_shards(photos, tmp_path, 3)
    with monkeypatch.context() as killed:
        killed.setattr(RegionWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_shards(tmp_path)
    with pytest.raises(DataError, match="was begun by merging shards"):
        extract_part(photos, tmp_path)
    merge_shards(tmp_path)
    assert contents(tmp_path) == whole


def test_a_shard_replaced_under_a_half_done_merge_is_noticed(
    photos: list[PhotoFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_shards(photos, tmp_path, 3)
    with monkeypatch.context() as killed:
        killed.setattr(RegionWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_shards(tmp_path)
    first = shard_folder(tmp_path, 1, 3)
    ids = first / "train_ids.txt"
    ids.write_text(ids.read_text().replace("00.png", "zz.png"))
    with pytest.raises(DataError, match="changed while they were merged; merge again"):
        merge_shards(tmp_path)
    assert contents(tmp_path) == {}


def test_a_shard_is_never_whole_in_memory(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_shards(photos, tmp_path, 1)
    at_once = []
    append = RegionWriter.append

    def watched(writer: RegionWriter, ids: Sequence[str], *rest: Sequence[object]) -> None:
        at_once.append(len(ids))
        append(writer, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RegionWriter, "append", watched)
    monkeypatch.setattr(merge, "_BYTES_AT_ONCE", 2 * 2 * 3 * 2)  # two rows
    merge_shards(tmp_path)
    assert max(at_once) == 2
    assert sum(at_once) == 14
    assert contents(tmp_path) == whole


# As in test_writer.py, each piece waits for a line.
MERGE_SLOWLY = """
import sys
from pathlib import Path
from vsrn.extractors import merge
from vsrn.data.region_writer import RegionWriter
append = RegionWriter.append
def slowly(*arguments):
    sys.stdin.readline()
    append(*arguments)
    print("piece", flush=True)
RegionWriter.append = slowly
merge._BYTES_AT_ONCE = 1
print("ready", flush=True)
merge.merge_shards(Path(sys.argv[1]), delete_shards=True)
"""


def test_a_merge_killed_at_random_moments_ends_as_if_unbroken(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    extract_shards(photos, tmp_path, 4)
    dice, kills = random.Random(0), 0
    for _ in range(20):
        program = [sys.executable, "-c", MERGE_SLOWLY, str(tmp_path)]
        kills += killed_in_a_batch(program, dice.randrange(1, 5), dice.random() * 0.004)
        if not (tmp_path / "shards").exists():
            break
        for number in range(1, 5):
            assert (shard_folder(tmp_path, number, 4) / "train_ims.npy").exists()
    assert kills >= 3
    if (tmp_path / "shards").exists() or (tmp_path / "shards.merged").exists():
        merge_shards(tmp_path, delete_shards=True)
    assert not (tmp_path / "shards").exists()
    assert contents(tmp_path) == whole
