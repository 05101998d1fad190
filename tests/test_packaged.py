"""Names of models: a folder goes first, then what came with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import vsrn.pretrained
from vsrn.errors import CheckpointError
from vsrn.pretrained import DEFAULT_MODEL, find_model


def test_a_name_is_a_folder_or_a_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsrn.pretrained, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"'{DEFAULT_MODEL}' is not part of this installation"):
        find_model()
    (tmp_path / "models" / DEFAULT_MODEL).mkdir(parents=True)
    assert find_model() == tmp_path / "models" / DEFAULT_MODEL
    assert find_model(DEFAULT_MODEL) == find_model()
    Path(DEFAULT_MODEL).mkdir()
    assert find_model(DEFAULT_MODEL) == Path(DEFAULT_MODEL)
    with pytest.raises(CheckpointError, match="there is no folder runs/mine, nor a packaged model"):
        find_model("runs/mine")
