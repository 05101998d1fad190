"""Finding one's way on the page: filters, browsing, a photo with words, photos that look the same, and waiting."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest
from chrome import NEEDS_CHROMIUM
from colours import export_colours, save_photo
from playwright.sync_api import Browser, Page, Route, expect
from serving import Place, serving

from vsrn.search.build import update_index
from vsrn.search.index import Index
from vsrn.search.where import Where

pytestmark = NEEDS_CHROMIUM

NUM = 110


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Photos of several months in three folders, and a copy of one."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(NUM):
        path = folder / "photos" / ["", "holiday", "holiday/beach"][number % 3] / f"IMG_{number:03}.png"
        save_photo(path, number)
        taken = datetime(2024, 1 + number // 40, 1 + number % 28, 12).timestamp()
        os.utime(path, (taken, taken))
    shutil.copy2(folder / "photos" / "IMG_000.png", folder / "photos" / "copy.png")
    update_index(folder / "photos", folder / "idx", export_colours(folder / "model"))
    return Place(folder / "photos", folder / "idx")


@pytest.fixture(scope="module")
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A desk's browser, whose scripts must not fail."""
    with browser.new_context(viewport={"width": 1000, "height": 700}, base_url=address) as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert complaints == []


def shown(page: Page) -> list[str]:
    ids: list[str] = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.dataset.id)")
    return ids


def assert_one_heading(page: Page) -> None:
    seen = page.locator("h1").evaluate_all("all => all.filter(one => one.checkVisibility()).length")
    assert seen == 1


def test_filters_are_set_kept_in_the_address_and_taken_away(page: Page, index: Index) -> None:
    page.goto("/")
    assert_one_heading(page)
    page.locator("#filter").click()
    expect(page.locator("#filter-folder")).to_be_focused()
    expect(page.locator("#filter-folder option")).to_have_text(
        ["All folders", f"holiday ({NUM * 2 // 3})", f"holiday/beach ({NUM // 3})"]
    )
    page.locator("#filter-folder").select_option("holiday/beach")
    expect(page.locator(".chip")).to_have_text(["in holiday/beach"])
    page.locator("#filter-from").fill("2024-02-01")
    page.locator("#filter-to").fill("2024-02-20")
    page.locator("#filter-name").fill("img_04")
    expect(page.locator(".chip")).to_have_text(
        ["in holiday/beach", "from 1 Feb 2024", "until 20 Feb 2024", "named “img_04”"]
    )
    assert page.url.endswith("/?folder=holiday%2Fbeach&from=2024-02-01&to=2024-02-20&name=img_04")
    where = Where("holiday/beach", date(2024, 2, 1), date(2024, 2, 20), name="img_04")
    expected = [photo.id for photo in index.latest(99, where)]
    expect(page.locator(".tile")).to_have_count(len(expected))
    assert shown(page) == expected == sorted(expected, reverse=True)
    assert len(expected) == index.count(where) == 3
    assert_one_heading(page)
    page.locator("#sentence").fill("red")
    expect(page.locator("#status")).to_contain_text("“red”")
    assert set(shown(page)) == set(expected)
    page.reload()
    expect(page.locator(".tile")).to_have_count(3)
    page.get_by_role("button", name="Remove the filter: named “img_04”").click()
    expect(page.locator(".chip")).to_have_count(3)
    expect(page.locator(".tile")).to_have_count(
        index.count(Where("holiday/beach", date(2024, 2, 1), date(2024, 2, 20)))
    )
    page.go_back()
    expect(page.locator(".chip")).to_have_count(4)


def test_what_the_filters_leave_nothing_of_is_said(page: Page) -> None:
    for search in ("?name=zzz", "?q=red&to=1999-01-01"):
        page.goto(f"/{search}")
        expect(page.locator(".nothing")).to_have_text("No photo passes these filters.")
        assert_one_heading(page)
        page.get_by_role("button", name="Clear the filters").click()
        expect(page.locator(".tile").first).to_be_visible()
        expect(page.locator(".chip")).to_have_count(0)
    page.goto("/?folder=holidy")
    expect(page.locator("#problem")).to_contain_text("The index has no folder 'holidy'. Did you mean 'holiday'?")
    page.get_by_role("button", name="Clear the filters").click()
    expect(page.locator("#start")).to_be_visible()
    page.goto("/?q=red&foldr=holiday&from=May")
    expect(page.locator("#unknown")).to_contain_text("The address has “foldr”, which means nothing here")
    expect(page.locator("#unknown")).to_contain_text("“May” is no date; write it as 2024-05-17.")
    page.goto("/?like=nowhere.png")
    expect(page.locator("#problem")).to_contain_text("holds no photo of that id")
    page.get_by_role("button", name="Start again").click()
    expect(page.locator("#start")).to_be_visible()


def test_scrolling_shows_the_whole_index_by_month(page: Page, index: Index) -> None:
    page.goto("/")
    expect(page.locator(".tile")).to_have_count(24)
    while page.locator(".tile").count() < NUM:
        page.mouse.move(500, 400)
        page.mouse.wheel(0, 3_000)
        page.wait_for_timeout(50)
    expect(page.locator("#end")).to_have_text(f"That is all: {NUM + 1} photos.")
    expect(page.locator("#more")).to_be_hidden()
    assert shown(page) == [photo.id for photo in index.latest(999) if photo.id != "IMG_000.png"]
    expect(page.locator(".month h2")).to_have_text(["March 2024", "February 2024", "January 2024"])
    label = page.locator(".tile").first.get_attribute("aria-label")
    latest = index.latest(1)[0]
    assert label is not None
    assert label.startswith(f"{latest.id.rpartition('/')[2]}, ")
    assert "Mar 2024" in label


def test_copies_are_one_tile_that_opens(page: Page) -> None:
    page.goto("/?q=red&from=2024-01-01&to=2024-01-01")
    badge = page.locator(".alike")
    expect(badge).to_have_text("2 alike")
    before = shown(page)
    assert len(before) == 2
    assert len({"IMG_000.png", "copy.png"} & set(before)) == 1
    badge.focus()
    page.keyboard.press("Enter")
    expect(badge).to_have_attribute("aria-expanded", "true")
    assert set(shown(page)) == {"IMG_000.png", "copy.png", "holiday/IMG_028.png"}
    badge.click()
    assert shown(page) == before


def test_a_photo_is_searched_with_words(page: Page, place: Place, index: Index) -> None:
    page.goto("/?like=IMG_003.png")
    expect(page.locator("#query-photo img")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Like the one you chose")
    page.locator("#sentence").fill("dark blue")
    expect(page.locator("#status")).to_contain_text("Like the one you chose, “dark blue”")
    assert page.url.endswith("/?q=dark+blue&like=IMG_003.png")
    found = index.fold(index.search_like("IMG_003.png", 24, sentence="dark blue"))
    assert shown(page) == [hit.id for hit in found]
    assert shown(page) != [hit.id for hit in index.fold(index.search("dark blue", 24))]
    expect(page.locator(".tile").first).to_have_attribute("aria-label", re.compile("number 1$"))
    page.get_by_role("button", name="Clear the words").click()
    expect(page.locator("#status")).to_have_text(re.compile("^Like the one you chose ·"))
    page.go_back()
    expect(page.locator("#status")).to_contain_text("“dark blue”")
    page.get_by_role("button", name="Stop searching by this photo").click()
    expect(page.locator("#status")).to_contain_text("Best first for “dark blue”")
    page.locator("#file").set_input_files(place.photos / "IMG_006.png")
    expect(page.locator("#status")).to_contain_text("Like your photo", timeout=60_000)
    page.locator("#sentence").fill("green")
    expect(page.locator("#status")).to_contain_text("Like your photo, “green”")
    found = index.fold(index.search_image(place.photos / "IMG_006.png", 24, sentence="green"))
    assert shown(page) == [hit.id for hit in found]
    page.locator("#forget-photo").click()
    expect(page.locator("#status")).to_contain_text("Best first for “green”")
    page.go_back()
    expect(page.locator("#status")).to_contain_text("Like your photo, “green”")


def test_back_leads_through_the_searches(page: Page) -> None:
    page.goto("/")
    for sentence in ("red", "dark green"):
        page.locator("#sentence").fill("")
        page.locator("#sentence").press_sequentially(sentence, delay=20)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text(f"“{sentence}”")
    page.locator("#sentence").press("Escape")
    expect(page.locator("#start")).to_be_visible()
    for sentence in ("dark green", "red"):
        page.go_back()
        expect(page.locator("#status")).to_contain_text(f"“{sentence}”")
        assert page.locator("#sentence").input_value() == sentence


def test_waiting_does_not_show_old_photos_as_the_answer(page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api/photos?*", hold)
    page.goto("/", wait_until="commit")
    expect(page.locator(".ghost").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("Looking…")
    assert_one_heading(page)
    held.pop().continue_()
    expect(page.locator(".tile")).to_have_count(24)
    expect(page.locator(".ghost")).to_have_count(0)
    page.route("**/api/search?*", hold)
    page.locator("#sentence").fill("red")
    expect(page.locator("#status")).to_have_text("Looking…")
    expect(page.locator(".ghost").first).to_be_visible()
    expect(page.locator(".tile")).to_have_count(0)
    held.pop().continue_()
    expect(page.locator("#status")).to_contain_text("“red”")


def test_a_thumbnail_that_does_not_come_is_named(page: Page) -> None:
    page.route("**/api/thumbnail?*", lambda route: route.abort())
    page.goto("/?name=IMG_00")
    expect(page.locator(".tile.lost")).to_have_count(10)
    expect(page.locator(".lost-name").first).to_have_text("IMG_009.png")
    assert page.locator(".tile img").count() == 0


def test_a_piece_that_fails_can_be_asked_for_again(page: Page) -> None:
    page.route("**/api/photos?*after=*", lambda route: route.abort())
    page.goto("/")
    page.locator("#more").scroll_into_view_if_needed()
    expect(page.locator("#more")).to_have_text("That failed; try again")
    expect(page.locator(".tile")).to_have_count(24)
    page.unroute("**/api/photos?*after=*")
    page.locator("#more").click()
    expect(page.locator(".tile")).to_have_count(96)


def test_an_empty_index_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a.png", 1)
    update_index(tmp_path / "photos", tmp_path / "idx", export_colours(tmp_path / "model"))
    (tmp_path / "photos" / "a.png").unlink()
    (tmp_path / "photos" / "note.txt").write_text("no photo")
    update_index(tmp_path / "photos", tmp_path / "idx", prune=True)
    with serving(Place(tmp_path / "photos", tmp_path / "idx")) as address, browser.new_page(base_url=address) as page:
        page.goto("/")
        expect(page.locator("h1").locator("visible=true")).to_have_text("No photos yet.")
        expect(page.locator("#start-empty")).to_contain_text("vsrn index")
        assert page.locator("#examples button").count() == 0
        assert page.locator("#status").inner_text() == ""
