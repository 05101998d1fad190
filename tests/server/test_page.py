"""The page in a real browser: what a person does with it, and what they then see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chrome import NEEDS_CHROMIUM
from playwright.sync_api import Browser, Page, Route, expect
from serving import ODD_ID, Place, make_place, serving

from vsrn.search.index import Index
from vsrn.server.security import Limits

pytestmark = NEEDS_CHROMIUM

SENTENCE = "a dark red light"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"), num_photos=40)


@pytest.fixture(scope="module")
def address(place: Place) -> Iterator[str]:
    with serving(place, limits=Limits(upload_bytes=50_000)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A desk's browser at the start, which must not complain of anything."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, base_url=address) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.extend([message.text] * (message.type == "error")))
        page.goto("/")
        expect(page.locator(".tile")).to_have_count(24)
        yield page
        # The browser itself notes every 4xx answer; those are what some tests are about.
        assert [complaint for complaint in complaints if "Failed to load resource" not in complaint] == []


@pytest.fixture(scope="module")
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


def shown(page: Page) -> list[str]:
    """Ids of the photos on the page, in order."""
    ids: list[str] = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.dataset.id)")
    return ids


def expected(index: Index, sentence: str, k: int = 24) -> list[str]:
    return [hit.id for hit in index.search(sentence, k)]


def type_sentence(page: Page, sentence: str = SENTENCE) -> None:
    page.locator("#sentence").fill(sentence)
    expect(page.locator("#status")).to_contain_text(f"“{sentence}”")


def test_photos_come_while_typing_and_the_address_follows(page: Page, index: Index) -> None:
    assert shown(page) == [record.id for record in index.latest(24)]
    for sentence in ("red", "red light", "dark"):
        type_sentence(page, sentence)
        assert shown(page) == expected(index, sentence)
    assert page.url.endswith("/?q=dark")
    page.reload()
    expect(page.locator("#status")).to_contain_text("“dark”")
    assert shown(page) == expected(index, "dark")
    assert page.locator("#sentence").input_value() == "dark"
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator(".tile")).to_have_count(41)
    assert shown(page) == expected(index, "dark", 99)


def test_a_slow_old_answer_never_replaces_a_new_one(page: Page, index: Index) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api/search?sentence=red&*", hold)
    page.locator("#sentence").fill("red")
    expect(page.locator("#photos")).to_have_class(re.compile("busy"))
    while not held:
        page.wait_for_timeout(20)
    type_sentence(page, "green")
    held[0].continue_()
    page.wait_for_timeout(200)
    assert shown(page) == expected(index, "green")


def test_the_grid_is_justified_and_no_photo_is_distorted(page: Page) -> None:
    type_sentence(page)
    boxes = page.locator(".photos li").evaluate_all("all => all.map(li => li.getBoundingClientRect().toJSON())")
    right = page.locator("#photos").evaluate("list => list.getBoundingClientRect().right")
    rows: dict[float, list[dict[str, float]]] = {}
    for box in boxes:
        rows.setdefault(box["top"], []).append(box)
    *full, _ = rows.values()
    assert len(full) > 2
    for row in full:
        assert row[-1]["right"] == pytest.approx(right, abs=1)
        assert len({box["height"] for box in row}) == 1
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(image => image.naturalWidth > 0)")
    sizes = page.locator(".tile img").evaluate_all(
        "all => all.map(i => [i.clientWidth / i.clientHeight, i.naturalWidth / i.naturalHeight])"
    )
    assert [seen for seen, _ in sizes] == pytest.approx([true for _, true in sizes], rel=0.03)


def test_everything_can_be_done_from_the_keyboard(page: Page, index: Index) -> None:
    page.locator("#sentence").blur()
    page.keyboard.press("/")
    page.keyboard.type(SENTENCE)
    expect(page.locator("#status")).to_contain_text(SENTENCE)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    found = expected(index, SENTENCE)
    expect(page.locator(".tile").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#details-name")).to_have_text(found[1].rpartition("/")[2])
    page.keyboard.press("ArrowRight")
    expect(page.locator("#details-name")).to_have_text(found[2].rpartition("/")[2])
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(page.locator(".tile").nth(2)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#sentence")).to_be_focused()


def test_a_closer_look_leads_to_more_like_it_and_back(page: Page, index: Index) -> None:
    type_sentence(page)
    page.locator(".tile").nth(4).click()
    chosen = expected(index, SENTENCE)[4]
    expect(page.locator("#details-name")).to_have_text(chosen.rpartition("/")[2])
    expect(page.locator("#large")).to_have_attribute("src", re.compile("api/photo"))
    page.locator("#like").click()
    expect(page.locator("#status")).to_contain_text("Like the one you chose")
    assert shown(page) == [hit.id for hit in index.search_like(chosen, 24)]
    page.go_back()
    expect(page.locator("#status")).to_contain_text(SENTENCE)
    assert shown(page) == expected(index, SENTENCE)


def test_a_photo_can_be_chosen_dropped_or_pasted(page: Page, place: Place, index: Index) -> None:
    names = ["00.png", "holiday/07.png", ODD_ID]
    contents = [list((place.photos / name).read_bytes()) for name in names]
    page.locator("#file").set_input_files(place.photos / names[0])
    expect(page.locator("#status")).to_contain_text("Like your photo", timeout=60_000)
    assert shown(page)[0] == names[0]
    expect(page.locator("#query-photo img")).to_be_visible()
    for kind, name, content in (("drop", names[1], contents[1]), ("paste", names[2], contents[2])):
        page.evaluate(
            """([kind, bytes]) => {
                const data = new DataTransfer(), all = {bubbles: true, cancelable: true};
                data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
                const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, ...all})
                    : new ClipboardEvent('paste', {clipboardData: data, ...all});
                document.body.dispatchEvent(event);
            }""",
            [kind, content],
        )
        expect(page.locator(".tile").first).to_have_attribute("data-id", name)
        assert shown(page) == [hit.id for hit in index.search_image(place.photos / name, 24)]
    page.locator("#forget-photo").click()
    expect(page.locator("#start")).to_be_visible()


def test_what_goes_wrong_is_said_and_can_be_tried_again(page: Page, tmp_path: Path, index: Index) -> None:
    (tmp_path / "text.png").write_text("no photo")
    page.locator("#file").set_input_files(tmp_path / "text.png")
    expect(page.locator("#problem")).to_contain_text(
        "This photo is not an image in a format vsrn reads", timeout=60_000
    )
    (tmp_path / "large.png").write_bytes(bytes(60_000))
    page.locator("#file").set_input_files(tmp_path / "large.png")
    expect(page.locator("#problem")).to_contain_text("The photo is larger than 50,000 bytes")
    page.route("**/api/search?*", lambda route: route.abort())
    page.locator("#sentence").fill(SENTENCE)
    expect(page.locator("#problem")).to_contain_text("The service does not answer")
    page.unroute("**/api/search?*")
    page.locator("#again").click()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text(SENTENCE)
    assert shown(page) == expected(index, SENTENCE)
    type_sentence(page, "red zorp")
    expect(page.locator("#unknown")).to_contain_text("never read 'zorp'")
    assert page.locator("#unknown").get_attribute("aria-live") == "polite"
    page.locator("#sentence").fill("zorp qwrtz")
    expect(page.locator("#unknown")).to_contain_text("No word of the sentence names anything that the model knows")
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.locator(".nothing")).to_have_text("No photo fits.")
    page.locator("#sentence").fill("x" * 600)
    assert len(page.locator("#sentence").input_value()) == 500


def test_names_are_text_and_never_markup(page: Page) -> None:
    type_sentence(page)
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator(".tile")).to_have_count(41)
    page.locator(".tile").nth(shown(page).index(ODD_ID)).click()
    expect(page.locator("#details-name")).to_have_text(ODD_ID.rpartition("/")[2])
    assert page.locator("#details-name b").count() == 0
    # Not image.decode(), which fails where the photo takes the thumbnail's place meanwhile.
    page.wait_for_function("() => document.getElementById('large').naturalWidth > 0")
