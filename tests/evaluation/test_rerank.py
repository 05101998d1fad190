"""Two stages against a slow version that sorts every query twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import make_model, make_scan, make_store

from vsrn.cli import run_command
from vsrn.data.splits import open_split
from vsrn.encoders import load_encoder
from vsrn.errors import ConfigError
from vsrn.evaluation.evaluate import Retrieval, evaluate
from vsrn.evaluation.rerank import candidates, reranked
from vsrn.metrics import EncodedSplit, FloatArray, IntArray, rank_blocks


def slow_rank(first: FloatArray, second: FloatArray, correct: IntArray, top: int) -> int:
    """Sort by the first model, sort the head of that by the second, count the wrong ones before the first true one."""
    order = sorted(range(len(first)), key=lambda place: (-first[place], correct[place]))
    head = sorted(order[:top], key=lambda place: (-second[place], correct[place]))
    in_the_end = head + order[top:]
    place = next(place for place, match in enumerate(in_the_end) if correct[match])
    return sum(not correct[match] for match in in_the_end[:place])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), images=st.integers(1, 6), per_image=st.integers(1, 3), top=st.integers(1, 20))
def test_ranks_are_those_of_sorting_twice(data: st.DataObject, images: int, per_image: int, top: int) -> None:
    owners = np.repeat(np.arange(images), per_image)
    # Few different numbers, so that ties abound, at the border of the candidates too.
    table = st.lists(st.integers(0, 3), min_size=images * len(owners), max_size=images * len(owners))
    first, second = (
        np.array(data.draw(table), dtype=np.float32).reshape(images, len(owners)) for _ in ("first", "second")
    )
    one, other = (EncodedSplit(scores, np.eye(len(owners), dtype=np.float32)) for scores in (first, second))
    found = rank_blocks(lambda: [(0, first)], owners)
    after = reranked(found, owners, other, *candidates([one], owners, top))
    for image in range(images):
        assert after.image_to_text[image] == slow_rank(first[image], second[image], owners == image, top)
    for caption, owner in enumerate(owners):
        correct = np.arange(images) == owner
        assert after.text_to_image[caption] == slow_rank(first[:, caption], second[:, caption], correct, top)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"dev": 25}, captions_per_image=3)


@pytest.fixture
def vsrn(store: Path, tmp_path: Path) -> Path:
    return make_model(tmp_path / "vsrn", store)


@pytest.fixture
def scan(store: Path, tmp_path: Path) -> Path:
    return make_scan(tmp_path / "scan", store)


@pytest.mark.parametrize("five_fold", [False, True])
def test_vsrn_finds_and_scan_re_orders(
    store: Path, vsrn: Path, scan: Path, five_fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsrn.metrics.FIVE_FOLD_IMAGES", 5)
    encoders, split = [load_encoder(vsrn), load_encoder(scan)], open_split(store, "dev")
    retrieval = Retrieval(encoders[:1], split, second=encoders[1], name="scan", top=4)
    heard: list[int] = []
    evaluation = evaluate(retrieval, ["vsrn"], five_fold=five_fold, num_examples=8, advance=heard.append)
    ranks = evaluation.ranks
    first, second = (encoder.encode_split(split).similarities() for encoder in encoders)
    for caption, rank in enumerate(ranks.text_to_image):
        owner = split.image_of_caption[caption]
        fold = slice(owner // 5 * 5, owner // 5 * 5 + 5) if five_fold else slice(0, 25)
        correct = np.arange(25)[fold] == owner
        assert rank == slow_rank(first[fold, caption], second[fold, caption], correct, 4)
    assert sum(heard) == 50
    alone = evaluate(Retrieval(encoders[:1], split), ["vsrn"], five_fold=five_fold)
    before = alone.ranks
    assert evaluation.reranking is not None
    assert evaluation.reranking.alone == alone.metrics
    assert not np.array_equal(before.text_to_image, ranks.text_to_image)
    for example in evaluation.examples if not five_fold else []:
        if example.direction == "text_to_image":
            caption = split.captions.index(example.query)
            correct = np.arange(25) == split.image_of_caption[caption]
            assert example.rank == slow_rank(first[:, caption], second[:, caption], correct, 4)
            assert example.matches[0].similarity == pytest.approx(
                second[int(example.matches[0].text), caption], abs=1e-5
            )
        else:
            assert example.rank == ranks.image_to_text[int(example.query)]


def test_all_candidates_give_the_second_models_ranks(store: Path, vsrn: Path, scan: Path) -> None:
    encoder, split = load_encoder(scan), open_split(store, "dev")
    second = Retrieval([load_encoder(vsrn)], split, second=encoder, name="scan", top=1000)
    ranks, alone = evaluate(second, ["vsrn"]).ranks, evaluate(Retrieval([encoder], split), ["scan"]).ranks
    np.testing.assert_array_equal(ranks.image_to_text, alone.image_to_text)
    np.testing.assert_array_equal(ranks.text_to_image, alone.text_to_image)
    with pytest.raises(ConfigError, match="--top is 0"):
        Retrieval([encoder], split, second=encoder, name="scan", top=0)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_says_what_a_second_stage_gains_and_costs(
    store: Path, vsrn: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    files = {name: tmp_path / name for name in ("ranks.npz", "report.html")}
    arguments = [str(vsrn), "--split", "dev", "--rerank", str(scan), "--top", "3", "--ranks", str(files["ranks.npz"])]
    arguments += ["--json"] if as_json else ["--html", str(files["report.html"])]
    assert run_command("evaluate", arguments) == 0
    printed, ranks = capsys.readouterr().out, np.load(files["ranks.npz"])
    if as_json:
        content: dict[str, Any] = json.loads(printed)
        assert content["text_to_image"]["recall_at_1"] == pytest.approx(
            100 * np.mean(ranks["text_to_image"] < 1), abs=0.01
        )
        second = content["reranking"]
        assert (second["model"], second["top"]) == (str(scan), 3)
        alone = evaluate(Retrieval([load_encoder(vsrn)], open_split(store, "dev")), ["vsrn"]).ranks
        before = 100 * np.mean(alone.text_to_image < 1)
        assert second["before"]["text_to_image"]["recall_at_1"] == pytest.approx(before, abs=0.01)
        # Re-ordering the best three moves nothing across that border, in neither direction.
        assert content["text_to_image"]["recall_at_5"] == second["before"]["text_to_image"]["recall_at_5"]
        # Times are rounded to hundredths, which so small a search need not take.
        assert set(second["seconds"]) == {"first_stage", "second_stage"}
    else:
        sentence = "best 3 of every query were re-ordered by"
        assert sentence in " ".join(printed.split())
        assert sentence in files["report.html"].read_text()
