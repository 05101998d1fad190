"""Where the recordings and the real data are, and what is skipped without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from serving import Place

TESTS = Path(__file__).parent

# Sums depend on how many threads share them, and workers of one test run must not fight over the processor.
torch.set_num_threads(1)
# No test asserts a time, an example's included.
settings.register_profile("vsrn", deadline=None)
settings.load_profile("vsrn")
SHARED = TESTS.parent.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, help="folder in which tests of the page leave the pictures of the docs")


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Folder for pictures of the page, where somebody wants them."""
    folder: Path | None = request.config.getoption("--pictures")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the outputs recorded from the 2019 model."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos, captions and vocabularies, which cannot be part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("real photos and captions are not here (../shared)")
    return SHARED


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def address(place: Place) -> Iterator[str]:
    """Where a service of the module's `place` answers."""
    from serving import serving

    with serving(place) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    from chrome import chromium

    with chromium() as browser:
        yield browser
