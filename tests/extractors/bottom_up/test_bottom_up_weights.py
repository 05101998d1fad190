"""Key tables complete both ways, and files that are refused with what is wrong with them."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from seeded_detector import milvlg_name, recorded_shapes

from vsrn.errors import CheckpointError
from vsrn.extractors.bottom_up.network import BottomUpNetwork
from vsrn.extractors.bottom_up.weights import ANCHORS, BOX_DELTAS, key_table, may_be_left_over, read_weights


def published_names(naming: str) -> set[str]:
    """Every name in a file of this naming that is not a counter of training or a copy of a constant."""
    names = {name for name in recorded_shapes() if not name.endswith("num_batches_tracked") and name != ANCHORS}
    return names if naming == "Hugging Face" else {milvlg_name(name) for name in names}


@pytest.mark.parametrize("naming", ["Hugging Face", "MILVLG"])
def test_every_published_tensor_is_named_once_and_every_parameter_gets_one(naming: str) -> None:
    table = key_table(naming)
    theirs = [name for names in table.values() for name in names]
    assert len(theirs) == len(set(theirs))
    assert {*theirs, f"{BOX_DELTAS}.weight", f"{BOX_DELTAS}.bias"} == published_names(naming)
    assert {name for name in recorded_shapes() if may_be_left_over(name)} == {
        name for name in recorded_shapes() if name.endswith("num_batches_tracked") or name == ANCHORS
    }
    with torch.device("meta"):
        parameters = {name for name, _ in BottomUpNetwork().named_parameters()}
    assert {name.rpartition(".")[0] for name in parameters} == table.keys()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        read_weights(path)
    assert str(path) in str(refused.value)
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_what_is_missing_and_what_is_left_over_is_listed(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1) for name in published_names("MILVLG")}
    del tensors["roi_heads.box_predictor.attr_linear1.bias"]
    tensors["roi_heads.mask_head.weight"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "near.pth")
    said = refusal(tmp_path / "near.pth")
    assert "it misses roi_heads.box_predictor.attr_linear1.bias and has" in said
    assert "has left over roi_heads.mask_head.weight and has in another shape" in said
    assert "in MILVLG's naming" in said
    torch.save({"conv1\n\x1b[31m.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    said = refusal(tmp_path / "resnet.pth")
    assert re.search(r"misses backbone\.res2\.0\.conv1\.norm\.bias, .* and \d\d\d more", said)


class Opener:
    """What a hostile pickle looks like: unpickled freely, it would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"weights": Opener()}, tmp_path / "hostile.pth")
    assert "is not a readable file of tensors" in refusal(tmp_path / "hostile.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Opener()))
    assert "is not a readable file of tensors" in refusal(tmp_path / "plain.pkl")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_hold_nothing_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)
    refusal(tmp_path / f"there is no {name}")
    refusal(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, {"a": torch.zeros(1), "b": "text"}])
def test_files_of_other_things_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert "names and tensors only" in refusal(tmp_path / "weights.pth")
