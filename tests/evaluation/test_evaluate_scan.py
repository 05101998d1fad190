"""Evaluation of SCAN: every image with every caption, against one pair at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import make_scan, make_store

from vsrn.cli import run_command
from vsrn.config import ScanConfig
from vsrn.data.splits import Split, open_split
from vsrn.encoders import load_encoder, scan_encoder
from vsrn.encoders.base import Encoder
from vsrn.encoders.scan_encoder import ScanEncoder
from vsrn.errors import CheckpointError
from vsrn.evaluation.evaluate import Retrieval, evaluate
from vsrn.metrics import FloatArray, IntArray, Ranks, rank_blocks
from vsrn.model.saved import read_model
from vsrn.model.scan import similarities


def ranks_of(similarities: FloatArray, owners: IntArray) -> Ranks:
    return rank_blocks(lambda: [(0, similarities)], owners)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"dev": 25}, captions_per_image=3)


@pytest.fixture
def padded(store: Path) -> Path:
    """Of five regions, the last ones are padding in most rows."""
    np.save(store / "dev_counts.npy", np.arange(25) % 5 + 1)
    return store


def slow_similarities(encoder: Encoder, split: Split) -> FloatArray:
    """One image with one caption at a time, straight through the modules."""
    assert isinstance(encoder, ScanEncoder)
    model, vocabulary = encoder.model, encoder.vocabulary
    rows = []
    with torch.no_grad():
        for image in range(split.num_images):
            features, counts = split.read_images(np.array([image]))
            real = features.shape[1] if counts is None else int(counts[0])
            regions = model.region_encoder(torch.from_numpy(features[:, :real])).vectors
            row = []
            for caption in split.captions:
                ids = vocabulary.encode(caption)
                words = model.word_encoder(torch.tensor([ids]), torch.tensor([len(ids)]))
                row.append(float(similarities(regions, words, torch.tensor([len(ids)]), None, model.config.scan)))
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("at_once", [1, 10_000_000])
def test_similarities_of_a_split_are_those_of_each_pair(
    padded: Path, tmp_path: Path, direction: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_encoder, "AFFINITIES_AT_ONCE", at_once)
    encoder, split = load_encoder(make_scan(tmp_path / "scan", padded, direction=direction)), open_split(padded, "dev")
    slow = slow_similarities(encoder, split)
    encoded = encoder.encode_split(split)
    np.testing.assert_allclose(encoded.similarities(), slow, atol=1e-5)
    np.testing.assert_allclose(encoded.similarities(slice(3, 7)), slow[3:7], atol=1e-5)
    images, captions = np.array([9, 0, 4]), np.array([70, 2, 2, 30])
    np.testing.assert_allclose(encoded.only(images, captions).similarities(), slow[np.ix_(images, captions)], atol=1e-5)


@pytest.mark.parametrize("five_fold", [False, True])
def test_ranks_are_those_of_the_whole_table(
    store: Path, tmp_path: Path, five_fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsrn.metrics.FIVE_FOLD_IMAGES", 5)
    encoder, split = load_encoder(make_scan(tmp_path / "scan", store)), open_split(store, "dev")
    retrieval = Retrieval([encoder], split)
    seen: list[int] = []
    ranks = evaluate(retrieval, ["scan"], five_fold=five_fold, advance=seen.append).ranks
    table, owners = encoder.encode_split(split).similarities(), split.image_of_caption
    folds = [slice(first, first + 5) for first in range(0, 25, 5)] if five_fold else [slice(0, 25)]
    for fold in folds:
        captions = slice(3 * fold.start, 3 * fold.stop)
        part, own = table[fold, captions], owners[captions] - fold.start
        expected = ranks_of(part, own)
        np.testing.assert_array_equal(ranks.image_to_text[fold], expected.image_to_text)
        np.testing.assert_array_equal(ranks.text_to_image[captions], expected.text_to_image)
    assert sum(seen) == 25, "the progress bar hears of every image once"


def test_two_directions_are_an_ensemble(store: Path, tmp_path: Path) -> None:
    split = open_split(store, "dev")
    scans = [
        load_encoder(make_scan(tmp_path / direction, store, direction=direction))
        for direction in ("text_to_image", "image_to_text")
    ]
    ranks = evaluate(Retrieval(scans, split), ["both"]).ranks
    mean = np.mean([scan.encode_split(split).similarities() for scan in scans], axis=0)
    np.testing.assert_array_equal(ranks.text_to_image, ranks_of(mean, split.image_of_caption).text_to_image)


def test_the_command_evaluates_a_scan_and_reports_examples(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, report = make_scan(tmp_path / "scan", store), tmp_path / "report.html"
    assert run_command("evaluate", [str(scan), "--split", "dev", "--json", "--html", str(report)]) == 0
    split = open_split(store, "dev")
    similarities = load_encoder(scan).encode_split(split).similarities()
    ranks = ranks_of(similarities, split.image_of_caption).text_to_image
    printed = json.loads(capsys.readouterr().out)
    assert printed["text_to_image"]["recall_at_5"] == pytest.approx(100 * np.mean(ranks < 5), abs=0.01)
    best = load_encoder(scan).encode_split(split).similarities()[:, 0].max()
    assert f" · {best:.2f}</span>" in report.read_text(), "the first caption's best match is an example"


@pytest.mark.parametrize(
    "command", [["export", "{scan}", "--onnx", "{out}"], ["index", "{photos}", "-o", "{out}", "--model", "{scan}"]]
)
def test_where_vectors_are_needed_a_scan_is_refused_in_one_sentence(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.jpg")
    scan, out = make_scan(tmp_path / "scan", store), tmp_path / "out"
    name, *rest = [word.format(scan=scan, photos=photos, out=out) for word in command]
    assert run_command(name, rest) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert 'a model of kind "scan", which has no vector of an image' in error
    with pytest.raises(CheckpointError, match="name a VSRN here"):
        read_model(scan)


def test_the_config_on_disk_says_what_was_asked_for(store: Path, tmp_path: Path) -> None:
    asked = ScanConfig("image_to_text", "softmax", 4.0, "max", 5.0, bidirectional=False)
    scan = make_scan(tmp_path / "scan", store, **vars(asked))
    assert load_encoder(scan).config.model.scan == asked
