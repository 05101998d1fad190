"""What an index says of why a photo matches, against the model asked about the photo's own file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from colours import Colours, colour_model, export_colours, save_photo

import vsrn
from vsrn.data.regions import RegionNames, Regions
from vsrn.encoders.explain import ExplainView
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import SearchError
from vsrn.extractors.base import Prepared
from vsrn.extractors.provenance import carry_names
from vsrn.search.build import update_index

SENTENCE = "dark red"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_colours(tmp_path / "exported")


@pytest.mark.parametrize("view", ["relevance", "words", "sentence", "image"])
def test_an_index_explains_as_the_model_does(view: ExplainView, photos: Path, exported: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", exported)
    models = (TorchEncoder(colour_model(), "cpu"), vsrn.load(exported))
    with vsrn.open_index(tmp_path / "idx") as index:
        for number in range(4):
            found = index.explain(f"{number}.png", SENTENCE, view)
            assert found.view == view
            np.testing.assert_array_equal(found.boxes, Colours.boxes)
            for model in models:
                expected = model.explain(photos / f"{number}.png", SENTENCE, view)
                # The index keeps features as halves.
                np.testing.assert_allclose(found.weights, expected.weights, atol=5e-3)
                assert found.score == pytest.approx(expected.score, abs=5e-3)


WITHOUT_NUMBERS = Colours.__call__


def with_numbers(extractor: Colours, prepared: Sequence[Prepared]) -> list[Regions]:
    """Quarters that say which one they are."""
    numbers = {"classes": np.array([2, 0, 1, 0]), "attributes": np.array([-1, 0, -1, -1])}
    return [dataclasses.replace(regions, **numbers) for regions in WITHOUT_NUMBERS(extractor, prepared)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (RegionNames(["dog", "sky", "boat"], ["brown"]), ["boat", "brown dog", "sky", "dog"]),
        (RegionNames(["dog", "sky", "boat"]), ["boat", "dog", "sky", "dog"]),
        (RegionNames(), None),
    ],
)
def test_regions_have_the_extractors_names_or_else_those_of_the_models_folder(
    names: RegionNames, expected: list[str] | None, photos: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Colours, "names", names)
    monkeypatch.setattr(Colours, "__call__", with_numbers)
    assert vsrn.load(exported).explain(photos / "1.png", SENTENCE).labels == expected
    carry_names(RegionNames(["a", "b", "c"], ["very"]), exported)
    assert vsrn.load(exported).explain(photos / "1.png", SENTENCE).labels == (expected or ["c", "very a", "b", "a"])


def test_what_an_index_kept_no_regions_of_cannot_be_explained(photos: Path, exported: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", exported, explain=False)
    with vsrn.open_index(tmp_path / "idx") as index, pytest.raises(SearchError, match="made with --no-explain"):
        index.explain("0.png", SENTENCE)


def test_a_photo_that_is_not_there_is_named(photos: Path, exported: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", exported)
    with vsrn.open_index(tmp_path / "idx") as index, pytest.raises(SearchError, match="holds no photo 'nope.png'"):
        index.explain("nope.png", SENTENCE)


def test_an_index_explains_without_torch(photos: Path, exported: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", exported)
    program = (
        "import json, sys, vsrn\n"
        f"with vsrn.open_index({str(tmp_path / 'idx')!r}) as index:\n"
        f"    print(json.dumps(index.explain('0.png', {SENTENCE!r}).to_json()))\n"
        "print(*{'torch', 'onnx', 'timm', 'PIL'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    explained, loaded = run.stdout.splitlines()
    assert loaded == ""
    assert len(json.loads(explained)["regions"]) == len(Colours.boxes)
