"""The page as it is after installation: real photos, the model in the box, a real browser. It takes the docs' pictures.

pytest tests/server/test_page_real.py --pictures docs/images
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chrome import NEEDS_CHROMIUM
from playwright.sync_api import Browser, Page, ViewportSize, expect
from serving import PHOTOS, Place, make_real_place

pytestmark = NEEDS_CHROMIUM

SENTENCE = "a man takes a photograph with a tripod"
DESK: ViewportSize = {"width": 1200, "height": 660}
PHONE: ViewportSize = {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_real_place(tmp_path_factory.mktemp("place"))


def ask(page: Page) -> None:
    """Type the sentence; the right photo comes first."""
    page.goto("/")
    page.locator("#sentence").fill(SENTENCE)
    # Those that hardly fit wait behind a button.
    expect(page.locator("#status")).to_contain_text(re.compile(rf"photos? fits? “{SENTENCE}”|No photos fit"))
    expect(page.locator("#unsure")).to_be_visible()
    assert page.locator(".tile").count() < len(PHOTOS)
    page.locator("#unsure").click()
    expect(page.locator("#status")).to_contain_text(f"“{SENTENCE}”")
    expect(page.locator(".tile")).to_have_count(len(PHOTOS))
    assert page.locator(".tile").first.evaluate("tile => tile.ariaLabel").startswith("camera.jpg")
    page.wait_for_load_state("networkidle")


def picture(page: Page, shown: str, pictures: Path | None, name: str) -> None:
    """Keep what is on the screen, once it is there and has stopped moving."""
    expect(page.locator(shown)).to_be_visible()
    if pictures is not None:
        page.wait_for_timeout(600)
        page.screenshot(path=pictures / name, type="jpeg", quality=88)


def show_why(page: Page, word: str) -> None:
    page.locator("#show-why").click()
    page.locator("#words button", has_text=word).click()


def test_a_sentence_finds_its_photo(browser: Browser, address: str, pictures: Path | None) -> None:
    with browser.new_context(viewport=DESK, base_url=address, color_scheme="light") as context:
        page = context.new_page()
        ask(page)
        page.locator(".tile").first.hover()
        picture(page, ".tile:hover", pictures, "serve-search.jpg")


def test_a_closer_look_has_the_models_own_words(browser: Browser, address: str, pictures: Path | None) -> None:
    with browser.new_context(viewport=DESK, base_url=address, color_scheme="dark") as context:
        page = context.new_page()
        ask(page)
        page.locator(".tile").first.click()
        page.locator("#describe").click()
        expect(page.locator("#caption-words")).not_to_have_class(re.compile("waiting"), timeout=60_000)
        words = re.findall(r"\w+", page.locator("#caption-words").inner_text())
        assert {"man", "person"} & set(words)
        show_why(page, "tripod")
        picture(page, "#figure .overlay", pictures, "serve-photo.jpg")


def test_a_phone_shows_the_same(browser: Browser, address: str, pictures: Path | None) -> None:
    with browser.new_context(viewport=PHONE, base_url=address, has_touch=True, color_scheme="light") as context:
        page = context.new_page()
        ask(page)
        page.locator(".tile").first.tap()
        show_why(page, "man")
        picture(page, "#figure .overlay", pictures, "serve-phone.jpg")
