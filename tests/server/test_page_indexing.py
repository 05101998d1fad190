"""Making an index, and bringing it up to date, on the page in a real browser."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from chrome import NEEDS_CHROMIUM
from colours import save_photo
from playwright.sync_api import Browser, expect
from serving import Place, copy_place, make_place, serving, serving_a_page

from vsrn.server.security import Access

pytestmark = NEEDS_CHROMIUM

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds what this process finds, and a plugin that sleeps until it is stopped."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(tmp_path)]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), num_photos=5)


def test_without_an_index_the_page_asks_for_a_folder(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Pictures").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    none = Place(tmp_path / "Pictures", tmp_path / "idx")
    with serving(none, Access(TOKEN, may_choose=True), plugins=("sleeper",)) as address, browser.new_page() as page:
        page.goto(f"{address}/#token={TOKEN}")
        expect(page.get_by_role("heading", level=1)).to_have_text("Which folder of photos shall be searchable?")
        expect(page.locator("#first-index")).to_have_text(str(tmp_path / "idx"))
        expect(page.locator("#sentence")).to_be_hidden()
        expect(page.locator("#problem")).to_be_hidden()
        page.get_by_label("Its path").fill("/nowhere")
        page.get_by_role("button", name="Make it searchable").click()
        expect(page.get_by_role("alert")).to_contain_text("There is no folder /nowhere")
        page.get_by_role("button", name=str(tmp_path / "Pictures")).click()
        expect(page.get_by_label("Its path")).to_have_value(str(tmp_path / "Pictures"))
        page.keyboard.press("Enter")
        expect(page.locator("#strip")).to_contain_text("Looking for photos")
        page.reload()
        expect(page.locator("#strip")).to_contain_text("Looking for photos")
        expect(page.locator("#first")).to_be_hidden()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("alert")).to_contain_text("Stopped. What was finished stays")
        expect(page.locator("#first-form")).to_be_visible()


def test_an_index_is_brought_up_to_date_from_the_page(browser: Browser, place: Place, tmp_path: Path) -> None:
    own = copy_place(place, tmp_path / "own")
    with serving(own, plugins=("colour_extractor",)) as address, browser.new_page() as page:
        page.goto(address)
        expect(page.locator(".tile")).to_have_count(6)
        save_photo(own.photos / "new.png", 77)
        (own.photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        page.get_by_role("button", name=re.compile("^The index: ")).click()
        panel = page.get_by_role("dialog", name="The index")
        expect(panel).to_contain_text("a moment ago")
        panel.get_by_role("button", name="Index now").click()
        said = "Every photo is searchable. 1 file could not be read."
        expect(panel).to_be_hidden()
        page.locator(".tile").first.focus()  # whoever looks at photos is not disturbed
        expect(page.locator("#strip")).to_contain_text(said, timeout=240_000)
        expect(page.locator(".tile")).to_have_count(6)
        page.get_by_role("button", name=re.compile("^The index: ")).click()
        expect(panel).to_contain_text("1 damaged photo")
        panel.get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Show 1 new photo").click()
        expect(page.locator(".tile")).to_have_count(7)
        page.get_by_role("button", name="Put this note away").click()
        expect(page.locator("#strip")).to_be_hidden()


def test_a_service_that_cannot_index_says_why(browser: Browser, place: Place, tmp_path: Path) -> None:
    behind_a_proxy = Access(local=False)
    with serving(place, behind_a_proxy) as address, browser.new_page() as page:
        page.goto(address)
        page.get_by_role("button", name=re.compile("^The index: ")).click()
        panel = page.get_by_role("dialog", name="The index")
        expect(panel).to_contain_text("set VSRN_TOKEN")
        expect(panel.get_by_role("button", name="Index now")).to_be_hidden()
        expect(panel.get_by_label("Add a folder of photos")).to_be_hidden()
    with serving(Place(place.photos, tmp_path / "none"), behind_a_proxy) as address, browser.new_page() as page:
        page.goto(address)
        expect(page.get_by_role("heading", level=1)).to_have_text("No photos are searchable yet")
        expect(page.locator("#first-refusal")).to_contain_text("set VSRN_TOKEN")
        expect(page.locator("#first-form")).to_be_hidden()


def test_a_foreign_page_starts_nothing(browser: Browser, place: Place) -> None:
    """By none of the requests that browsers send without asking us first."""
    with serving(place, plugins=("sleeper",)) as address, serving_a_page() as foreign, browser.new_page() as page:
        page.goto(foreign)
        for mode in ("no-cors", "cors"):
            page.evaluate(
                "([url, mode]) => fetch(url, {method: 'POST', mode}).catch(() => null)",
                [f"{address}/api/indexing", mode],
            )
        page.set_content(f"<form method=post action='{address}/api/indexing'><button>go</button></form>")
        page.locator("button").click()
        expect(page.locator("body")).to_contain_text("pages of other sites may not read this service")
        page.goto(address)
        assert page.evaluate("fetch('api/indexing').then(answer => answer.json())")["ended"] == ""
        assert not page.evaluate("fetch('api/indexing').then(answer => answer.json())")["running"]
