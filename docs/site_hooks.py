"""What mkdocs needs to know of this repository.

- Pages link to files outside `docs`, which the site copies.
- The page of the command line is every command's `--help`, made when the site is built.
- Docstrings list parameters as aligned columns, which Markdown would join into one paragraph: they become lists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

from vsrn.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "benchmarks/**/*",
    "src/vsrn/configs/**/*.t*",
    "experiments/*.py",
    "src/vsrn/**/*.py",
    "src/vsrn/pretrained/*/LICENSE",
)
# As wide as a page is; a terminal's width and colours must not decide what is written.
PLAIN_TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
# `name  what it is`, and lines that go on, indented.
COLUMNS = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*(?:\n {2,}\S.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^(?:>>> |import ).*(?:\n\S.*)*", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the page of the command line, and the files that pages link to at their places in the repository."""
    files.append(File.generated(config, "cli.md", content=command_line_page()))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shorten links that climb out of `docs`, and lengthen those that lead into it: on the site both are one folder."""
    if page.file.abs_src_path and Path(page.file.abs_src_path).is_relative_to(ROOT / "docs"):
        depth = len(Path(page.file.src_uri).parent.parts)
        return markdown.replace("](" + "../" * (depth + 1), "](" + "../" * depth)
    return markdown.replace("](docs/", "](").replace("](../docs/", "](../")


def command_line_page() -> str:
    """Every command's `--help`, as Markdown."""
    with ThreadPoolExecutor(2) as pool:
        first, *texts = pool.map(help_of, ["", *COMMANDS])
    sections = [f"## vsrn {command}\n\n{text}" for command, text in zip(COMMANDS, texts, strict=True)]
    return "\n\n".join(["# Command line", "Every command's `--help`.", first, *sections]) + "\n"


def help_of(command: str) -> str:
    """What `vsrn COMMAND --help` prints, as a block of Markdown."""
    arguments = [sys.executable, "-m", "vsrn", *([command] if command else []), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ | PLAIN_TERMINAL)
    lines = (line.rstrip() for line in done.stdout.strip().splitlines())
    return "```text\n{}\n```".format("\n".join(lines))


class DocstringLists(griffe.Extension):
    """Turns the aligned columns of docstrings into Markdown lists, and their examples into code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one class, function or attribute."""
        if obj.docstring:
            text = COLUMNS.sub(lambda found: f"- **{found[1]}**: {' '.join(found[2].split())}", obj.docstring.value)
            # A list begins after an empty line.
            text = re.sub(r"^(?!- )(.*\S)\n(?=- \*\*)", r"\1\n\n", text, flags=re.MULTILINE)
            text = text.replace("  # doctest: +SKIP", "")
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```python\n{found[0]}\n```", text)
