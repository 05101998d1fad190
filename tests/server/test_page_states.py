"""Every state of the page, by day and by night, on a desk and on a phone: axe finds nothing to mend.

To look at them: pytest tests/server/test_page_states.py --pictures FOLDER
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chrome import NEEDS_CHROMIUM
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect
from serving import Place, make_real_place, serving

from vsrn.server.security import Access

pytestmark = NEEDS_CHROMIUM

SENTENCE = "a man takes a photograph with a tripod"
TOKEN = "a token of some length"
DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_real_place(tmp_path_factory.mktemp("place"))


def ask(page: Page, sentence: str) -> None:
    page.goto(f"/?q={sentence.replace(' ', '+')}")
    expect(page.locator("#status")).to_have_text(re.compile("^(?!Looking)."), timeout=60_000)


def start(page: Page) -> None:
    page.goto("/")
    expect(page.locator(".tile").first).to_be_visible()


def results(page: Page) -> None:
    ask(page, SENTENCE)
    expect(page.locator(".tile").first).to_be_visible()


def all_results(page: Page) -> None:
    results(page)
    page.locator("#unsure").click()


def nothing_fits(page: Page) -> None:
    ask(page, "people sit on a boat in the ocean")
    expect(page.locator("#status")).to_contain_text("No photos fit")


def unknown_words(page: Page) -> None:
    ask(page, "zorp qwrtz")
    expect(page.locator("#unknown")).to_contain_text("zorp")


def slow(page: Page) -> None:
    results(page)
    page.route("**/api/search?*", lambda _: None)  # never answered
    page.locator("#sentence").fill("another sentence")
    expect(page.locator("#photos")).to_have_class(re.compile("busy"))


def no_service(page: Page) -> None:
    start(page)
    page.route("**/api/**", lambda route: route.abort())
    page.locator("#sentence").fill("another sentence")
    expect(page.locator("#problem")).to_be_visible()


def one_photo(page: Page) -> None:
    results(page)
    page.locator(".tile").first.click()
    expect(page.locator("#large")).to_have_attribute("src", re.compile("api/photo"))


def why(page: Page) -> None:
    one_photo(page)
    page.locator("#show-why").click()
    expect(page.locator(".overlay")).to_be_visible()


def why_of_a_word(page: Page) -> None:
    why(page)
    page.locator("#words button", has_text="tripod").click()
    page.locator("summary").click()


def nothing_stands_out(page: Page) -> None:
    ask(page, "two dogs play in the snow")
    if page.locator("#unsure").is_visible():
        page.locator("#unsure").click()
    page.get_by_role("button", name=re.compile("gravel.jpg")).click()
    page.locator("#show-why").click()
    expect(page.locator("#named-said")).to_contain_text("Nothing in this photo stands out")


def failing(page: Page) -> None:
    """A photo that cannot be explained, described or shown."""

    def refuse(route: Route) -> None:
        route.fulfill(status=410, json={"detail": "this photo is gone since it was indexed; run `vsrn index` again."})

    for kind in ("explain", "caption", "photo", "original"):
        page.route(f"**/api/{kind}?*", refuse)
    results(page)
    page.locator(".tile").first.click()
    expect(page.locator("#gone")).to_contain_text("gone")
    page.locator("#show-why").click()
    page.locator("#describe").click()
    page.locator("#download").click()
    for part in ("#why-failed", "#caption-failed", "#done"):
        expect(page.locator(part)).to_contain_text("run `vsrn index` again")


def whole(page: Page) -> None:
    why(page)
    page.keyboard.press("f")
    expect(page.locator("#like")).to_be_hidden()
    page.keyboard.press("+")


STATES: list[Callable[[Page], None]] = [
    *(start, results, all_results, nothing_fits, unknown_words, slow, no_service),
    *(one_photo, why, why_of_a_word, nothing_stands_out, failing, whole),
]


def check(page: Page, name: str, pictures: Path | None) -> None:
    """Nothing wider than the window, and nothing that axe finds, on a desk and on a phone, by day and by night."""
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#details").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            if pictures is not None:
                page.screenshot(path=pictures / f"{name}-{size['width']}-{scheme}.png")
            # By night only the colours are others.
            rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
            found = Axe().run(page, options={"resultTypes": ["violations"]} | rules)
            assert not found.violations_count, found.generate_report()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing(
    browser: Browser, address: str, state: Callable[[Page], None], pictures: Path | None
) -> None:
    with browser.new_context(viewport=DESK, base_url=address, reduced_motion="reduce") as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        state(page)
        check(page, state.__name__, pictures)


def test_axe_finds_nothing_where_a_token_is_asked(browser: Browser, place: Place, pictures: Path | None) -> None:
    with serving(place, Access(TOKEN)) as address, browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#login")).to_be_visible()
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#wrong")).to_be_visible()
        check(page, "token", pictures)
