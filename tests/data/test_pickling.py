"""Splits in other processes: they open the store's files again, and get no copy of them."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from worlds import make_store

from vsrn.data.splits import Split, open_split


class Images(Dataset[torch.Tensor]):
    """A data set as a person writes one around a split."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return self.split.num_images

    def __getitem__(self, image: int) -> torch.Tensor:
        return torch.from_numpy(self.split.read_images(np.array([image]))[0][0])


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return open_split(make_store(tmp_path / "store", {"dev": 400}), "dev")


def test_a_pickled_split_is_small_and_the_same(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(split.folder.parent)
    few = open_split("store", "dev").in_order("reversed").only(np.array([7, 3]))
    pickled = pickle.dumps(few)
    assert len(pickled) < 2_000 < (split.folder / "dev_ims.npy").stat().st_size / 10
    monkeypatch.chdir(os.sep)
    for same in (pickle.loads(pickled), copy.deepcopy(split.in_order("reversed").only(np.array([7, 3])))):
        assert same.captions == few.captions
        np.testing.assert_array_equal(same.image_of_caption, few.image_of_caption)
        monkeypatch.chdir(split.folder.parent)
        np.testing.assert_array_equal(same.read_images(np.arange(2))[0], few.read_images(np.arange(2))[0])
        monkeypatch.chdir(os.sep)


def test_spawned_workers_read_what_this_process_reads(split: Split) -> None:
    loader = DataLoader(Images(split), batch_size=100, num_workers=1, multiprocessing_context="spawn")
    read = torch.cat(list(loader))
    np.testing.assert_array_equal(read.numpy(), split.read_images(np.arange(400))[0])
