"""Progress as a person sees it: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

PROGRAM = """
from vsrn.cli.progress import ProgressBar, say
with ProgressBar("indexing", unit="photos") as bar:
    bar.at(30)
    bar.at(40, 80, words="slowly")
    bar.start("looking", unit="MB")
    bar.advance(2)
    say("A line\\x1b[31m above.")
"""


def shown(**environment: str) -> str:
    """What a program with a bar writes on standard error."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    arguments = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(arguments, env=kept | environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_elsewhere_a_line_says_how_far_the_job_is() -> None:
    # The next line would come after 15 seconds.
    assert shown().splitlines() == ["indexing: 30 of ? photos", "A line\\x1b[31m above."]


def test_a_terminal_shows_a_bar_that_learns_its_total_and_its_job() -> None:
    bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(FORCE_COLOR="1", COLUMNS="100"))
    assert "A line\\x1b[31m above." in bar
    assert re.search(r"looking .*2/\?", bar)
