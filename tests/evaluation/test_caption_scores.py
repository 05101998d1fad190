"""Scores of captions against pycocoevalcap, which the field reports, on real captions and on invented ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from worlds import make_model, make_store

from vsrn.cli import run_command
from vsrn.config import CaptionerConfig
from vsrn.data.splits import open_split
from vsrn.encoders import load_encoder
from vsrn.evaluation.caption_scores import bleu_4, bleu_counts, caption_scores, cider_d, words_of

People = list[list[list[str]]]


def by_the_field(candidates: list[list[str]], references: People) -> tuple[float, list[float]]:
    """BLEU-4 of all, and CIDEr-D of each image."""
    written = {image: [" ".join(words)] for image, words in enumerate(candidates)}
    people = {image: [" ".join(words) for words in captions] for image, captions in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(people, written, verbose=0)
    _, ciders = Cider().compute_score(people, written)
    return float(bleu[3]), list(map(float, ciders))


def assert_as_the_field(candidates: list[list[str]], references: People, tolerance: float) -> None:
    bleu, ciders = by_the_field(candidates, references)
    ours = float(bleu_4(bleu_counts(candidates, references).sum(axis=0)))
    assert ours == pytest.approx(bleu, rel=1e-6, abs=tolerance)
    np.testing.assert_allclose(cider_d(candidates, references), ciders, rtol=1e-9, atol=1e-12)


def real_captions(shared: Path, source: str) -> People:
    if source == "flickr30k":
        lines = (shared / "captions" / "f30k_test_caps.txt").read_text().splitlines()
        captions = [lines[first : first + 5] for first in range(0, len(lines), 5)]
    else:
        images = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
        captions = [[sentence["raw"] for sentence in image["sentences"]] for image in images if image["split"] == "val"]
    assert len(captions) == 1000
    return [[words_of(caption) for caption in image] for image in captions]


@pytest.mark.parametrize("source", ["flickr30k", "flickr8k"])
def test_what_one_person_wrote_against_the_others(shared: Path, source: str) -> None:
    captions = real_captions(shared, source)
    # As many references as there may be: the others' number falls from four to one.
    references = [image[1 : 2 + row % 4] for row, image in enumerate(captions)]
    assert_as_the_field([image[0] for image in captions], references, tolerance=0)
    # Somebody else's captions, all of one length, and some that are exactly right.
    others = [image[0][:7] for image in captions[1:] + captions[:1]]
    assert_as_the_field([*others[:500], *(image[2] for image in captions[500:])], captions, tolerance=0)


words = st.sampled_from(["a", "dog", "runs", "red", "on"])
sentences = st.lists(words, min_size=1, max_size=9)
images = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(images)
def test_captions_of_few_words(problem: list[tuple[list[str], list[list[str]]]]) -> None:
    # With one caption of 4 words the field divides by all 4-grams; without any it divides by almost nothing.
    problem = [*problem, (["a", "dog", "runs", "on"], [["a", "dog", "runs"], ["red"]])]
    candidates, references = [caption for caption, _ in problem], [people for _, people in problem]
    # Where no 4-gram is right the field says next to nothing; we say 0.
    assert_as_the_field(candidates, references, tolerance=2e-4)


def test_scores_are_printed_times_100_and_lie_in_their_intervals() -> None:
    people = [["A red dog runs on grass.", "a dog runs"], ["Two cats sleep on a bed ."], ["a boat, at sea, sails away"]]
    written = ["a red dog runs on grass", "two cats sleep on a mat", "a boat"]
    scores = caption_scores(written, people)
    bleu, ciders = by_the_field([words_of(w) for w in written], [[words_of(c) for c in image] for image in people])
    assert [scores.bleu_4, scores.cider_d] == pytest.approx([100 * bleu, 100 * np.mean(ciders)])
    for name, interval in scores.intervals.items():
        assert interval.low <= scores.to_json()[name] <= interval.high  # type: ignore[operator]
    right = caption_scores([image[0] for image in people], people)
    assert right.bleu_4 == pytest.approx(100)


def test_the_interval_covers_other_draws_of_images(shared: Path) -> None:
    """Scores of other images of the same kind fall into a 95% interval mostly, but not always."""
    captions = [[" ".join(words) for words in image] for image in real_captions(shared, "flickr30k")]
    parts = [captions[first : first + 100] for first in range(0, 1000, 100)]
    scores = [caption_scores([image[0] for image in part], [image[1:] for image in part]) for part in parts]
    bleus = np.array([part.bleu_4 for part in scores])
    widths = np.array([part.intervals["bleu_4"].high - part.intervals["bleu_4"].low for part in scores])
    # 1.96 standard deviations to either side.
    assert widths.mean() == pytest.approx(2 * 1.96 * bleus.std(ddof=1), rel=0.5)


def test_nothing_written_scores_nothing() -> None:
    scores = caption_scores(["", "..."], [["a dog runs fast"], ["two cats"]])
    assert (scores.bleu_4, scores.cider_d) == (0, 0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"train": 30, "dev": 25}, captions_per_image=3)


def test_the_command_scores_what_the_model_writes(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CaptionerConfig(hidden_dim=8, word_dim=4, max_tokens=6)
    model = make_model(tmp_path / "model", store, captioner=config)
    arguments = ["evaluate", str(model), "--split", "dev", "--score-captions", "--beam", "2"]
    assert run_command(arguments[0], [*arguments[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["captions"]
    split = open_split(store, "dev")
    encoder = load_encoder(model)
    features = np.array(split.regions.features)
    written = [encoder.caption_regions(features[row : row + 1], beam=2)[0] for row in split.rows]
    references = [[words_of(split.captions[3 * image + place]) for place in range(3)] for image in range(25)]
    bleu, ciders = by_the_field([words_of(caption) for caption in written], references)
    assert printed["bleu_4"] == pytest.approx(100 * bleu, abs=0.02)
    assert printed["cider_d"] == pytest.approx(100 * np.mean(ciders), abs=0.02)
    assert printed["cider_d"] > 0
    assert printed["beam"] == 2
    assert run_command(arguments[0], arguments[1:]) == 0
    assert f"beam of 2: BLEU-4 {printed['bleu_4']:.1f} [" in capsys.readouterr().out


def test_captions_of_several_models_or_of_none_are_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_model(tmp_path / "model", store))
    assert run_command("evaluate", [model, model, "--split", "dev", "--score-captions"]) == 2
    assert "--score-captions are those of one model" in capsys.readouterr().err
    assert run_command("evaluate", [model, "--split", "dev", "--score-captions"]) == 2
    assert "has no captioner" in capsys.readouterr().err
