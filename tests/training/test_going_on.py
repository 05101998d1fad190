"""Going on: longer, at another rate, with moved data, and from another model's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Silent, train
from worlds import make_store

from vsrn.cli import run_command
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig, config_to_toml, read_config
from vsrn.data.vocabulary import read_vocabulary
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.model.base import MatchingModel
from vsrn.model.saved import read_any_model, write_model
from vsrn.training.checkpoint import STATE_FILE, read_log
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12})
    captioner = CaptionerConfig(hidden_dim=8, word_dim=8, max_tokens=6)
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=captioner),
        train=TrainConfig(
            batch_size=16, epochs=2, learning_rate=5e-3, learning_rate_drop=[3], validate_every=0, device="cpu"
        ),
    )


def with_train(config: Config, **fields: Any) -> Config:
    return replace(config, train=replace(config.train, **fields))


def assert_same_state(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / STATE_FILE), load_file(other / STATE_FILE)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_run_that_goes_on_for_more_epochs_equals_one_that_had_them_from_the_start(
    config: Config, tmp_path: Path
) -> None:
    train(with_train(config, epochs=4), tmp_path / "whole")
    assert train(config, tmp_path / "run").finished
    assert train(with_train(config, epochs=4), tmp_path / "run", resume=True).finished
    assert_same_state(tmp_path / "whole", tmp_path / "run")
    assert read_config(tmp_path / "run/config.toml").train.epochs == 4
    notes = [row["note"] for row in read_log(tmp_path / "run") if "note" in row]
    assert any(note.startswith("train.epochs was 2 and is 4 from step") for note in notes)


def test_a_run_goes_on_at_another_rate(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=2)
    slower = with_train(config, learning_rate=1e-4, learning_rate_drop=[], validate_every=1, patience=90)
    train(slower, tmp_path / "run", resume=True)
    rates = {row["step"]: row["learning_rate"] for row in read_log(tmp_path / "run") if "loss" in row}
    assert {rate for step, rate in rates.items() if step > 2} == {1e-4}


def test_a_run_goes_on_where_its_data_moved_and_not_with_other_data(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    train(config, tmp_path / "run", stop_after=3)
    shutil.move(tmp_path / "store", tmp_path / "moved")
    moved = replace(config, data=replace(config.data, path=str(tmp_path / "moved")))
    captions = (tmp_path / "moved/train_caps.txt").read_text()
    (tmp_path / "moved/train_caps.txt").write_text(captions.replace("\n", " indeed\n", 1))
    with pytest.raises(DataError, match="began with other captions or images than those it is given now"):
        train(moved, tmp_path / "run", resume=True)
    assert read_config(tmp_path / "run/config.toml").data.path == config.data.path
    (tmp_path / "moved/train_caps.txt").write_text(captions)
    train(moved, tmp_path / "run", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_a_list_of_held_out_images_may_move_and_its_content_may_not(config: Config, tmp_path: Path) -> None:
    ids = prepare_run(config, tmp_path / "any", resume=False).train.image_ids()
    (tmp_path / "held.txt").write_text("\n".join(ids[:8]) + "\n")
    config = replace(config, data=replace(config.data, held_out=str(tmp_path / "held.txt")))
    train(config, tmp_path / "run", stop_after=1)
    (tmp_path / "held.txt").rename(tmp_path / "list.txt")
    elsewhere = replace(config, data=replace(config.data, held_out=str(tmp_path / "list.txt")))
    assert train(elsewhere, tmp_path / "run", resume=True, stop_after=2).progress.step == 2
    (tmp_path / "list.txt").write_text("\n".join(ids[:9]) + "\n")
    with pytest.raises(DataError, match="other captions or images"):
        train(elsewhere, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        ("train", {"seed": 1}, "train.seed = 0, not 1"),
        ("train", {"batch_size": 8}, "train.batch_size = 16, not 8"),
        ("train", {"optimizer": "adamw"}, "train.optimizer = 'adam', not 'adamw'"),
        ("model", {"captioner": CaptionerConfig(hidden_dim=9)}, "model.captioner.hidden_dim = 8, not 9"),
        ("data", {"region_order": "reversed"}, "data.region_order = 'stored', not 'reversed'"),
    ],
)
def test_what_is_learned_does_not_change_on_resume(
    config: Config, tmp_path: Path, section: str, fields: dict[str, Any], said: str
) -> None:
    train(config, tmp_path / "run", stop_after=1)
    other = replace(config, **{section: replace(getattr(config, section), **fields)})
    with pytest.raises(ConfigError) as refused:
        prepare_run(other, tmp_path / "run", resume=True)
    assert said in str(refused.value)
    assert f"--train.init_from {tmp_path / 'run'}" in str(refused.value)


def test_a_run_is_resumed_by_its_folder_alone(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    train(config, tmp_path / "run", stop_after=3)
    assert run_command("train", [str(tmp_path / "run"), "--resume"]) == 0
    assert_same_state(tmp_path / "whole", tmp_path / "run")
    assert run_command("train", [str(tmp_path / "run")]) == 2


def test_an_older_state_without_a_fingerprint_of_the_data_is_resumed(config: Config, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    train(config, tmp_path / "whole")
    train(config, tmp_path / "run", stop_after=3)
    path = tmp_path / "run" / STATE_FILE
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "data_fingerprint"}
    save_file(load_file(path), path, metadata)
    train(config, tmp_path / "run", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_training_starts_from_a_runs_weights_and_words(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "first")
    start = with_train(config, init_from=str(tmp_path / "first"), epochs=1, seed=5)
    # Fewer captions have fewer words, but the words are those of the weights.
    (tmp_path / "store/train_caps.txt").write_text("a small dog\n" * 80)
    prepared = prepare_run(start, tmp_path / "run", resume=False)
    assert prepared.vocabulary == read_vocabulary(tmp_path / "first/vocabulary.json")
    best = load_file(tmp_path / "first/model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in prepared.model.state_dict().items())
    Trainer(prepared, Silent()).run(resume=False)
    assert load_file(tmp_path / "run/model.safetensors").keys() == best.keys()


def test_a_model_without_a_captioner_gives_its_encoders(config: Config, tmp_path: Path) -> None:
    """As a converted checkpoint of 2019 does."""
    train(config, tmp_path / "first")
    stored = read_any_model(tmp_path / "first")
    without = replace(config, model=replace(stored.config.model, captioner=CaptionerConfig(enabled=False)))
    assert isinstance(stored.model, MatchingModel)
    stored.model.captioner = None
    write_model(tmp_path / "bare", replace(stored, config=without))
    prepared = prepare_run(with_train(config, init_from=str(tmp_path / "bare")), tmp_path / "run", resume=False)
    assert any("the captioner starts anew" in note for note in prepared.notes)
    best = load_file(tmp_path / "bare/model.safetensors")
    assert all(torch.equal(prepared.model.state_dict()[name], tensor) for name, tensor in best.items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"joint_dim": 32}, "model.joint_dim is 32 here and 16 there"),
        ({"reasoning_layers": 2}, "model.reasoning_layers is 2 here and 1 there"),
        ({"aggregator": "gpo"}, "model.aggregator is 'gpo' here and 'gru' there"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config: Config, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    train(with_train(config, max_steps=1), tmp_path / "first")
    other = replace(with_train(config, init_from=str(tmp_path / "first")), model=replace(config.model, **fields))
    with pytest.raises(ConfigError, match="do not fit") as refused:
        prepare_run(other, tmp_path / "run", resume=False)
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_features_of_another_size_than_those_of_the_weights_are_named(config: Config, tmp_path: Path) -> None:
    train(with_train(config, max_steps=1), tmp_path / "first")
    for split in ("train", "dev"):
        path = tmp_path / f"store/{split}_ims.npy"
        np.save(path, np.load(path)[..., :-1])
    with pytest.raises(ConfigError, match=r"model\.feature_dim is \d+ here and \d+ there"):
        prepare_run(with_train(config, init_from=str(tmp_path / "first")), tmp_path / "run", resume=False)


def test_what_is_no_model_or_has_other_words_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        prepare_run(with_train(config, init_from=str(tmp_path / "none")), tmp_path / "run", resume=False)
    train(with_train(config, max_steps=1), tmp_path / "first")
    (tmp_path / "words.json").write_text('{"words": ["<pad>", "<start>", "<end>", "<unk>", "dog"]}')
    start = with_train(config, init_from=str(tmp_path / "first"))
    start = replace(start, data=replace(start.data, vocabulary=str(tmp_path / "words.json")))
    with pytest.raises(ConfigError, match="leave data.vocabulary out"):
        prepare_run(start, tmp_path / "run", resume=False)


def test_a_difference_that_no_weight_shows_is_said(config: Config, tmp_path: Path) -> None:
    train(with_train(config, max_steps=1), tmp_path / "first")
    other = replace(with_train(config, init_from=str(tmp_path / "first")), model=replace(config.model, absolute=True))
    notes = prepare_run(other, tmp_path / "run", resume=False).notes
    assert any("model.absolute is True here and False there" in note for note in notes)


def test_a_config_of_an_older_run_reads(config: Config, tmp_path: Path) -> None:
    newer: tuple[str, ...] = ("init_from", "max_steps", "accumulate", "patience", "optimizer", "weight_decay")
    newer += ("schedule", "warm_up_steps", "loggers", "mask_same_image")
    lines = config_to_toml(config).splitlines()
    start = lines.index("loggers = [")
    del lines[start : lines.index("]", start) + 1]
    old = [line for line in lines if not line.startswith(newer)]
    (tmp_path / "old.toml").write_text("\n".join(old))
    assert len(old) == len(lines) - len(newer) + 1
    assert read_config(tmp_path / "old.toml") == config
