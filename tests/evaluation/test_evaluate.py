"""Evaluation against a slow one that holds the whole similarity matrix and sorts every row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import make_model, make_scan, make_store

from vsrn.cli import run_command
from vsrn.data.splits import Split, open_split
from vsrn.encoders import load_encoder
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import ConfigError, DataError
from vsrn.evaluation.evaluate import Retrieval, evaluate
from vsrn.evaluation.rerank import best_matches
from vsrn.model.saved import read_model


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", {"train": 30, "dev": 25}, captions_per_image=3)


def slow_embeddings(encoder: TorchEncoder, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """One image and one caption at a time, straight through the modules."""
    with torch.no_grad():
        images = [
            encoder.model.image_encoder(torch.from_numpy(split.regions.features[row : row + 1].astype(np.float32)))[0]
            for row in split.rows
        ]
        tokens = [encoder.stored.vocabulary.encode(caption) for caption in split.captions]
        captions = [encoder.model.caption_encoder(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in tokens]
    return torch.cat(images), torch.cat(captions)


def slow_recalls(similarities: torch.Tensor, image_of_caption: np.ndarray) -> list[float]:
    ranks_i, ranks_t = [], []
    for image, row in enumerate(similarities):
        order = row.argsort(descending=True).tolist()
        ranks_i.append(next(place for place, caption in enumerate(order) if image_of_caption[caption] == image))
    for caption, column in enumerate(similarities.T):
        ranks_t.append(column.argsort(descending=True).tolist().index(image_of_caption[caption]))
    return [100 * sum(rank < k for rank in ranks) / len(ranks) for ranks in (ranks_i, ranks_t) for k in (1, 5, 10)]


@pytest.mark.parametrize("models", [1, 2, 3])
def test_recalls_of_one_model_and_of_ensembles_equal_the_slow_ones(store: Path, tmp_path: Path, models: int) -> None:
    folders = [
        make_model(tmp_path / f"model{seed}", store, seed=seed, joint_dim=8 + 8 * seed) for seed in range(models)
    ]
    encoders, split = [TorchEncoder(read_model(folder)) for folder in folders], open_split(store, "dev")
    evaluation = evaluate(Retrieval(encoders, split), [str(folder) for folder in folders])

    slow = [slow_embeddings(encoder, split) for encoder in encoders]
    mean = torch.stack([images @ captions.T for images, captions in slow]).mean(dim=0)
    ours = [*evaluation.metrics.image_to_text.recalls, *evaluation.metrics.text_to_image.recalls]
    assert ours == pytest.approx(slow_recalls(mean, split.image_of_caption))
    assert evaluation.metrics.rsum == pytest.approx(sum(ours))


def test_five_folds_average_over_consecutive_blocks_of_1000_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"testall": 2000}, captions_per_image=2)
    encoder, split = TorchEncoder(read_model(make_model(tmp_path / "model", store))), open_split(store, "testall")
    retrieval = Retrieval([encoder], split)
    folded = evaluate(retrieval, ["model"], five_fold=True)
    ranks = folded.ranks

    alone = []
    for first in (0, 1000):
        block = split.only(np.arange(first, first + 1000))
        alone.append(evaluate(Retrieval([encoder], block), ["model"]))
    assert folded.num_folds == 2
    assert folded.metrics.rsum == pytest.approx(np.mean([part.metrics.rsum for part in alone]))
    assert folded.metrics.text_to_image.mean_rank == pytest.approx(
        np.mean([part.metrics.text_to_image.mean_rank for part in alone])
    )
    assert ranks.image_to_text.shape == (2000,)
    assert ranks.image_to_text.max() < 2000


def test_examples_show_the_best_matches_and_the_rank_that_was_counted(store: Path, tmp_path: Path) -> None:
    encoder, split = TorchEncoder(read_model(make_model(tmp_path / "model", store))), open_split(store, "dev")
    retrieval = Retrieval([encoder], split)
    evaluation = evaluate(retrieval, ["model"], num_examples=8)
    ranks = evaluation.ranks
    images, captions = slow_embeddings(encoder, split)
    assert {example.direction for example in evaluation.examples} == {"text_to_image", "image_to_text"}
    for example in evaluation.examples:
        if example.direction == "text_to_image":
            caption = split.captions.index(example.query)
            scores = images @ captions[caption]
            same = [c for c, text in enumerate(split.captions) if text == example.query]
            assert example.rank in [ranks.text_to_image[c] for c in same]
            assert example.matches[0].text == str(int(scores.argmax()))
        else:
            assert example.rank == ranks.image_to_text[int(example.query)]
            scores = captions @ images[int(example.query)]
            assert [m.similarity for m in example.matches] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("weights", [None, [0.7, 0.3], [2, 0]])
def test_an_ensemble_takes_models_of_any_kinds_and_weights(
    store: Path, tmp_path: Path, weights: list[float] | None
) -> None:
    encoders = [
        load_encoder(make_model(tmp_path / "cosine", store)),
        load_encoder(make_scan(tmp_path / "scan", store)),
        load_encoder(make_model(tmp_path / "order", store, similarity="order", absolute=True)),
    ][: 3 if weights is None else 2]
    split = open_split(store, "dev")
    evaluation = evaluate(Retrieval(encoders, split, weights=weights), ["a", "b"])
    alone = [encoder.encode_split(split).similarities() for encoder in encoders]
    mean = torch.from_numpy(np.average(alone, axis=0, weights=weights))
    ours = [*evaluation.image_to_text.recalls, *evaluation.text_to_image.recalls]
    assert ours == pytest.approx(slow_recalls(mean, split.image_of_caption))


@pytest.mark.parametrize("weights", [[1.0], [0.5, -0.1], [0, 0], [float("nan"), 1]])
def test_weights_that_are_no_shares_are_refused(store: Path, tmp_path: Path, weights: list[float]) -> None:
    model = load_encoder(make_model(tmp_path / "model", store))
    with pytest.raises(ConfigError, match="weights"):
        Retrieval([model, model], open_split(store, "dev"), weights=weights)


def test_regions_of_another_width_are_refused(store: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    np.save(wide / "dev_ims.npy", np.ones((2, 5, 99), dtype=np.float32))
    (wide / "dev_caps.txt").write_text("a\nb\n")
    encoder = TorchEncoder(read_model(make_model(tmp_path / "model", store)))
    with pytest.raises(DataError, match="regions of 99 numbers, but this model reads 12"):
        Retrieval([encoder], open_split(wide, "dev"))


def test_the_command_prints_json_and_saves_the_ranks_behind_it(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model", store)
    arguments = [str(model), "--split", "val", "--json", "--ranks", str(tmp_path / "ranks.npz")]
    assert run_command("evaluate", [*arguments, "--html", str(tmp_path / "report.html")]) == 0
    printed = json.loads(capsys.readouterr().out)
    ranks = np.load(tmp_path / "ranks.npz")
    for direction in ("image_to_text", "text_to_image"):
        assert printed[direction]["recall_at_5"] == pytest.approx(100 * np.mean(ranks[direction] < 5), abs=0.01)
        assert printed[direction]["median_rank"] == np.floor(np.median(ranks[direction])) + 1
        low, high = printed["intervals_95"][f"{direction}.recall_at_5"]
        assert low <= printed[direction]["recall_at_5"] <= high
    assert printed["num_captions"] == 75
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 40), st.data())
def test_the_best_matches_are_the_head_of_a_whole_sort(values: list[int], top: int, data: st.DataObject) -> None:
    # Few different numbers, so that there are ties.
    correct = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    similarities = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda place: (-values[place], correct[place], place))
    assert best_matches(similarities, top, np.array(correct)).tolist() == expected[:top]
    assert (
        best_matches(similarities, top).tolist() == sorted(range(len(values)), key=lambda place: -values[place])[:top]
    )
