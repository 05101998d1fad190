"""`vsrn train` as people type it: the help's example, shortened configs, other spellings, and slips."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from worlds import make_store

from vsrn.cli import run_command
from vsrn.cli.train import as_typed, main_for
from vsrn.config import config_fields, read_config
from vsrn.configs import config_names
from vsrn.errors import ConfigError
from vsrn.other_names import FIELD_CALLED, nearest_field


def test_the_example_of_the_help_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^ *\$ vsrn train (.*)$", main_for(()).__doc__ or "", re.MULTILINE)
    assert examples
    store = make_store(tmp_path / "store", {"train": 12, "dev": 6})
    for place, example in enumerate(examples):
        shortened = [*shlex.split(example), "--data.path", str(store), "--data.held_out", "", "--train.max_steps", "1"]
        assert run_command("train", [*shortened, "--data.min_count", "1", "-o", str(tmp_path / str(place))]) == 0
        said = capsys.readouterr().err
        assert "Best rsum" in said
        assert read_config(tmp_path / str(place) / "config.toml").train.epochs == 4


@pytest.mark.parametrize("name", config_names())
def test_every_config_can_be_shortened_to_one_epoch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("train", [name, "--train.epochs", "1"]) == 2
    # All that is missing is the data.
    assert re.search(r"there is no folder|cannot be read \(No such file", capsys.readouterr().err)


def test_a_shortened_config_says_what_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", {"train": 12, "dev": 6})
    (tmp_path / "short.toml").write_text(f'[data]\npath = "{store}"\nmin_count = 1\n[model]\njoint_dim = 8\n')
    options = ["--train.epochs", "10", "--train.max_steps", "1", "--train.batch_size", "4", "-o", str(tmp_path / "run")]
    assert run_command("train", [str(tmp_path / "short.toml"), *options]) == 0
    said = capsys.readouterr().err
    assert said.count("train.learning_rate_drop [15] lies beyond the last of 10 epochs and changes nothing") == 1


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--train.learning_rate_drop []", "--train.learning_rate_drop"),
        ("--train.learning_rate_drop=[]", "--train.learning_rate_drop"),
        ("--train.learning-rate-drop [3, 5]", "--train.learning-rate-drop 3 5"),
        ("--train.learning_rate_drop 3,5", "--train.learning_rate_drop 3 5"),
        ("--train.learning_rate_drop 3 5", "--train.learning_rate_drop 3 5"),
        ("--model.captioner.enabled false", "--model.captioner.enabled False"),
        ("--model.captioner.enabled=no", "--model.captioner.enabled False"),
        ("--model.image-norm TRUE --data.path true", "--model.image-norm True --data.path true"),
        ("mine.toml --resume -o runs/a --plugin true", "mine.toml --resume -o runs/a --plugin true"),
        ("--data.held_out=a=b", "--data.held_out a=b"),
    ],
)
def test_other_spellings_are_read(typed: str, read: str) -> None:
    assert as_typed(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--train.learning_rate"),
        ("--train.lr", "--train.learning_rate"),
        ("--batch-size", "--train.batch_size"),
        ("--embed_size", "--model.joint_dim"),
        ("--model.embed-size", "--model.joint_dim"),
        ("--num_epochs=3", "--train.epochs"),
        ("--lr_update", "--train.learning_rate_drop"),
        ("--max_violation", "--loss.negatives"),
        ("--lambda_softmax", "--model.scan.inverse_temperature"),
        ("--train.epoch", "--train.epochs"),
    ],
)
def test_a_slip_is_answered_by_the_right_option(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("train", ["f30k", typed, "3"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: there is no option {typed.partition('=')[0]}. Did you mean {meant}?\n"


def test_every_other_name_leads_to_a_field_and_hides_none() -> None:
    assert set(FIELD_CALLED.values()) <= config_fields().keys()
    assert not FIELD_CALLED.keys() & {field.rpartition(".")[2] for field in config_fields()}
    assert nearest_field("embed_size", "model.", config_fields()) == "model.joint_dim"
    with pytest.raises(ConfigError, match=r"Did you mean --train\.learning_rate"):
        as_typed(["--LR", "1"])


def test_the_page_of_2019s_options_and_the_hints_agree() -> None:
    """What the page lists as the option of 2019 is answered by the field beside it."""
    page = Path(__file__).parents[2] / "docs/published.md"
    rows = re.findall(r"^\| (`--.*?) \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for options, ours in rows:
        for name in re.findall(r"--(\w+)", options):
            meant = nearest_field(name, "", config_fields())
            if f"`--{name}`" in options and ours != "none" and meant is not None and "-o" not in ours:
                assert meant.rpartition(".")[2] in ours, name
