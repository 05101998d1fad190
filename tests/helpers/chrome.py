"""A real browser, where there is one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="the browser chromium is not here (apt-get install chromium)"
)


# Five seconds, the default, are too few for a machine that does other things beside.
expect.set_options(timeout=20_000)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, without a window."""
    # Root may not sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()
