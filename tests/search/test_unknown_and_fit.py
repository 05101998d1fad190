"""Searches by words that the model in the box never read, and how likely it is that what they find fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vsrn
from vsrn.cli import run_command
from vsrn.encoders.fit import FIT_FILE, read_fit
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import CheckpointError
from vsrn.pretrained import find_model
from vsrn.search.build import update_index


@pytest.fixture(scope="module")
def model() -> OnnxEncoder:
    """The model in the box."""
    return OnnxEncoder(find_model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three photos by the model in the box."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "photos").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (96, 64), colour).save(folder / "photos" / f"{colour}.png")
    update_index(folder / "photos", folder / "idx")
    return folder / "idx"


def test_a_sentence_is_the_mean_of_itself_with_each_stand_in(model: OnnxEncoder) -> None:
    each = model.encode_captions([f"a {word} in the snow" for word in model.stand_ins("lion")["lion"]])
    mean = each.mean(axis=0)
    both = model.encode_captions(["two dogs", "a lion in the snow"])
    assert both[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert both[0] == pytest.approx(model.encode_captions("two dogs")[0], abs=1e-5)


def test_without_stand_ins_it_is_read_as_unk(model: OnnxEncoder) -> None:
    unknown = model.encode_captions(["a lion in the snow", "a xyzzyq in the snow"], stand_ins=False)
    assert unknown[0] == pytest.approx(unknown[1], abs=1e-6)


def test_a_search_says_which_words_stand_in_and_which_are_misspelt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("search", [str(folder), "a lion in the snwo", "--json"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert (answer["unknown_words"], answer["spellings"]) == (["snwo"], {"snwo": "snow"})
    assert "cat" in answer["stand_ins"]["lion"]
    assert len(answer["hits"]) == 3
    assert "The model never read 'lion'; it looks for cat" in said.err
    assert "The model never read 'snwo', which counts for nothing. Did you mean 'snow'?" in said.err


@pytest.mark.parametrize("sentence", ["xyzzyq", "the xyzzyq of a qwrtz", "in the"])
def test_where_no_word_names_anything_nothing_is_an_answer(
    sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("search", [str(folder), sentence, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["hits"] == []
    assert said.err.count("No word of the sentence names anything that the model knows") == 1
    assert run_command("search", [str(folder), sentence]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "filters" not in said.err


def test_the_chance_grows_with_the_similarity_and_min_score_cuts_by_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with vsrn.open_index(folder) as index:
        hits = index.search("red")
        chances = [hit.fit for hit in hits if hit.fit is not None]
        assert len(chances) == 3
        assert chances == sorted(chances, reverse=True)
        assert all(0 < chance < 1 for chance in chances)
        assert index.search("red", least=chances[1]) == hits[:2]
        assert all(hit.fit is None for hit in index.search_like(hits[0].id))
    assert run_command("search", [str(folder), "red", "--min-score", str(chances[1]), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 2
    assert run_command("search", [str(folder), "red", "--min-score", "1"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "No photo reaches --min-score.\n")


def test_chances_are_those_of_the_formula(model: OnnxEncoder) -> None:
    fit = model.fit
    assert fit is not None
    t = fit.base + fit.words * np.log(3) + (fit.similarity + fit.both * np.log(3)) * 0.25
    assert fit.chances(np.array([0.25]), 3)[0] == pytest.approx(1 / (1 + np.exp(-t)))


def test_a_model_may_have_none_and_anothers_is_refused(tmp_path: Path, model: OnnxEncoder) -> None:
    assert read_fit(tmp_path / FIT_FILE, model.fingerprint) is None
    with pytest.raises(CheckpointError, match="was measured with another model"):
        read_fit(find_model() / FIT_FILE, "0" * 64)
    (tmp_path / FIT_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not what experiments/fit_scores.py writes"):
        read_fit(tmp_path / FIT_FILE, model.fingerprint)
