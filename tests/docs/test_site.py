"""The documentation: the site builds strictly, loads nothing from elsewhere, and is in step with the code."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import vsrn
from vsrn.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
# Tags whose address a browser fetches by itself; a plain <a> it does not.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Fetched(HTMLParser):
    """Addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in FETCHED and named.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(named.get(FETCHED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.addresses
        for address in parser.addresses:
            assert not re.match(r"(https?:)?//", address), (page, address)


def test_style_sheets_load_nothing_from_elsewhere(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        found = re.findall(r"(?:url\(|@import\s*)['\"]?((?:https?:)?//[^)'\"]+)", sheet.read_text(encoding="utf-8"))
        assert not found, sheet


def test_every_link_leads_to_a_page_and_a_heading_that_exist(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":
            continue
        for address in re.findall(r'<a [^>]*href="([^"]+)"', page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", address):
                continue
            path, _, anchor = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page.name, address)
            if anchor and target.suffix == ".html" and not anchor.startswith("__"):
                assert f'id="{anchor}"' in target.read_text(encoding="utf-8"), (page.name, address)


def test_the_command_line_reference_is_what_the_commands_say(site: Path) -> None:
    assert not (ROOT / "docs/cli.md").exists(), "it is made when the site is built"
    page = text_of(site / "cli.html")
    for command in ["", *COMMANDS]:
        arguments = [sys.executable, "-m", "vsrn", *([command] if command else []), "--help"]
        environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
        assert words_of(done.stdout) in page, command


def test_the_python_reference_has_all_that_vsrn_exports_with_its_docstring(site: Path) -> None:
    page = text_of(site / "reference.html")
    for name in sorted(set(vsrn.__all__) - {"__version__"}):
        documented = getattr(vsrn, name).__doc__
        first = words_of(documented.partition("\n\n")[0].replace("`", ""))
        assert f"{name} " in page
        assert first in page, name


def text_of(page: Path) -> str:
    """The words of a page's article, without its tags."""
    article = re.search(r"<article.*</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert article is not None
    return words_of(html.unescape(re.sub(r"<[^>]+>", " ", article[0].replace("<code>", "").replace("</code>", ""))))


def words_of(text: str) -> str:
    return " ".join(text.split())
