"""Write docs/cli.md: what every command's --help says.

python docs/make_cli.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vsrn.cli import COMMANDS
from vsrn.files import write_atomically

PAGE = Path(__file__).parent / "cli.md"
# As wide as a page is; a terminal's width and colours must not decide what is written.
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def main() -> None:
    """Write the page."""
    write_atomically(PAGE, make_page().encode())


def make_page() -> str:
    """The page as the commands are now."""
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(help_of, ["", *COMMANDS]))
    parts = ["# Command line", "Every command's `--help`, as `python docs/make_cli.py` wrote it.", _block(texts[0])]
    for command, text in zip(COMMANDS, texts[1:], strict=True):
        parts += [f"## vsrn {command}", _block(text)]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """What `vsrn COMMAND --help` prints."""
    arguments = [sys.executable, "-m", "vsrn", *([command] if command else []), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ | PLAIN)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    main()
