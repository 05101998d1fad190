"""The order of regions, through everything that reads them, against stores that were written in that order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import FEATURE_DIM, make_model, make_store

from vsrn.config import CaptionerConfig, Config, RegionOrder
from vsrn.data.splits import Split, in_order, open_split
from vsrn.encoders.base import Encoder
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.saved import StoredModel, read_model
from vsrn.training.batches import TrainingBatches
from vsrn.training.run import open_training_splits

ORDERS: list[RegionOrder] = ["reversed", "shuffled"]


def random_regions(images: int, regions: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(images, regions, FEATURE_DIM)).astype(np.float32)


def rewrite(store: Path, folder: Path, order: RegionOrder) -> Path:
    """A copy of a store whose rows lie on disk in an order, some of their regions being padding in both."""
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for path in store.glob("*_ims.npy"):
        counts = counts_of(len(np.load(path)))
        np.save(folder / path.name, in_order(np.load(path), counts, order))
    return folder


def counts_of(images: int) -> IntArray:
    return np.arange(images) % 4 + 2


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Path]:
    store = make_store(tmp_path / "stored", {"train": 20, "dev": 8})
    for split, images in (("train", 20), ("dev", 8)):
        np.save(store / f"{split}_counts.npy", counts_of(images))
    return {"stored": store} | {order: rewrite(store, tmp_path / order, order) for order in ORDERS}


def reading(model: Path, order: RegionOrder) -> StoredModel:
    stored = read_model(model)
    config = replace(stored.config, data=replace(stored.config.data, region_order=order))
    return replace(stored, config=config)


@given(images=st.integers(1, 5), regions=st.integers(1, 9), data=st.data(), order=st.sampled_from(ORDERS))
def test_every_image_keeps_its_regions_and_padding_stays_last(images: int, regions: int, data: Any, order: Any) -> None:
    features = random_regions(images, regions)
    counts = np.array(data.draw(st.lists(st.integers(1, regions), min_size=images, max_size=images)))
    ordered = in_order(features, counts, order)
    for image, count in enumerate(counts):
        assert np.array_equal(ordered[image, count:], features[image, count:])
        before, after = features[image, :count], ordered[image, :count]
        assert sorted(map(bytes, before)) == sorted(map(bytes, after))
        if order == "reversed":
            assert np.array_equal(after, before[::-1])
        # Alone, without padding, and half as precise, it is the same image; without a region, the same order.
        alone = in_order(before[None].astype(np.float16), None, order)[0]
        assert np.array_equal(alone, after.astype(np.float16))
        without = in_order(np.delete(before, count // 2, axis=0)[None], None, order)[0]
        assert np.array_equal(without, np.delete(after, (after == before[count // 2]).all(1).nonzero()[0], axis=0))


def test_shuffling_differs_from_image_to_image_and_moves_every_place_anywhere() -> None:
    place = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None], (400, 5, 1))
    features = np.concatenate([place, random_regions(400, 5)], axis=2)
    shuffled = in_order(features, None, "shuffled")[..., 0].astype(int)
    seen = np.stack([np.bincount(column, minlength=5) for column in shuffled.T])
    # 80 times each by chance, with a standard deviation of 8.
    assert seen.min() > 40
    assert seen.max() < 120
    # Of the 120 orders, all but about 4.
    assert len({tuple(row) for row in shuffled}) > 105


@pytest.mark.parametrize("order", ORDERS)
def test_training_and_validation_read_what_a_store_in_that_order_holds(stores: dict[str, Path], order: Any) -> None:
    def splits(store: Path, order: RegionOrder) -> Any:
        return open_training_splits(replace(Config(), data=replace(Config().data, path=str(store), region_order=order)))

    ours, wanted = splits(stores["stored"], order), splits(stores[order], "stored")
    vocabulary = read_model(make_model(stores["stored"].parent / "model", stores["stored"])).vocabulary
    batches = [TrainingBatches(train, vocabulary, 8, seed=3).epoch(0) for train, _ in (ours, wanted)]
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one.features, other.features)
    images = np.array([5, 0, 3])
    for one, other in zip(ours[1].read_images(images), wanted[1].read_images(images), strict=True):
        assert np.array_equal(one, other)
    part = ours[1].only(images)
    assert np.array_equal(part.read_images(np.arange(3))[0], wanted[1].read_images(images)[0])


def embeddings(encoder: Encoder, split: Split) -> FloatArray:
    images: FloatArray = encoder.encode_split(split).images
    return images


@pytest.mark.parametrize("order", ORDERS)
def test_a_trained_model_reads_in_its_order_by_every_way(stores: dict[str, Path], tmp_path: Path, order: Any) -> None:
    captioner = CaptionerConfig(hidden_dim=8, word_dim=4, max_tokens=6)
    model = make_model(tmp_path / "model", stores["stored"], captioner=captioner)
    split, there = open_split(stores["stored"], "dev"), open_split(stores[order], "dev")
    wanted = embeddings(TorchEncoder(reading(model, "stored"), "cpu"), there)
    stored = reading(model, order)
    encoder = TorchEncoder(stored, "cpu")
    assert np.abs(wanted - embeddings(TorchEncoder(reading(model, "stored"), "cpu"), split)).max() > 1e-3
    np.testing.assert_array_equal(embeddings(encoder, split), wanted)
    # A split that was already put in an order is not put in it twice.
    np.testing.assert_array_equal(embeddings(encoder, split.in_order(order)), wanted)
    features, counts = split.read_images(np.arange(8))
    np.testing.assert_allclose(encoder.encode_regions(features, counts), wanted, atol=1e-6)
    export_onnx(stored, tmp_path / "onnx")
    exported = OnnxEncoder(tmp_path / "onnx", threads=1)
    np.testing.assert_allclose(exported.encode_regions(features, counts), wanted, atol=1e-5)
    # What is said of regions is said in the order they were given in: row r is of region r.
    as_read, _ = there.read_images(np.arange(8))
    as_stored = TorchEncoder(reading(model, "stored"), "cpu")
    plain = as_stored.reasoned_regions(as_read, counts)[1]
    said = [caption.score for caption in as_stored.write_captions(as_read, counts)]
    for reader in (encoder, exported):
        pooled, reasoned = reader.reasoned_regions(features, counts)
        np.testing.assert_allclose(pooled, wanted, atol=1e-5)
        assert [caption.score for caption in reader.write_captions(features, counts)] == pytest.approx(said, abs=1e-5)
        for image, count in enumerate(counts_of(8)):
            for place in range(count):
                read = np.flatnonzero((as_read[image] == features[image, place]).all(axis=1))[0]
                np.testing.assert_allclose(reasoned[image, place], plain[image, read], atol=1e-5)
