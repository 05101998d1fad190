"""Code and shipped weights have licences of their own, and both travel in the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from vsrn.cli import run_command
from vsrn.pretrained import MODELS, PACKAGED_MODELS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """The table from which the wheel's metadata is made."""
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_the_expression_names_the_code_every_packaged_model_and_the_table_of_words(project: dict[str, object]) -> None:
    references = [f"LicenseRef-vsrn-{name}" for name in PACKAGED_MODELS]
    assert project["license"] == " AND ".join(["Apache-2.0", *references, "LicenseRef-vsrn-words"])


def test_the_text_of_each_licence_is_listed_and_says_what_it_is(project: dict[str, object]) -> None:
    texts = {str(file): (ROOT / str(file)).read_text() for file in project["license-files"]}  # type: ignore[attr-defined]
    assert "Apache License" in texts.pop("LICENSE")
    for name in PACKAGED_MODELS:
        text = texts.pop(str((MODELS / name / "LICENSE").relative_to(ROOT)))
        assert text.startswith(f"LicenseRef-vsrn-{name}\n")
        assert "RESEARCH AND EDUCATION ONLY" in text
    words = texts.pop("src/vsrn/data/words-LICENSE")
    assert words.startswith("LicenseRef-vsrn-words\n")
    assert all(whose in words for whose in ("Lee Miller", "Princeton University", "Kevin Atkinson"))
    assert not texts


@pytest.mark.parametrize("page", ["README.md", "docs/flickr8k-small.md"])
def test_the_pages_that_offer_the_weights_say_what_they_are_for(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "research and education only" in text
    assert "src/vsrn/pretrained/flickr8k-small/LICENSE" in text


def test_an_index_carries_the_licence_of_the_model_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "red.png")
    assert run_command("index", [str(tmp_path / "photos"), "-o", str(tmp_path / "idx")]) == 0
    ours, theirs = tmp_path / "idx" / "model" / "LICENSE", MODELS / PACKAGED_MODELS[0] / "LICENSE"
    assert ours.read_bytes() == theirs.read_bytes()
