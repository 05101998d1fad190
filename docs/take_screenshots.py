"""Take the pictures of the page that README and docs/http.md show.

    vsrn demo
    vsrn index demo/world/images -o demo/idx --model demo/run
    python docs/take_screenshots.py demo/idx

What they show are the demo's drawn scenes, and what its model really finds in them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
SENTENCE = "a white star in the dark"
DESK, PHONE = {"width": 1200, "height": 760}, {"width": 390, "height": 780}


def main(index: str) -> None:
    """A service of its own, and one browser after the other."""
    service = subprocess.Popen(
        [sys.executable, "-m", "vsrn", "serve", index, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert service.stderr is not None
        found = re.search(r"http://\S+", service.stderr.readline())
        assert found is not None
        take(found[0])
    finally:
        service.terminate()
        service.wait()


def take(address: str) -> None:
    """Three pictures: the grid by day, one photo by night, the phone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(viewport=DESK, base_url=address, color_scheme="light").new_page()
        find(page)
        page.locator(".tile").first.hover()
        shoot(page, ".tile .overlay", "serve-search.jpg")
        page = browser.new_context(viewport=DESK, base_url=address, color_scheme="dark").new_page()
        find(page)
        page.locator(".tile").first.click()
        expect(page.locator("#caption-words")).not_to_have_class(re.compile("waiting"), timeout=60_000)
        shoot(page, "#figure .overlay", "serve-photo.jpg")
        page = browser.new_context(viewport=PHONE, base_url=address, has_touch=True, color_scheme="light").new_page()
        find(page)
        page.locator(".tile").first.tap()
        shoot(page, ".tile .overlay", "serve-phone.jpg")
        browser.close()


def find(page: Page) -> None:
    """Ask for the sentence and wait for the photos."""
    page.goto(f"/?q={SENTENCE.replace(' ', '+')}")
    expect(page.locator(".tile")).to_have_count(24)
    page.wait_for_load_state("networkidle")


def shoot(page: Page, shown: str, name: str) -> None:
    """Once what is to be seen is there and has stopped moving."""
    expect(page.locator(shown)).to_be_visible()
    page.wait_for_timeout(600)
    page.screenshot(path=IMAGES / name, type="jpeg", quality=88)


if __name__ == "__main__":
    main(sys.argv[1])
