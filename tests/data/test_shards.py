"""Shards, joined, are the store that one process writes: whatever is killed, missing, foreign or empty."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shy import (
    BATCH,
    NUM_PHOTOS,
    UNREADABLE,
    Shy,
    captions_of,
    contents,
    extract_part,
    extract_shards,
    save_photos,
    vsrn_extract,
)

from vsrn.data.photos import PhotoFile
from vsrn.data.region_store import open_region_store
from vsrn.data.shards import Shard, shard_folder, shard_of_folder
from vsrn.errors import ConfigError, DataError
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


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, NUM_PHOTOS + 8])
@pytest.mark.parametrize("bare", [False, True])
def test_joined_shards_are_what_one_process_writes(
    photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path, of: int, bare: bool
) -> None:
    extract_shards(photos, tmp_path, of, bare=bare)
    assert contents(tmp_path) == {}
    (report,) = merge_shards(tmp_path)
    assert contents(tmp_path) == {name: content for name, content in whole.items() if not (bare and name == CAPS)} | (
        {"train.json": BARE_INFO} if bare else {}
    )
    assert report.num_done == NUM_PHOTOS - len(UNREADABLE)
    assert [photo.id for photo in report.skipped] == [f"{number:02}.png" for number in sorted(UNREADABLE)]


CAPS = "train_caps.txt"
BARE_INFO = (
    b'{\n  "extractor": "shy",\n  "fingerprint": "'
    + b"f" * 64
    + b'",\n  "captions_per_image": null,\n  "format": 1\n}\n'
)


def test_a_shard_is_a_store_of_its_own_and_may_be_empty(photos: list[PhotoFile], tmp_path: Path) -> None:
    # 8 batches in 8 shards: the second holds unreadable photos only, and of 30 shards most hold no photo at all.
    report = extract_part(photos, tmp_path, (2, 8))
    assert (report.num_done, len(report.skipped)) == (0, 3)
    assert len(open_region_store(shard_folder(tmp_path, 2, 8), "train")) == 0
    assert extract_part(photos, tmp_path, (1, 30)).num_done == 0
    extract_part(photos, tmp_path, (1, 8))
    assert open_region_store(shard_folder(tmp_path, 1, 8), "train").ids == ["00.png", "02.png"]
    assert extract_part(photos, tmp_path, (2, 8)).already_done


def test_an_interrupted_shard_goes_on(photos: list[PhotoFile], whole: dict[str, bytes], tmp_path: Path) -> None:
    def interrupt(stop: int, split: str, settled: int, total: int) -> None:
        assert (split, total) == ("train", 12)
        if settled >= stop:
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
        merge_shards(tmp_path)
    assert extract_part(photos, tmp_path, (1, 2)).num_resumed == 12
    extract_part(photos, tmp_path, (2, 2))
    merge_shards(tmp_path)
    assert contents(tmp_path) == whole


def test_a_shard_begun_or_finished_otherwise_is_not_gone_on_with(photos: list[PhotoFile], tmp_path: Path) -> None:
    extract_part(photos, tmp_path, (1, 3))
    with pytest.raises(DataError, match=r"from another list of photos or with another --batch-size"):
        extract_part(photos[:-1], tmp_path, (1, 3))
    with pytest.raises(DataError, match=r"from another list of photos or with another --batch-size"):
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
    assert vsrn_extract("--merge", "-o", joined, "--delete-shards") == 0
    said = capsys.readouterr().out
    assert f"{joined}, split 'val': " in said
    assert f"{joined}, split 'test': " in said
    assert contents(joined) == contents(alone)
    assert sorted(path.name for path in joined.iterdir()) == sorted(contents(alone))


def test_options_that_contradict_each_other_are_refused(
    photos: list[PhotoFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos[0].path.parent
    mistakes: list[tuple[list[str | Path], str]] = [
        ([], "no photos are named"),
        (["--merge", folder], f"leave out the folder {folder}"),
        (["--merge", "--shard", "1/2"], "leave out --shard"),
        (["--merge", "--ray", "local"], "leave out --ray"),
        (["--merge", "--captions", "x.json"], "leave out --captions"),
        (["--merge", "--split", "mine"], "leave out --split"),
        (["--merge"], "holds no shards"),
        ([folder, "--delete-shards"], "say it with --merge"),
        ([folder, "--ray", "local", "--shard", "1/2"], "leave out --shard"),
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
