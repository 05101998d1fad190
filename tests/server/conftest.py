"""A service of the module's `place`, and a browser for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chrome import chromium
from playwright.sync_api import Browser
from serving import Place, serving


@pytest.fixture(scope="module")
def address(place: Place) -> Iterator[str]:
    with serving(place) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser
