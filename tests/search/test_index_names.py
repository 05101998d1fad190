"""What a detector calls its regions goes with the model into its exports and its indexes, and shows in explanations."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import Colours, colour_model, save_photo

import vsrn
from vsrn.cli import main
from vsrn.data.listing import find_photos
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames, Regions
from vsrn.encoders.export import export_model, export_onnx
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors.base import ExtractorFiles, Prepared, prepare_photo, register_extractor
from vsrn.extractors.extract import extract
from vsrn.extractors.provenance import NAMES_FILE, carry_names
from vsrn.metrics import FloatArray
from vsrn.model.saved import read_model
from vsrn.search.build import update_index
from vsrn.search.layout import INFO_FILE

NAMES = RegionNames(["dog", "sky", "boat"], ["brown", "big"])
SENTENCE = "dark red"


class Detector(Colours):
    """Quarters of a photo with a class and an attribute each, by their own colour; it knows no names by itself."""

    name, has_scores = "coloured-things", True

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        return [dataclasses.replace(found, **kinds_of(found.features)) for found in super().__call__(prepared)]


def kinds_of(features: FloatArray) -> dict[str, Any]:
    shades = (features[:, 0] * 1000).astype(np.int64)
    return {"scores": features[:, 1], "classes": shades % 3, "attributes": shades % 3 - 1}


def make(argument: str, files: ExtractorFiles) -> Detector:
    assert (argument, files) == ("", ExtractorFiles())
    return Detector()


register_extractor("coloured-things", make)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    export_model(
        dataclasses.replace(
            colour_model(), region_names=NAMES, regions=StoreInfo("coloured-things", Colours.fingerprint)
        ),
        tmp_path / "run",
    )
    return tmp_path / "run"


def expected_labels(photo: Path) -> list[str]:
    """Straight from the photo's colours, word by word."""
    detector = Detector()
    words = []
    for shade in (Colours()([prepare_photo(detector, photo)])[0].features[:, 0] * 1000).astype(int):
        how = {0: "", 1: "brown ", 2: "big "}[shade % 3]
        words.append(how + {0: "dog", 1: "sky", 2: "boat"}[shade % 3])
    return words


@pytest.mark.parametrize("exported_first", [False, True])
def test_an_index_names_what_it_explains(exported_first: bool, photos: Path, run: Path, tmp_path: Path) -> None:
    model = run
    if exported_first:
        export_onnx(read_model(run), tmp_path / "exported")
        model = tmp_path / "exported"
    update_index(photos, tmp_path / "idx", model)
    loaded = vsrn.load(model)
    found = set()
    with vsrn.open_index(tmp_path / "idx") as index:
        for photo in sorted(photos.iterdir()):
            expected = expected_labels(photo)
            found |= set(expected)
            assert index.labels(photo.name) == expected
            assert index.explain(photo.name, SENTENCE).labels == expected
            assert loaded.explain(photo, SENTENCE).labels == expected
    assert found == {"dog", "brown sky", "big boat"}


def test_names_survive_changes_and_compaction(photos: Path, run: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "idx", run)
    for number in (0, 2, 3):
        (photos / f"{number}.png").unlink()
    save_photo(photos / "5.png", 50)
    save_photo(photos / "new.png", 60)
    update_index(photos, tmp_path / "idx", prune=True)
    assert (tmp_path / "idx" / "regions-2.bin").exists()
    with vsrn.open_index(tmp_path / "idx") as index:
        for photo in photos.iterdir():
            assert index.labels(photo.name) == expected_labels(photo)
            regions = index.regions(photo.name)
            np.testing.assert_array_equal(regions.boxes, Colours.boxes)
            assert regions.scores is not None


def test_the_command_tells_and_draws_them(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update_index(photos, tmp_path / "idx", run)
    expected = expected_labels(photos / "1.png")
    for asked in (["--index", tmp_path / "idx", "--id", "1.png"], ["--model", run, photos / "1.png"]):
        with pytest.raises(SystemExit) as left:
            main(["explain", *map(str, asked), SENTENCE, "--json"])
        assert left.value.code == 0
        told = json.loads(capsys.readouterr().out)
        assert [region["label"] for region in told["regions"]] == expected
    with pytest.raises(SystemExit):
        main(["explain", *map(str, asked), SENTENCE, "-o", str(tmp_path / "why.png"), "-k", "1"])
    with vsrn.open_index(tmp_path / "idx") as index:
        best = index.explain("1.png", SENTENCE).top(1)[0]
    assert str(best.label) in capsys.readouterr().out


def test_an_index_without_names_is_as_before(photos: Path, run: Path, tmp_path: Path) -> None:
    """One made before names were kept says nothing of them in its page, and is read and added to."""
    (run / NAMES_FILE).unlink()
    update_index(photos, tmp_path / "idx", run)
    page = json.loads((tmp_path / "idx" / INFO_FILE).read_text())
    assert page.pop("names") == {"classes": [], "attributes": []}
    (tmp_path / "idx" / INFO_FILE).write_text(json.dumps(page))
    save_photo(photos / "new.png", 60)
    carry_names(NAMES, run)
    update_index(photos, tmp_path / "idx", run)
    with vsrn.open_index(tmp_path / "idx") as index:
        assert index.labels("new.png") is None
        assert index.explain("0.png", SENTENCE).labels is None


def test_names_that_are_not_the_extractors_are_refused(photos: Path, run: Path, tmp_path: Path) -> None:
    carry_names(RegionNames(["dog"]), run)
    with pytest.raises(DataError, match=r"a region is of class [12], but only 0 to 0 have names"):
        update_index(photos, tmp_path / "idx", run)
    other = next(photo for photo in photos.iterdir() if set(expected_labels(photo)) != {"dog"})
    with pytest.raises(DataError, match=r"a region is of class [12]"):
        vsrn.load(run).explain(other, SENTENCE)
    (run / NAMES_FILE).write_text("[1, 2")
    with pytest.raises(CheckpointError, match=rf"{NAMES_FILE} cannot be read.*copy the {{split}}_names\.json"):
        vsrn.load(run)


def test_a_run_takes_its_names_from_the_store(photos: Path, tmp_path: Path) -> None:
    named = Detector()
    named.names = NAMES
    found = find_photos(photos)
    captions = {photo.id: ["a red light"] for photo in found}
    for split, some in (("train", found[:4]), ("val", found[4:])):
        extract(some, named, tmp_path / "store", split, captions=captions)
    config = tmp_path / "small.toml"
    config.write_text(
        f'[data]\npath = "{tmp_path / "store"}"\nvalidation = "val"\nmin_count = 1\n'
        "[model]\njoint_dim = 8\nword_dim = 4\nreasoning_layers = 1\n[model.captioner]\nenabled = false\n"
        "[train]\nepochs = 1\nlearning_rate_drop = []\nbatch_size = 2\n"
    )
    with pytest.raises(SystemExit) as left:
        main(["train", str(config), "-o", str(tmp_path / "run")])
    assert left.value.code == 0
    shutil.rmtree(tmp_path / "store")
    for photo in photos.iterdir():
        assert vsrn.load(tmp_path / "run").explain(photo, "a red light").labels == expected_labels(photo)
