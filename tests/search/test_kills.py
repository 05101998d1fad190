"""Killed at any moment, an index opens, holds everything acknowledged, and is finished by the next run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from colours import export_colours

HERE = Path(__file__).parents[1] / "helpers"


@pytest.mark.parametrize(("way", "least"), [("begin", 50), ("change", 50), ("moments", 15)])
def test_an_index_killed_while_it_is_written_loses_nothing_acknowledged(way: str, least: int, tmp_path: Path) -> None:
    """In a process of its own, which starts no threads before it forks those that die (`dying.py`)."""
    model = export_colours(tmp_path / "model")
    (tmp_path / way).mkdir()
    command = [sys.executable, str(HERE / "dying.py"), way, str(model), str(tmp_path / way)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= least, "runs that were killed"
