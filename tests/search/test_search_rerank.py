"""`vsrn search --rerank`: the best photos in the order that a SCAN gives them, from what the index keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import Colours, colour_model, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.cli import run_command
from vsrn.config import Config, ModelConfig
from vsrn.data.region_store import StoreInfo
from vsrn.errors import SearchError, VsrnError
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, write_model
from vsrn.model.scan import SCAN, similarities
from vsrn.search.build import update_index
from vsrn.search.rerank import Reranker

SENTENCE = "dark red"
PHOTOS = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(PHOTOS):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Path:
    update_index(photos, tmp_path / "idx", export_colours(tmp_path / "exported"))
    return tmp_path / "idx"


def scan_model(**model: Any) -> StoredModel[SCAN]:
    """A SCAN with random weights that learned from the same regions."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"feature_dim": Colours.feature_dim, "joint_dim": 8, "word_dim": 4} | model
    config, vocabulary = Config(model=ModelConfig(kind="scan", **sizes)), colour_model().vocabulary
    built = build_model(config, vocabulary)
    assert isinstance(built, SCAN)
    return StoredModel(config, vocabulary, built.eval(), StoreInfo("colours", Colours.fingerprint))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_model(tmp_path / "scan", scan_model())
    return tmp_path / "scan"


@torch.no_grad()
def slow_score(photo: Path) -> float:
    """By the SCAN from the photo's own file."""
    stored, colours = scan_model(), Colours()
    features = torch.from_numpy(colours.features(np.asarray(colours.prepare(Image.open(photo).convert("RGB")))))
    ids = torch.tensor([stored.vocabulary.encode(SENTENCE)])
    length = torch.tensor([ids.shape[1]])
    regions, words = stored.model.region_encoder(features[None]).vectors, stored.model.word_encoder(ids, length)
    return float(similarities(regions, words, length, None, stored.config.model.scan))


@pytest.mark.parametrize("top", [1, 5, 50])
def test_the_best_take_the_order_of_the_scan_and_the_rest_keep_theirs(
    index: Path, scan: Path, photos: Path, top: int
) -> None:
    with vsrn.open_index(index) as opened:
        found = [hit.id for hit in opened.search(SENTENCE, PHOTOS)]
        hits = Reranker(opened, scan).search(SENTENCE, PHOTOS, top=top)
        few = Reranker(opened, scan).search(SENTENCE, 3, top=top)
    slow = {name: slow_score(photos / name) for name in found}
    expected = sorted(found[:top], key=lambda name: -slow[name]) + found[top:]
    assert [hit.id for hit in hits] == expected
    assert [hit.id for hit in few] == expected[:3]
    # The index keeps features as halves.
    assert [hit.score for hit in hits[:top]] == pytest.approx([slow[name] for name in expected[:top]], abs=2e-3)
    assert top == 1 or expected != found, "the example must be re-ordered"


def test_the_command_prints_the_hits_in_their_new_order(
    index: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("search", [str(index), SENTENCE, "-k", "4", "--rerank", str(scan), "--json"]) == 0
    printed = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]
    with vsrn.open_index(index) as opened:
        assert printed == [hit.id for hit in Reranker(opened, scan).search(SENTENCE, 4)]
    assert run_command("search", [str(index), "--like", "1.png", "--rerank", str(scan)]) == 2
    assert "--rerank compares the words of a sentence" in capsys.readouterr().err


def test_an_index_without_regions_cannot_be_re_ordered(photos: Path, scan: Path, tmp_path: Path) -> None:
    update_index(photos, tmp_path / "bare", export_colours(tmp_path / "exported"), explain=False)
    with vsrn.open_index(tmp_path / "bare") as opened, pytest.raises(SearchError, match="--no-explain and keeps no"):
        Reranker(opened, scan)


@pytest.mark.parametrize("other", ["extractor", "size", "kind"])
def test_a_model_that_cannot_read_the_index_is_refused(index: Path, tmp_path: Path, other: str) -> None:
    stored: StoredModel[SCAN] | StoredModel = scan_model()
    says = "has regions of 6 numbers, but this model reads 9"
    if other == "extractor":
        stored = replace(stored, regions=StoreInfo("grid", "f" * 64))
        says = r"the index .* was made by 'colours' \(\w{12}\), but this model learned from 'grid'"
    elif other == "size":
        stored = scan_model(feature_dim=9)
    else:
        stored, says = colour_model(), 'name a run of kind "scan"'
    write_model(tmp_path / "other", stored)
    with vsrn.open_index(index) as opened, pytest.raises(VsrnError, match=says):
        Reranker(opened, tmp_path / "other")
