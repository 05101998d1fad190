"""Pages that people write: short, in step with the code, and naming only what exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vsrn.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src/vsrn"
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
)
GENERATED = re.compile(r"<!-- (\w+) -->.*<!-- /\1 -->", re.DOTALL)
CODE = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def words(page: Path) -> int:
    """Words that were written by hand."""
    return len(GENERATED.sub("", page.read_text(encoding="utf-8")).split())


def test_the_readme_and_the_documentation_are_short() -> None:
    assert words(ROOT / "README.md") <= 800
    assert sum(words(page) for page in (ROOT / "docs").rglob("*.md")) <= 12_800


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_name_that_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, name in re.findall(r"`((?:\w+/)*\w+\.py)`(?:\s+`(\w+)`)?", text):
        found = [root / path for root in (PACKAGE, ROOT, page.parent) if (root / path).is_file()]
        assert found, path
        if name:
            assert re.search(rf"^\s*(def|class) {name}\b", found[0].read_text(encoding="utf-8"), re.MULTILINE), (
                path,
                name,
            )
    for path in re.findall(r"`((?:tests|configs|experiments|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path


def typed_commands() -> dict[str, set[str]]:
    """Each command of vsrn that a page shows, with the options that it shows there."""
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        fenced = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        code = [line for block in fenced for line in block.splitlines()]
        code += [*re.findall(r"`(vsrn [^`]+)`", text), *re.findall(r"^ {4,}.*", text, re.MULTILINE)]
        for line in code:
            for command, rest in re.findall(r"(?:^|[\s$(])vsrn ([a-z][a-z-]*)((?:\s[^#|;&)]*)?)", line):
                shown.setdefault(command, set()).update(re.findall(r"(?<=\s)--?[a-z][\w.-]*", rest))
    return shown


@pytest.mark.parametrize(("command", "options"), sorted(typed_commands().items()))
def test_every_command_and_option_that_a_page_shows_exists(command: str, options: set[str]) -> None:
    if command not in COMMANDS:
        pytest.skip(f"there is no command {command}")
    arguments = [sys.executable, "-m", "vsrn", command, "--help"]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    said = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    for option in options:
        # Fields of a config are typed with "_" or "-", and listed with "-".
        assert re.search(rf"(?<![\w.-]){re.escape(option.replace('_', '-'))}(?![\w-])", said), option


def test_every_page_that_the_code_points_to_exists() -> None:
    for file in CODE:
        for page in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file() or page == "docs/cli.md", (file.name, page)


def test_nobody_is_sent_to_a_registry_where_the_package_is_not() -> None:
    # Whoever registered the name there would decide what is installed.
    for file in [*CODE, *PAGES]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"pip install [-\w ]*['\"]?" + "vsrn", text), file


def test_an_interval_of_the_results_is_that_of_the_mean_over_seeds_beside_it() -> None:
    beginning = "| mean pooling (VSE++ on regions) | contrastive, of 3 | "
    row = next(line for line in (ROOT / "docs/results.md").read_text().splitlines() if line.startswith(beginning))
    seeds, cells = int(row.split("|")[3]), row.split("|")[4:10]
    assert seeds > 1
    lines = map(json.loads, (ROOT / "docs/results/flickr8k/results.jsonl").read_text().splitlines())
    starts = {line["key"]: line["ranks"][0] for line in lines}
    ranks = np.fromfile(ROOT / "docs/results/flickr8k/ranks.bin", "<i2")
    runs = [ranks[starts[f"windows/mean/contrastive/{seed}"] :][:6000] for seed in range(seeds)]
    found = {
        name: np.stack([run[part] for run in runs])
        for name, part in (("images", slice(1000)), ("captions", slice(1000, 6000)))
    }
    # Other draws than the table's, of whole images: five captions each.
    images = np.random.default_rng(1).integers(1000, size=(1000, 1000))
    for cell, (direction, k) in zip(cells, [(way, k) for way in found for k in (1, 5, 10)], strict=True):
        hits = 100 * (found[direction] < k).mean(axis=0).reshape(1000, -1).mean(axis=1)
        expected = [hits.mean(), *np.percentile(hits[images].mean(axis=1), [2.5, 97.5])]
        assert [float(number) for number in re.findall(r"[\d.]+", cell)] == pytest.approx(expected, abs=0.25)
