"""One photo on the page: as a photo, closer, and why it fits once somebody asks."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chrome import NEEDS_CHROMIUM
from PIL import Image
from playwright.sync_api import Browser, CDPSession, Page, Route, expect
from serving import Place, make_real_place

from vsrn.metrics import FloatArray
from vsrn.search.build import update_index
from vsrn.search.index import Index

pytestmark = NEEDS_CHROMIUM

SENTENCE = "a man takes a photograph with a tripod"
PANORAMA = "trip/wide.jpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Real photos, and a panorama in a folder."""
    place = make_real_place(tmp_path_factory.mktemp("place"))
    (place.photos / PANORAMA).parent.mkdir()
    with Image.open(place.photos / "rocket.jpg") as photo:
        photo.resize((4000, 500)).save(place.photos / PANORAMA)
    update_index(place.photos, place.idx)
    return place


@pytest.fixture(scope="module")
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A desk's browser, which must not complain of anything."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, base_url=address, has_touch=True) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert complaints == []


def search(page: Page, sentence: str = SENTENCE) -> list[str]:
    """Search, show also what hardly fits, and give the ids of the photos in their order."""
    page.goto(f"/?q={sentence.replace(' ', '+')}")
    expect(page.locator("#status")).to_contain_text(re.compile("fit|Best"))
    if page.locator("#unsure").is_visible():
        page.locator("#unsure").click()
    ids: list[str] = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.dataset.id)")
    return ids


def open_photo(page: Page, name: str, sentence: str = SENTENCE) -> None:
    page.locator(".tile").nth(search(page, sentence).index(name)).click()
    expect(page.locator("#details-name")).to_have_text(name.rpartition("/")[2])
    expect(page.locator("#large")).to_have_attribute("src", re.compile("api/photo"))
    # It grows a little as it opens, and is measured when it has.
    page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")


def lit(page: Page) -> FloatArray:
    """(56, 56) how bright the photo is left, from 0 to 1, by the picture that lies over it."""
    href = page.locator("#figure .overlay image").get_attribute("href") or ""
    with Image.open(io.BytesIO(base64.b64decode(href.partition(",")[2]))) as picture:
        dark = np.asarray(picture)[..., 3].astype(float)
    return np.asarray(1 - (dark / dark.max()) ** (1 / 1.4))


def expected(heat: FloatArray | None) -> FloatArray:
    """The library's heat at half its size, from 0 to 1 likewise."""
    assert heat is not None
    small = heat.reshape(56, 2, 56, 2).mean((1, 3))
    return np.asarray((small - small.min()) / (small.max() - small.min()))


def test_a_photo_opens_as_a_photo_and_nothing_is_asked_of_the_model(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_photo(page, "camera.jpg")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_load_state("networkidle")
    expect(page.locator(".overlay")).to_have_count(0)
    assert [url for url in asked if "explain" in url or "caption" in url] == []
    expect(page.locator("#named")).to_be_hidden()


def test_what_fits_is_lit_when_asked_for_and_word_by_word(page: Page, index: Index) -> None:
    open_photo(page, "camera.jpg")
    explained = index.explain("camera.jpg", SENTENCE)
    page.get_by_role("button", name="Show why").click()
    np.testing.assert_allclose(lit(page), expected(explained.heat), atol=0.08)
    words = page.locator("#words button")
    expect(page.locator("#words")).to_have_text(SENTENCE)
    assert words.all_inner_texts() == list(explained.words)
    man, tripod = (words.get_by_text(word, exact=True) for word in ("man", "tripod"))
    tripod.hover()
    np.testing.assert_allclose(lit(page), expected(explained.of_word("tripod").heat), atol=0.08)
    expect(page.locator("#named-said")).to_contain_text("What fits “tripod” is bright")
    man.click()
    page.mouse.move(5, 5)
    np.testing.assert_allclose(lit(page), expected(explained.of_word("man").heat), atol=0.08)
    page.keyboard.press("Tab")
    with_focus = page.locator("#words button:focus").inner_text()
    np.testing.assert_allclose(lit(page), expected(explained.of_word(with_focus).heat), atol=0.08)
    man.click()
    page.mouse.move(5, 5)
    np.testing.assert_allclose(lit(page), expected(explained.heat), atol=0.08)
    page.get_by_role("button", name="Show why").click()
    expect(page.locator(".overlay")).to_have_count(0)
    expect(page.locator("#named")).to_be_hidden()


def test_where_nothing_stands_out_nothing_is_lit(page: Page, index: Index) -> None:
    sentence = "two dogs play in the snow"
    silent = [record.id for record in index.latest(20) if not index.explain(record.id, sentence).stands_out]
    open_photo(page, silent[0], sentence)
    page.get_by_role("button", name="Show why").click()
    expect(page.locator("#named-said")).to_have_text("Nothing in this photo stands out for the sentence.")
    expect(page.locator(".overlay")).to_have_count(0)
    words = index.explain(silent[0], sentence).to_json()["words"]
    assert isinstance(words, list)
    for word in words:
        page.locator("#words button", has_text=word["word"]).hover()
        expect(page.locator("#figure .overlay")).to_have_count(int(word["stands_out"]))


def test_numbers_are_there_for_those_who_want_them_and_have_no_minus_before_a_zero(page: Page, index: Index) -> None:
    hit = index.search(SENTENCE, 1)[0]
    open_photo(page, hit.id)
    expect(page.locator("#details")).not_to_contain_text(f"{hit.score:.2f}", use_inner_text=True)
    page.locator("summary").click()
    assert hit.fit is not None
    expect(page.locator("#numbers-list")).to_contain_text(f"{hit.score:.2f}")
    expect(page.locator("#numbers-list")).to_contain_text(f"{100 * hit.fit:.0f} %")

    def with_small_scores(route: Route) -> None:
        answer = route.fetch()
        found = answer.json()
        for one in found["hits"]:
            one["score"] = -0.001
        route.fulfill(response=answer, json=found)

    page.route("**/api/search?*", with_small_scores)
    open_photo(page, hit.id)
    page.locator("summary").click()
    expect(page.locator("#numbers-list dd").first).to_have_text("0.00")


def test_a_description_is_written_when_asked_for_and_its_failure_is_no_description(page: Page) -> None:
    open_photo(page, "camera.jpg")
    page.route("**/api/caption?*", lambda route: route.fulfill(status=503, json={"detail": "the index is damaged."}))
    page.get_by_role("button", name="Describe this photo").click()
    expect(page.locator("#caption-failed")).to_have_text("No sentence was found. The index is damaged.")
    expect(page.locator("#caption-words")).to_be_empty()
    page.unroute("**/api/caption?*")
    page.locator("#describe").click()
    expect(page.locator("#caption-words")).to_contain_text(re.compile("man|person"), timeout=60_000)
    expect(page.locator("#caption-failed")).to_be_hidden()
    assert page.locator("#large").get_attribute("alt") == page.locator("#caption-words").inner_text()
    page.route("**/api/explain?*", lambda route: route.abort())
    page.get_by_role("button", name="Show why").click()
    expect(page.locator("#why-failed")).to_contain_text("Why it fits cannot be said. The service does not answer.")
    expect(page.locator("#named")).to_be_hidden()


def test_an_original_that_is_gone_is_said_to_be(page: Page, place: Place) -> None:
    hidden = place.photos / "coffee.hidden"
    (place.photos / "coffee.jpg").rename(hidden)
    try:
        page.locator(".tile").nth(search(page).index("coffee.jpg")).click()
        expect(page.locator("#gone")).to_contain_text("The original is gone")
        shown = page.locator("#large").evaluate("image => image.clientWidth / image.naturalWidth")
        assert shown <= 1.01
        page.get_by_role("button", name="Download").click()
        expect(page.locator("#done")).to_contain_text("The original cannot be downloaded. This photo is gone since it")
    finally:
        hidden.rename(place.photos / "coffee.jpg")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#gone")).to_be_empty()
    expect(page.locator("#done")).to_be_empty()


def test_the_original_and_its_path_can_be_had(page: Page, place: Place) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_photo(page, PANORAMA)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "wide.jpg"
    assert Path(download.value.path()).read_bytes() == (place.photos / PANORAMA).read_bytes()
    page.get_by_role("button", name="Copy path").click()
    expect(page.locator("#done")).to_have_text(f"Copied: {place.photos / PANORAMA}")
    assert page.evaluate("navigator.clipboard.readText()") == str(place.photos / PANORAMA)


def drawn(page: Page) -> tuple[float, float, float]:
    """How many times larger the photo is than at first, and where its middle is from that of its view, in pixels."""
    x, y, width = page.evaluate(
        """() => {
            const [photo, view] = ['figure', 'view'].map(id => document.getElementById(id).getBoundingClientRect());
            return [photo.x + photo.width / 2 - view.x - view.width / 2,
                photo.y + photo.height / 2 - view.y - view.height / 2, photo.width];
        }"""
    )
    return width / page.locator("#figure").evaluate("figure => figure.offsetWidth"), x, y


def test_a_panorama_is_whole_and_can_be_looked_at_closely(page: Page) -> None:
    open_photo(page, PANORAMA)
    view, figure = (page.locator(part).bounding_box() for part in ("#view", "#figure"))
    assert view is not None
    assert figure is not None
    assert figure["width"] == pytest.approx(view["width"], abs=1)
    assert figure["width"] / figure["height"] == pytest.approx(8, rel=0.02)
    assert drawn(page) == pytest.approx((1, 0, 0), abs=0.5)
    middle = (view["x"] + view["width"] / 2, view["y"] + view["height"] / 2)
    page.mouse.dblclick(*middle)
    scale, x, y = drawn(page)
    assert scale == pytest.approx(view["height"] / figure["height"], rel=0.02)
    # What is shown now has more pixels than the screen's picture.
    expect(page.locator("#large")).to_have_js_property("naturalWidth", 4000)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 120, middle[1] + 30, steps=3)
    page.mouse.up()
    assert drawn(page)[1:] == pytest.approx((x + 120, y), abs=2)  # as high as its view, it stays
    page.keyboard.press("ArrowRight")
    assert drawn(page)[1] < x + 100
    page.keyboard.press("0")
    assert drawn(page) == pytest.approx((1, 0, 0), abs=0.5)
    page.keyboard.press("+")
    assert drawn(page)[0] == pytest.approx(1.5, rel=0.01)
    page.keyboard.press("-")
    page.mouse.move(view["x"] + 10, middle[1])
    page.mouse.wheel(0, -300)
    scale, x, _ = drawn(page)
    assert scale > 1.5
    # The point under the pointer stays there.
    assert x == pytest.approx((view["width"] / 2 - 10) * (scale - 1), rel=0.03)
    page.mouse.wheel(0, 3000)
    assert drawn(page) == pytest.approx((1, 0, 0), abs=0.5)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#details-name")).not_to_have_text("wide.jpg")


def touch(session: CDPSession, kind: str, *fingers: tuple[float, float]) -> None:
    points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(fingers)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_fingers_swipe_to_the_next_photo_and_pinch_closer(page: Page) -> None:
    names = search(page)
    page.locator(".tile").nth(1).tap()
    expect(page.locator("#details-name")).to_have_text(names[1])
    session = page.context.new_cdp_session(page)
    for start, end, name in ((500, 300, names[2]), (300, 500, names[1])):
        touch(session, "touchStart", (start, 400))
        for step in range(1, 5):
            touch(session, "touchMove", (start + (end - start) * step / 4, 400))
        touch(session, "touchEnd")
        expect(page.locator("#details-name")).to_have_text(name)
    touch(session, "touchStart", (380, 400), (420, 400))
    for apart in (30, 40, 60):
        touch(session, "touchMove", (400 - apart, 400), (400 + apart, 400))
    touch(session, "touchEnd")
    assert drawn(page)[0] == pytest.approx(3, rel=0.1)
    expect(page.locator("#details-name")).to_have_text(names[1])


def test_the_photo_fills_the_screen_and_escape_leads_back_step_by_step(page: Page) -> None:
    search(page)
    page.locator(".tile").nth(1).click()
    page.keyboard.press("f")
    page.wait_for_function("() => document.fullscreenElement?.id === 'stage'")
    expect(page.locator("#like")).to_be_hidden()
    expect(page.locator("#whole")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.locator("#like")).to_be_visible()
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(page.locator(".tile").nth(2)).to_be_focused()
