"""The ways that work is cut and overlapped on a CUDA device, run on the CPU: they change no result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from worlds import make_model, make_store

import vsrn
from vsrn.data.photo_splits import BATCHES_AHEAD, made_ready
from vsrn.data.splits import open_split
from vsrn.devices import PACES, Pace, brought_back, pace_of, tensor_for
from vsrn.encoders.base import Encoder
from vsrn.errors import DataError

CPU, NUMBER = torch.device("cpu"), 23


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the path of CUDA, in small batches."""
    pace = PACES["cuda"]._replace(images_at_once=3, captions_at_once=5, launched_ahead=4)
    monkeypatch.setitem(PACES, "cpu", pace)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    store = make_store(tmp_path_factory.mktemp("world") / "store", {"dev": NUMBER})
    return vsrn.load(make_model(store.parent / "run", store), "cpu")


def store_of(model: Encoder) -> Path:
    assert model.folder is not None
    return model.folder.parent / "store"


def test_only_cuda_reads_ahead() -> None:
    assert pace_of(CPU) == Pace()
    assert pace_of(torch.device("mps")).readers == 0
    assert pace_of(torch.device("cuda:1")).readers > 0


def test_a_split_is_encoded_alike_in_batches_that_are_read_ahead(
    model: Encoder, request: pytest.FixtureRequest
) -> None:
    split, seen = open_split(store_of(model), "dev"), list[int]()
    wanted = model.encode_split(split)
    in_turn = model.encode_split(split, batch_size=3)
    request.getfixturevalue("as_on_cuda")
    found = model.encode_split(split, seen.append)
    np.testing.assert_array_equal(found.images, in_turn.images)
    np.testing.assert_allclose(found.images, wanted.images, atol=1e-6)
    np.testing.assert_allclose(found.captions, wanted.captions, atol=1e-6)
    assert found.device == "cpu"
    assert sum(seen) == NUMBER + len(split.captions)
    assert max(seen) <= 5


def test_regions_are_encoded_alike_in_batches_that_are_read_ahead(
    model: Encoder, request: pytest.FixtureRequest
) -> None:
    features, counts = open_split(store_of(model), "dev").read_images(np.arange(NUMBER))
    features.flags.writeable = False
    wanted = model.encode_regions(features, counts, batch_size=3)
    request.getfixturevalue("as_on_cuda")
    np.testing.assert_array_equal(model.encode_regions(features, counts), wanted)
    assert model.encode_regions(features[:0]).shape == (0, wanted.shape[1])
    broken = features.copy()
    broken[17, 0, 0] = np.nan
    with pytest.raises(DataError, match="image 17"):
        model.encode_regions(broken, counts)


@pytest.mark.usefixtures("as_on_cuda")
def test_an_image_of_zeros_is_named_though_later_batches_were_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"dev": NUMBER})
    features = np.load(store / "dev_ims.npy")
    features[13] = 0
    np.save(store / "dev_ims.npy", features)
    fresh = vsrn.load(make_model(tmp_path / "run", store), "cpu")
    with pytest.raises(DataError, match="row 13 .*zeros"):
        fresh.encode_split(open_split(store, "dev"))


def test_no_more_is_read_ahead_than_a_few_batches() -> None:
    """Memory stays bounded: of many batches only so many are read before the first is used."""
    read, lock = list[int](), threading.Lock()

    def make(number: int) -> int:
        with lock:
            read.append(number)
        return number

    ready = made_ready(([number] for number in range(50)), make, PACES["cuda"].readers)
    next(ready)
    assert len(read) <= 1 + BATCHES_AHEAD
    assert [numbers[0] for _, numbers in ready] == list(range(1, 50))


@pytest.mark.parametrize("launched_ahead", [1, 3, 100])
def test_results_come_back_in_their_order(launched_ahead: int) -> None:
    launched: list[int] = []

    def results() -> Iterator[torch.Tensor]:
        for number in range(10):
            launched.append(number)
            yield torch.full((2,), number, dtype=torch.bfloat16)

    found = brought_back(results(), launched_ahead)
    first = next(found)
    assert len(launched) == min(launched_ahead, 10)
    assert first.dtype == np.float32
    assert [first[0], *(each[0] for each in found)] == list(range(10))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8, np.int64])
def test_an_array_becomes_a_tensor_of_its_type_without_a_warning(dtype: type) -> None:
    array: npt.NDArray[Any] = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for given in (array, array[:, ::-1], array[:, :, :2]):
        for writeable in (True, False):
            copy = given.view()
            copy.flags.writeable = writeable
            assert np.array_equal(tensor_for(CPU, copy).numpy(), given)
            assert tensor_for(CPU, copy).numpy().dtype == dtype
