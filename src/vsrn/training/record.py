"""run.json: with which versions, by which command and in what time a run was made; an entry each time it is started."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import vsrn
from vsrn.files import write_atomically

RECORD_FILE = "run.json"


class RunRecord:
    """Writes run.json: one entry for this start of the run, after those of earlier starts."""

    def __init__(self, run: Path, step: int, **facts: Any) -> None:
        """Begin an entry at a step.

        facts  what else it says, such as the device and the number of processes
        """
        self.path = run / RECORD_FILE
        self.earlier = read_record(run)
        self.began = time.monotonic()
        self.entry: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "versions": versions(),
            "commit": commit(),
            **facts,
            "from_step": step,
        }

    def write(self, step: int) -> None:
        """Bring the entry up to date: the steps taken, and the seconds on the wall since it began."""
        seconds = round(time.monotonic() - self.began, 1)
        starts = [*self.earlier, self.entry | {"to_step": step, "seconds": seconds}]
        write_atomically(self.path, msgspec.json.format(msgspec.json.encode({"starts": starts}), indent=1))


def read_record(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's run.json, one each time it was started; none where it is missing or damaged."""
    try:
        found = msgspec.json.decode((run / RECORD_FILE).read_bytes(), type=dict[str, list[dict[str, Any]]])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return found.get("starts", [])


def command() -> str:
    """The command line of this process, as it can be typed again."""
    program = Path(sys.argv[0])
    return shlex.join(["vsrn" if program.parent.name == "vsrn" else program.name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {
        "vsrn": vsrn.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """Git commit of the checkout that vsrn runs from, with "-dirty" where files differ; empty for an installed one."""
    checkout, git = Path(vsrn.__file__).parents[2], shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return ""
    arguments = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError):
        return ""
