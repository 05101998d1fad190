"""Configs by name: listed, printed, trained, and found under the paths that they had in a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsrn.cli import run_command
from vsrn.config import read_config
from vsrn.configs import CONFIGS, config_names, find_config, find_packaged

NAMES = [path.relative_to(CONFIGS).as_posix().removesuffix(".toml") for path in CONFIGS.rglob("*.toml")]


def test_every_config_is_listed_and_printed_as_it_lies_in_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("configs", []) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == config_names()
    assert sorted(config_names()) == sorted(NAMES)
    for name in NAMES:
        assert run_command("configs", [name]) == 0
        assert capsys.readouterr().out == (CONFIGS / f"{name}.toml").read_text(encoding="utf-8")


def test_a_slip_in_a_name_is_answered_by_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("configs", ["f3k"]) == 2
    assert "Did you mean 'f30k'?" in capsys.readouterr().err
    assert run_command("train", ["f3k"]) == 2
    assert "there is no config f3k; `vsrn configs` lists" in capsys.readouterr().err


def test_a_packaged_config_is_trained_by_its_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("f30k", "f30k.toml", "configs/f30k.toml"):
        assert read_config(find_config(name)) == read_config(CONFIGS / "f30k.toml")
        # All that is missing is the data.
        assert run_command("train", [name]) == 2
        assert "there is no folder data/f30k_precomp" in capsys.readouterr().err
    assert find_packaged("configs/flickr8k-held-out.txt") == CONFIGS / "flickr8k-held-out.txt"
    assert find_packaged(read_config(CONFIGS / "flickr8k.toml").data.held_out).is_file()


def test_a_path_goes_before_a_packaged_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f30k").write_text("")
    assert find_config("f30k") == Path("f30k")
    Path("coco").mkdir()
    assert find_config("coco") == CONFIGS / "coco.toml"
    Path("coco/config.toml").write_text("")
    assert find_config("coco") == Path("coco/config.toml")


def test_nothing_outside_of_the_package_is_found_by_name() -> None:
    assert find_packaged("configs/../config.py") == Path("configs/../config.py")
    assert find_packaged("") == Path()
