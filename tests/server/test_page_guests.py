"""The page on a phone, for those who see little, behind a token, and as other pages see it."""

from __future__ import annotations

import re

import pytest
from chrome import NEEDS_CHROMIUM
from playwright.sync_api import Browser, expect
from serving import Place, make_place, serving, serving_a_page

from vsrn.server.security import Access

pytestmark = NEEDS_CHROMIUM

TOKEN = "a token of some length"
SENTENCE = "a dark red light"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), num_photos=30)


def test_a_phone_is_wide_enough_and_the_first_tap_opens(browser: Browser, address: str, place: Place) -> None:
    with browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, base_url=address) as context:
        page = context.new_page()
        page.goto(f"/?q={SENTENCE.replace(' ', '+')}")
        expect(page.locator(".tile")).to_have_count(24)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator(".tile").nth(1).tap()
        with place.open() as index:
            expect(page.locator("#details-name")).to_have_text(index.search(SENTENCE, 2)[1].id.rpartition("/")[2])
        assert page.locator("#details").evaluate("box => box.scrollWidth <= 360")
        for button in ("#close", "#like", "#next", "#zoom-in", "#whole", "#show-why", "#download", "#copy"):
            # As laid out: while the panel opens, it is drawn a little smaller.
            side = page.locator(button).evaluate("button => Math.min(button.offsetWidth, button.offsetHeight)")
            assert side >= 44


def test_the_page_asks_for_the_token_and_keeps_it_out_of_the_address(browser: Browser, place: Place) -> None:
    with serving(place, Access(TOKEN)) as address, browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#login")).to_be_visible()
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#wrong")).to_be_visible()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".tile")).to_have_count(24)
        assert page.locator(".tile img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert page.evaluate("document.cookie") == ""
    with serving(place, Access(TOKEN)) as address, browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto(f"/#token={TOKEN.replace(' ', '%20')}")
        expect(page.locator(".tile")).to_have_count(24)
        assert page.url == f"{address}/"


def test_two_services_in_one_browser_do_not_log_each_other_out(browser: Browser, place: Place) -> None:
    with serving(place, Access(TOKEN)) as one, serving(place, Access(TOKEN)) as other, browser.new_context() as context:
        page = context.new_page()
        for address in (one, other):
            page.goto(f"{address}/#token={TOKEN.replace(' ', '%20')}")
            expect(page.locator(".tile")).to_have_count(24)
        page.goto(f"{one}/")
        expect(page.locator(".tile")).to_have_count(24)
        ports = {address.rpartition(":")[2] for address in (one, other)}
        assert {cookie["name"] for cookie in context.cookies()} == {f"vsrn_session_{port}" for port in ports}


def test_who_closes_the_login_can_open_it_again(browser: Browser, place: Place) -> None:
    with serving(place, Access(TOKEN)) as address, browser.new_context(base_url=address) as context:
        page = context.new_page()
        page.goto("/")
        for _ in range(2):
            expect(page.locator("#login")).to_be_visible()
            page.locator("#token").press("Escape")
            expect(page.locator("#login")).to_be_hidden()
            expect(page.locator("#problem-words")).to_have_text("This service asks for its token.")
            expect(page.locator("#start")).to_be_hidden()
            page.get_by_role("button", name="Enter the token").click()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".tile")).to_have_count(24)
        expect(page.locator("#problem")).to_be_hidden()
        expect(page.locator("#num-photos")).to_have_text("31")


def test_a_service_that_ended_is_named_and_nothing_else_is_claimed(browser: Browser, place: Place) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with serving(place) as address:
            page.goto(f"{address}/?q={SENTENCE.replace(' ', '+')}")
            expect(page.locator(".tile")).to_have_count(24)
            page.route("**/api/**", lambda route: route.abort())
            page.goto(f"{address}/")
            expect(page.locator("#problem-words")).to_have_text("The service does not answer. Is it still running?")
            expect(page.locator("#start")).to_be_hidden()
            page.unroute("**/api/**")
            page.get_by_role("button", name="Try again").click()
            expect(page.locator(".tile")).to_have_count(24)
            expect(page.locator("#start")).to_be_visible()


def test_another_page_in_the_same_browser_reads_nothing(browser: Browser, address: str) -> None:
    with serving_a_page() as elsewhere, browser.new_context() as context:
        page = context.new_page()
        page.goto(elsewhere)
        read = """async address => {
            const fetched = await fetch(address + '/api/photos').then(a => a.text(), () => 'refused');
            const opaque = await fetch(address + '/api/photos', {mode: 'no-cors'}).then(a => a.type, () => 'refused');
            const picture = await new Promise(done => {
                const image = new Image();
                image.onload = () => done('seen');
                image.onerror = () => done('refused');
                image.src = address + '/api/thumbnail?id=00.png';
            });
            return [fetched, opaque, picture];
        }"""
        assert page.evaluate(read, address) == ["refused", "refused", "refused"]


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`: WCAG 2.2, relative luminance."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_everything_has_a_name(browser: Browser, address: str, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme, base_url=address) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto("/?q=red+zorp")
        expect(page.locator(".tile")).to_have_count(24)
        page.locator(".tile").first.click()
        expect(page.locator("#why")).to_be_visible()
        texts = page.evaluate(
            """() => [...document.querySelectorAll('p, h2, h3, b, small, q, label, button, a, kbd, span')]
                .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
                .filter(e => !e.closest('.tile, .step, .skip, .drop'))
                .map(e => {
                    const clear = g => getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)';
                    let ground = e;
                    while (ground && clear(ground)) ground = ground.parentElement;
                    const behind = getComputedStyle(ground ?? document.body).backgroundColor;
                    return [e.textContent.trim().slice(0, 30), getComputedStyle(e).color, behind];
                }).filter(([, , behind]) => behind.startsWith('rgb('))"""
        )
        assert len(texts) > 10
        assert [text for text in texts if contrast(text[1], text[2]) < 4.5] == []
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, a, input, dialog, img')].filter(e => {
                const labelled = e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim();
                return !labelled && !e.getAttribute('aria-labelledby') && !e.hidden && !e.hasAttribute('alt');
            }).map(e => e.outerHTML)"""
        )
        assert nameless == []
