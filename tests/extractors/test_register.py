"""An extractor of somebody else's, by a name of their own."""

from __future__ import annotations

import pytest
from colours import make
from shy import Shy

import vsrn
from vsrn.errors import ConfigError
from vsrn.extractors.base import ExtractorFiles, RegionExtractor, extractor_names, make_extractor


def test_a_registered_extractor_is_made_by_its_name_and_gets_what_the_user_says(tmp_path: object) -> None:
    seen: list[tuple[str, ExtractorFiles]] = []

    def factory(argument: str, files: ExtractorFiles) -> RegionExtractor:
        seen.append((argument, files))
        return Shy()

    vsrn.register_extractor("test-register.shy", factory)
    vsrn.register_extractor("test-register.shy", factory)  # as a module that is imported twice does
    assert "test-register.shy" in extractor_names()
    weights = f"{tmp_path}/w.bin"
    assert make_extractor("test-register.shy:two:three", weights).name == "shy"
    ((argument, files),) = seen
    assert (argument, str(files.weights), files.classes) == ("two:three", weights, None)


@pytest.mark.parametrize("name", ["grid", "colours"])
def test_a_name_that_is_taken_stays_what_it_was(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is an extractor '{name}' already"):
        vsrn.register_extractor(name, lambda *_: Shy())
    assert make_extractor("colours").name == "colours"
    assert make("", ExtractorFiles()).name == "colours"


@pytest.mark.parametrize("name", ["", "a:b", "a b", "../a", "-a"])
def test_a_name_that_nobody_could_write_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name an extractor"):
        vsrn.register_extractor(name, lambda *_: Shy())
