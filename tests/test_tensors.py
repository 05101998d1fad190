"""One file of weights, in every form that people keep, means the same to every network that reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vsrn.config import NetworkConfig
from vsrn.errors import CheckpointError
from vsrn.extractors.base import make_extractor
from vsrn.model.vsepp import ImageNetwork, load_network_weights
from vsrn.tensors import check_fit, read_tensor_file, read_tensors, write_tensors

Tensors = dict[str, torch.Tensor]


def parallel(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def without_counters(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def checkpoint(tensors: Tensors) -> dict[str, object]:
    """What a training script keeps: numbers of numpy, an optimiser, and the weights of several GPUs."""
    return {"epoch": 3, "best": np.float64(71.5), "seed": np.int64(1), "state_dict": parallel(tensors), "optimizer": {}}


FORMS: dict[str, Callable[[Tensors, Path], None]] = {
    "plain.pth": torch.save,
    "legacy.pth": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "plain.safetensors": save_file,
    "parallel.pth": lambda tensors, path: torch.save(parallel(tensors), path),
    "old.pth": lambda tensors, path: torch.save(without_counters(tensors), path),
    "detectron.pth": lambda tensors, path: torch.save({"model": tensors}, path),
    "training.pth": lambda tensors, path: torch.save(checkpoint(tensors), path),
    "old-training.pth": lambda tensors, path: torch.save(
        checkpoint(without_counters(tensors)), path, _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture(scope="module")
def weights() -> Tensors:
    torch.manual_seed(1)
    return timm.create_model("resnet18").state_dict()


@pytest.mark.parametrize("form", FORMS)
def test_an_extractor_and_an_image_network_read_every_form(form: str, weights: Tensors, tmp_path: Path) -> None:
    FORMS["plain.pth"](weights, tmp_path / "plain.pth")
    FORMS[form](weights, tmp_path / form)
    plain = make_extractor("timm:resnet18", tmp_path / "plain.pth")
    assert make_extractor("timm:resnet18", tmp_path / form).fingerprint == plain.fingerprint
    network = ImageNetwork("resnet18")
    load_network_weights(network, NetworkConfig("resnet18", str(tmp_path / form)))
    for name, tensor in network.trunk.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_numbers_of_numpy_do_not_open_the_door_to_anything_else(tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name, content in (("call.pth", Touches()), ("array.pth", np.zeros(3))):
        torch.save({"state_dict": {"a": torch.zeros(1)}, "other": content}, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} is not a readable file of tensors"):
            read_tensor_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_every_fault_is_named_at_once() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "n.num_batches_tracked": torch.tensor(0)}
    held = {"b": torch.zeros(4), "c": torch.tensor([torch.inf]), "d\x1b[2J": torch.zeros(1)}
    with pytest.raises(CheckpointError) as said:
        check_fit(held, wanted, "w.pth", "get the file again.")
    assert str(said.value) == (
        "w.pth does not fit the network: it misses a and has left over d\\x1b[2J and has in another shape b"
        " ((4,), not (3,)) and has with NaN or infinity c; get the file again."
    )


def test_the_same_weights_are_the_same_file(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2).half()}
    metadata = {f"key{number}": 'é"\n' if number else "x" for number in range(8)}
    for number in range(6):
        write_tensors(tmp_path / str(number), tensors, metadata)
    contents = [(tmp_path / str(number)).read_bytes() for number in range(6)]
    assert len(set(contents)) == 1
    read, kept = read_tensors(tmp_path / "0")
    assert kept == metadata
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert load_file(tmp_path / "0").keys() == tensors.keys()
    write_tensors(tmp_path / "plain", tensors, {})
    assert read_tensors(tmp_path / "plain")[1] == {}
