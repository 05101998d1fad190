"""What `make` does on a fresh checkout, as it says itself without doing it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make reads."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def planned(folder: Path, *arguments: str) -> str:
    """The commands that make would run in a folder."""
    # A make that runs these tests hands down its own variables.
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "EXTRAS")}
    return subprocess.run(
        ["make", "--dry-run", *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("arguments", "installed", "runs"),
    [
        (["demo"], ".", "vsrn demo"),
        (["test"], ".[dev,tensorboard]", "pytest"),
        (["check", "EXTRAS=dev,tensorboard,ray"], ".[dev,tensorboard,ray]", "mypy"),
    ],
)
def test_each_goal_installs_what_it_needs_and_nothing_else(
    checkout: Path, arguments: list[str], installed: str, runs: str
) -> None:
    commands = planned(checkout, *arguments)
    assert re.findall(r'pip install .*--editable "(.*)"', commands) == [installed]
    assert runs in commands


def test_what_was_installed_is_not_installed_again_but_another_choice_is(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.ready-dev-tensorboard").touch()
    os.utime(checkout / "pyproject.toml", (0, 0))
    assert "pip install" not in planned(checkout, "test")
    assert "pip install" in planned(checkout, "test", "EXTRAS=dev,tensorboard,ray")
    assert "pip install" in planned(checkout, "demo")
