"""What an index refuses: one sentence that names the thing, and everything stays as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from colours import JOINT_DIM, Colours, colour_model, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.config import EFFICIENTNET, Config, DataConfig, ModelConfig, NetworkConfig
from vsrn.data.region_store import StoreInfo
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, ConfigError, DataError, SearchError
from vsrn.metrics import FloatArray
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, write_model
from vsrn.search.build import update_index
from vsrn.search.writer import IndexWriter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@dataclass(frozen=True)
class Place:
    """An index that works, its photos, and room beside them."""

    idx: Path
    photos: Path
    folder: Path


def other_model(at: Place) -> None:
    update_index(at.photos, at.idx, export_colours(at.folder / "other", seed=1))


def photos_within(at: Place) -> None:
    save_photo(at.photos / "album" / "a.png", 5)
    update_index(at.photos / "album", at.idx)


def swapped_model(at: Place) -> None:
    shutil.rmtree(at.idx / "model")
    export_colours(at.idx / "model", seed=1)
    vsrn.open_index(at.idx)


def foreign_folder(at: Place) -> None:
    (at.folder / "mine").mkdir()
    (at.folder / "mine" / "thesis.tex").touch()
    update_index(at.photos, at.folder / "mine", at.idx / "model")


def order_model(at: Place) -> None:
    stored = colour_model(similarity="order", absolute=True)
    write_model(at.folder / "order", stored)
    update_index(at.photos, at.folder / "new", at.folder / "order")


def model_of_whole_photos(at: Place) -> None:
    network = NetworkConfig(EFFICIENTNET, fine_tune_after=0)
    config = Config(model=ModelConfig(kind="vsepp", feature_dim=1280, joint_dim=8, word_dim=4, network=network))
    stored = StoredModel(config, colour_model().vocabulary, build_model(config, colour_model().vocabulary))
    update_index(at.photos, at.folder / "new", TorchEncoder(stored, "cpu"))


def same_weights_in_another_order(at: Place) -> None:
    """All that tells this model from the index's own is the order in which it reads regions."""
    stored = colour_model()
    config = dataclasses.replace(stored.config, data=DataConfig(region_order="reversed"))
    update_index(at.photos, at.idx, TorchEncoder(stored, "cpu"))
    update_index(at.photos, at.idx, TorchEncoder(dataclasses.replace(stored, config=config), "cpu"))


def model_without_extractor(at: Place) -> None:
    stored = dataclasses.replace(colour_model(), regions=StoreInfo())
    update_index(at.photos, at.folder / "new", TorchEncoder(stored, "cpu"))


def two_writers(at: Place) -> None:
    with IndexWriter(at.idx):
        update_index(at.photos, at.idx)


def no_photos(at: Place) -> None:
    """As when a disk is not mounted: the index must not be emptied."""
    shutil.rmtree(at.photos)
    at.photos.mkdir()
    update_index(at.photos, at.idx)


def cut_vectors(at: Place) -> None:
    os.truncate(at.idx / "vectors-1.f16", 30)
    with vsrn.open_index(at.idx) as index:
        index.search("red")


def cut_regions(at: Place) -> None:
    os.truncate(at.idx / "regions-1.bin", 3)
    with vsrn.open_index(at.idx) as index:
        index.regions("00.png")


def overwritten_records(at: Place) -> None:
    (at.idx / "records.sqlite").write_bytes(b"no database" * 999)
    with vsrn.open_index(at.idx) as index:
        index.search("red")


def missing_thumbnails(at: Place) -> None:
    (at.idx / "thumbnails-1.bin").unlink()
    with vsrn.open_index(at.idx) as index:
        index.thumbnail("00.png")


def no_such_photo(at: Place) -> None:
    with vsrn.open_index(at.idx) as index:
        index.search_like("99.png")


def wrong_size(at: Place) -> None:
    with vsrn.open_index(at.idx) as index:
        index.search_vector(np.ones(JOINT_DIM + 1, np.float32))


def closed(at: Place) -> None:
    index = vsrn.open_index(at.idx)
    index.close()
    index.search("red")


Refusal = Callable[[Place], object]
REFUSALS: list[tuple[Refusal, str]] = [
    (other_model, "was made by another model"),
    (photos_within, "photos/album lies in .*photos, which is searched with all its folders"),
    (swapped_model, "export.json is not the file that the index was made with"),
    (foreign_folder, "holds other files .thesis.tex."),
    (order_model, "compares by order similarity"),
    (model_of_whole_photos, "reads photos whole, by a network of its own"),
    (same_weights_in_another_order, "was made by another model"),
    (model_without_extractor, "does not say which extractor"),
    (two_writers, "being written by another vsrn index"),
    (no_photos, "holds no files"),
    (lambda at: update_index(at.photos, at.idx, explain=False), "made without --no-explain"),
    (lambda at: update_index(at.photos, at.idx, engine="milvus"), "made with --engine faiss"),
    (lambda at: update_index(at.photos, at.idx, uri="http://localhost:1"), "add --engine milvus"),
    (lambda at: update_index(at.photos, at.idx, batch_size=0), "--batch-size is 0"),
    (lambda at: vsrn.open_index(at.photos), "is not an index: it has no index.json"),
    (lambda at: vsrn.open_index(at.idx).search("red", k=0), "k is 0"),
    (cut_vectors, "vectors-1.f16 is shorter than the records say"),
    (cut_regions, "regions-1.bin is shorter than the records say"),
    (overwritten_records, "records.sqlite cannot be used"),
    (missing_thumbnails, "thumbnails-1.bin is missing"),
    (no_such_photo, "holds no photo '99.png'"),
    (wrong_size, r"shape \(9,\) does not fit this index of 8"),
    (closed, "was closed"),
]


@pytest.mark.parametrize(("refusal", "sentence"), REFUSALS, ids=[sentence for _, sentence in REFUSALS])
def test_what_cannot_be_is_refused_and_the_index_stays(
    refusal: Refusal, sentence: str, model: Path, tmp_path: Path
) -> None:
    photos, idx = tmp_path / "photos", tmp_path / "idx"
    for number in range(4):
        save_photo(photos / f"{number:02}.png", number)
    update_index(photos, idx, model)
    with pytest.raises((SearchError, DataError, ConfigError, CheckpointError), match=sentence):
        refusal(Place(idx, photos, tmp_path))
    assert not (tmp_path / "new").exists(), "nothing is begun that cannot be done"
    if refusal is not overwritten_records:
        with contextlib.closing(sqlite3.connect(idx / "records.sqlite")) as records:
            assert records.execute("SELECT count(*) FROM photos").fetchone() == (4,)


FEATURES = Colours.features


def overflowing(extractor: Colours, photo: FloatArray) -> FloatArray:
    """Features that are beyond float16, in which an index keeps them, where the photo is white."""
    return FEATURES(extractor, photo) * np.float32(1e6 if photo.min() == 1 else 1)


def test_a_photo_whose_features_overflow_is_skipped_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Colours, "features", overflowing)
    for number in range(3):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    Image.new("RGB", (24, 16), "white").save(tmp_path / "photos" / "white.png")
    report = update_index(tmp_path / "photos", tmp_path / "idx", model)
    assert [(file.id, "is not finite" in file.reason) for file in report.skipped] == [("white.png", True)]
    assert report.num_photos == 3
