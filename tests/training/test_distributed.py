"""Two processes with half a batch each against one with the whole: real processes, gloo between them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from worlds import make_store

from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.data.splits import open_split
from vsrn.errors import ConfigError
from vsrn.training.batches import TrainingBatches
from vsrn.training.checkpoint import STATE_FILE, read_log
from vsrn.training.run import prepare_run

STEPS = 4


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = make_store(tmp_path / "store", {"train": 40, "dev": 10})
    captioner = CaptionerConfig(hidden_dim=8, word_dim=8, dropout=0.0, max_tokens=6)
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(joint_dim=16, word_dim=8, normalisation="flickr30k", captioner=captioner),
        train=TrainConfig(batch_size=16, epochs=2, learning_rate=1e-3, learning_rate_drop=[], device="cpu"),
    )


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def take_steps(config: Config, folder: Path, processes: int) -> dict[str, Any]:
    (folder / "config.toml").write_text(config_to_toml(config))
    script = Path(__file__).parents[1].joinpath("helpers", "two_processes.py")
    out = folder / f"{processes}.pt"
    done = launch(
        processes, str(script), str(folder / "config.toml"), str(folder / f"run{processes}"), str(out), str(STEPS)
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = torch.load(out, weights_only=True)
    return result


@pytest.mark.parametrize(
    ("fields", "dropped", "loss"),
    [
        ({"normalisation": "flickr30k"}, 0.0, "triplet"),
        ({"normalisation": "coco"}, 0.0, "learned-in-two-processes"),
        ({"aggregator": "gpo", "caption_aggregator": "gpo", "caption_bidirectional": True}, 0.6, "triplet"),
    ],
    ids=["flickr30k", "coco and a loss that learns", "VSE-infinity's pooling and dropping"],
)
def test_two_processes_take_the_same_steps_as_one(
    config: Config, tmp_path: Path, fields: dict[str, Any], dropped: float, loss: str
) -> None:
    config = replace(config, model=replace(config.model, **fields), train=replace(config.train, drop_regions=dropped))
    # The first case also masks captions of one image, of which a batch holds some.
    masks = fields.get("normalisation") == "flickr30k"
    config = replace(config, loss=replace(config.loss, matching=loss, mask_same_image=masks))
    one, two = take_steps(config, tmp_path, 1), take_steps(config, tmp_path, 2)
    assert ("loss.temperature" in one["steps"][0]["gradients"]) == (loss != "triplet")
    for alone, shared in zip(one["steps"], two["steps"], strict=True):
        torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-5, atol=0)
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(shared["gradients"][name], gradient, rtol=1e-5, atol=1e-9, msg=name)
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-5, atol=1e-9, msg=name)


def test_two_processes_share_every_batch(config: Config) -> None:
    split = open_split(config.data.path, "train")
    vocabulary = prepare_run(config, Path(config.data.path).parent / "any", resume=False).vocabulary
    whole = TrainingBatches(split, vocabulary, 16, seed=3)
    parts = [TrainingBatches(split, vocabulary, 16, seed=3, rank=rank, processes=2) for rank in (0, 1)]
    for batch, *shares in zip(whole.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        together = np.concatenate([share.features.numpy() for share in shares])
        assert sorted(map(bytes, together)) == sorted(map(bytes, batch.features.numpy()))
    with pytest.raises(ConfigError, match="16 does not divide among 3 processes"):
        TrainingBatches(split, vocabulary, 16, seed=3, processes=3)


def test_a_run_of_two_processes_validates_writes_once_and_resumes_bit_for_bit(config: Config, tmp_path: Path) -> None:
    config = replace(
        config,
        model=replace(config.model, captioner=replace(config.model.captioner, dropout=0.2)),
        train=replace(config.train, validate_every=3),
    )
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config))
    whole = launch(2, "-m", "vsrn", "train", str(path), "-o", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr.count("Best rsum") == 1
    assert "deprecated" not in whole.stderr
    assert [row["step"] for row in read_log(tmp_path / "whole") if "validation" in row] == [3, 6, 9, 10]

    script = Path(__file__).parents[1].joinpath("helpers", "stop_after.py")
    cut = launch(2, str(script), "4", "train", str(path), "-o", str(tmp_path / "cut"))
    assert "Stopped at step 4" in cut.stderr, cut.stderr
    resumed = launch(2, "-m", "vsrn", "train", str(path), "-o", str(tmp_path / "cut"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in (STATE_FILE, Path("model.safetensors")):
        ours, theirs = load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_two_processes_report_a_mistake_once_and_end(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(replace(config, data=replace(config.data, train="tarin"))))
    done = launch(2, "-m", "vsrn", "train", str(path), "-o", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "no split 'tarin'" in done.stderr
    assert not (tmp_path / "run").exists()
