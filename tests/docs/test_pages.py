"""Pages that people write: short, in step with the code, and naming only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    assert sum(words(page) for page in (ROOT / "docs").rglob("*.md")) <= 11_000


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


def test_every_page_that_the_code_points_to_exists() -> None:
    for file in CODE:
        for page in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / page).is_file() or page == "docs/cli.md", (file.name, page)


def test_nobody_is_sent_to_a_registry_where_the_package_is_not() -> None:
    # Whoever registered the name there would decide what is installed.
    for file in [*CODE, *PAGES]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"pip install [-\w ]*['\"]?" + "vsrn", text), file
