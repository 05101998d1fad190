"""What regions are called: stored as numbers beside the boxes, read back as words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shy import NUM_PHOTOS, UNREADABLE, Shy, extract_part, save_photos

from vsrn.data.region_store import RegionStore, open_region_store
from vsrn.data.regions import RegionNames
from vsrn.errors import DataError
from vsrn.extractors.base import prepare_photo
from vsrn.extractors.bottom_up.extractor import read_region_names


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    extract_part(save_photos(tmp_path / "photos"), tmp_path / "store", batch_size=4)
    return tmp_path / "store"


def labels(store: RegionStore, row: int) -> list[str] | None:
    return store.names.labels_of(store.read_regions(row))


def test_labels_come_back_as_the_extractor_meant_them(store: Path) -> None:
    """Of every photo: its class by its own colour, its attribute by its place in the batch."""
    opened, shy = open_region_store(store, "train"), Shy()
    readable = [number for number in range(NUM_PHOTOS) if number not in UNREADABLE]
    assert len(opened) == len(readable)
    for row, number in enumerate(readable):
        place = sum(start <= other < number for start in [number // 4 * 4] for other in readable)
        colour = int(prepare_photo(shy, store.parent / "photos" / f"{number:02}.png").sum()) % 3
        expected = [["dark", "light", "red"][colour]]
        if place % 2:
            expected.append("plain light")
        assert labels(opened, row) == expected
    assert opened.regions.classes is not None
    assert opened.counts is not None
    assert all((opened.regions.classes[row, count:] == -1).all() for row, count in enumerate(opened.counts))


def test_without_names_nothing_is_stored(tmp_path: Path) -> None:
    class Silent(Shy):
        names = RegionNames()

    (tmp_path / "photos").mkdir()
    extract_part(save_photos(tmp_path / "photos"), tmp_path / "store", extractor=Silent())
    opened = open_region_store(tmp_path / "store", "train")
    assert (opened.regions.classes, opened.regions.attributes, labels(opened, 0)) == (None, None, None)
    written = {path.name.removeprefix("train_") for path in (tmp_path / "store").iterdir()}
    assert not written & {"classes.npy", "attributes.npy", "names.json"}


def test_a_store_whose_names_do_not_fit_is_refused(store: Path) -> None:
    (store / "train_names.json").write_text(json.dumps({"classes": ["dark"], "attributes": ["plain"]}))
    opened = open_region_store(store, "train")
    with pytest.raises(DataError, match="but only 0 to 0 have names"):
        [labels(opened, row) for row in range(len(opened))]
    (store / "train_names.json").write_text('{"classes": 3}')
    with pytest.raises(DataError, match=r"train_names\.json cannot be read"):
        open_region_store(store, "train")
    (store / "train_names.json").unlink()
    classes = np.load(store / "train_classes.npy")
    np.save(store / "train_classes.npy", classes.astype(np.float32))
    with pytest.raises(DataError, match="holds float32; it must hold whole numbers"):
        open_region_store(store, "train")
    np.save(store / "train_classes.npy", classes[:-1])
    with pytest.raises(DataError, match="has shape"):
        open_region_store(store, "train")


def test_published_lists_of_names_are_read(tmp_path: Path) -> None:
    objects, attributes = tmp_path / "objects_vocab.txt", tmp_path / "attributes_vocab.txt"
    objects.write_text("".join(f"thing {n},thingy {n}\n" for n in range(1600)))
    attributes.write_text("__no_attribute__\n" + "".join(f"kind {n}\n" for n in range(400)))
    names = read_region_names(objects, attributes)
    assert (names.classes[7], names.attributes[399]) == ("thing 7", "kind 399")
    assert names.labels(np.array([1599, 0]), np.array([-1, 0])) == ["thing 1599", "kind 0 thing 0"]
    assert read_region_names(objects) == RegionNames(names.classes)
    objects.write_text("dog\n" * 1599 + "\n")
    attributes.write_text("brown\n" * 399 + "\x1b[31m\n")
    for wrong, says in [
        ({"classes": objects}, r"has 1,599 lines, 1,599 of them names; the detector's classes are 1,600"),
        ({"attributes": attributes}, r"attributes are 400, one a line"),
        ({"classes": tmp_path / "nowhere.txt"}, "cannot be read"),
        ({"classes": tmp_path}, "cannot be read"),
    ]:
        with pytest.raises(DataError, match=says):
            read_region_names(**wrong)
