"""Explanations against the slow and obvious way, by torch and by onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.data.regions import Regions
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.base import Encoder
from vsrn.encoders.draw import draw_explanation
from vsrn.encoders.explain import LAMBDA, ExplainView, Explanation, explain_regions, heat_map, region_shares
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import IMAGE_FILE, OnnxEncoder
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, DataError
from vsrn.metrics import FloatArray
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel

SENTENCE = "a red dog sings"
VIEWS: list[ExplainView] = ["sentence", "image"]
MODELS: dict[str, dict[str, Any]] = {
    "gru, coco": {},
    "gru, flickr30k": {"normalisation": "flickr30k"},
    "mean": {"aggregator": "mean", "normalisation": "none", "reasoning_layers": 0},
    "mean, reasoned": {"aggregator": "mean", "normalisation": "flickr30k"},
    "order": {"similarity": "order", "absolute": True},
}


def small_model(**fields: Any) -> StoredModel:
    sizes: dict[str, Any] = {"feature_dim": 12, "joint_dim": 16, "word_dim": 8, "reasoning_layers": 2}
    config = Config(model=ModelConfig(**sizes | {"captioner": CaptionerConfig(enabled=False)} | fields))
    vocabulary = Vocabulary([*SPECIAL_WORDS, "red", "dog", "sings"])
    torch.manual_seed(3)
    model = build_model(config, vocabulary)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.2, 1)
            nn.init.normal_(module.bias, std=0.1)
    return StoredModel(config, vocabulary, model.eval())


def random_regions(count: int) -> Regions:
    generator = np.random.default_rng(count)
    corners = np.sort(generator.random((count, 2, 2)), axis=1).reshape(count, 4)
    features = np.abs(generator.normal(size=(count, 12)))
    return Regions(features.astype(np.float32), corners.astype(np.float32))


@pytest.fixture(scope="module", params=MODELS)
def stored(request: pytest.FixtureRequest) -> StoredModel:
    return small_model(**MODELS[request.param])


@pytest.fixture(scope="module")
def encoders(stored: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    folder = tmp_path_factory.mktemp("exports") / "exported"
    export_onnx(stored, folder)
    return [TorchEncoder(stored, "cpu"), OnnxEncoder(folder, threads=1)]


@torch.no_grad()
def similarity_by_torch(stored: StoredModel, features: FloatArray) -> float:
    """Of one image with the sentence, by the model itself."""
    image = stored.model.image_encoder(torch.from_numpy(features)[None]).embeddings[0]
    tokens = torch.tensor(stored.vocabulary.encode(SENTENCE))
    caption = stored.model.caption_encoder(tokens[None], torch.tensor([len(tokens)]))[0]
    if stored.config.model.similarity == "order":
        return -float((caption - image).clamp(min=0).pow(2).sum().sqrt())
    return float(image @ caption)


@pytest.mark.parametrize("count", [1, 2, 3, 36, 130])
def test_a_weight_is_what_the_similarity_loses_without_that_region(
    count: int, stored: StoredModel, encoders: list[Encoder]
) -> None:
    regions = random_regions(count)
    score = similarity_by_torch(stored, regions.features)
    without = [np.delete(regions.features, place, axis=0) for place in range(count)]
    expected = [score - (similarity_by_torch(stored, rest) if len(rest) else 0) for rest in without]
    for encoder in encoders:
        explanation = explain_regions(encoder, regions, SENTENCE)
        assert explanation.score == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(explanation.weights, expected, atol=1e-5)
        assert explanation.weights.dtype == np.float32
        np.testing.assert_array_equal(explanation.boxes, regions.boxes)


@pytest.mark.parametrize("count", [1, 5, 36])
def test_the_images_own_view_is_the_product_of_each_reasoned_region_with_the_embedding(
    count: int, stored: StoredModel, encoders: list[Encoder]
) -> None:
    regions = random_regions(count)
    with torch.no_grad():
        embeddings, reasoned = stored.model.image_encoder(torch.from_numpy(regions.features)[None])
    expected = [float(region @ embeddings[0]) for region in reasoned[0]]
    for encoder in encoders:
        explanation = explain_regions(encoder, regions, SENTENCE, "image")
        np.testing.assert_allclose(explanation.weights, expected, atol=1e-5)
        assert explanation.score == pytest.approx(similarity_by_torch(stored, regions.features), abs=1e-5)


def test_padding_changes_no_reasoned_region(stored: StoredModel, encoders: list[Encoder]) -> None:
    features = np.stack([random_regions(7).features] * 2)
    with torch.no_grad():
        alone = stored.model.image_encoder(torch.from_numpy(features[1:, :4])).reasoned_regions.numpy()
    for encoder in encoders:
        embeddings, reasoned = encoder.reasoned_regions(features, np.array([7, 4]))
        assert embeddings.shape == (2, 16)
        np.testing.assert_allclose(reasoned[1:, :4], alone, atol=1e-5)
        assert not reasoned[1, 4:].any()


fractions = st.floats(0, 1, width=32)


@given(
    boxes=hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-0.5, 1.5, width=32)),
    side=st.integers(1, 9),
    data=st.data(),
)
def test_heat_is_the_sum_over_the_boxes_that_each_pixel_lies_in(
    boxes: FloatArray, side: int, data: st.DataObject
) -> None:
    shares = data.draw(hnp.arrays(np.float32, len(boxes), elements=fractions))
    expected = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side, (row + 0.5) / side
            for (x0, y0, x1, y1), share in zip(boxes.astype(float), shares.astype(float), strict=True):
                if x0 <= x < x1 and y0 <= y < y1:
                    expected[row, column] += share
    if expected.max() > 0:
        expected /= expected.max()
    heat = heat_map(boxes, shares, side)
    np.testing.assert_allclose(heat, expected, atol=1e-6)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() <= 1


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1, 1, width=32), unique=True))
def test_the_images_heat_is_lambda_times_the_squared_distance_from_the_last_rank(weights: FloatArray) -> None:
    k = len(weights)
    scores = [LAMBDA * (k - sum(other > weight for other in weights)) ** 2 for weight in weights]
    np.testing.assert_allclose(region_shares(weights, "image"), np.array(scores) / sum(scores), rtol=1e-5)


def test_regions_that_speak_against_the_match_have_no_share_in_it() -> None:
    shares = region_shares(np.array([0.3, -5, 0.1], np.float32), "sentence")
    np.testing.assert_allclose(shares, [0.75, 0, 0.25], rtol=1e-6)
    assert not region_shares(np.array([-0.3, 0], np.float32), "sentence").any()


def explanation_of(weights: list[float], labels: list[str] | None = None) -> Explanation:
    boxes = random_regions(len(weights)).boxes
    found = np.array(weights, np.float32)
    heat = heat_map(boxes, region_shares(found, "sentence"))
    return Explanation(boxes, found, heat, 0.5, labels, "sentence")


def test_the_best_regions_come_first_and_those_that_add_nothing_not_at_all() -> None:
    explanation = explanation_of([0.1, -0.2, 0.3, 0.0], ["dog", "sky", "ball", "tree"])
    assert [(region.label, round(region.share, 4)) for region in explanation.top(4)] == [("ball", 0.75), ("dog", 0.25)]
    assert [region.label for region in explanation.top(1)] == ["ball"]
    assert explanation.boxes is not None
    assert explanation.top(1)[0].box is not None
    np.testing.assert_array_equal(explanation.top(1)[0].box, explanation.boxes[2])


def test_an_explanation_is_plain_numbers_in_json() -> None:
    read = json.loads(json.dumps(explanation_of([0.1, -0.2, 0.3], ["dog", "sky", "ball"]).to_json()))
    assert (read["view"], read["score"]) == ("sentence", 0.5)
    assert [region["weight"] for region in read["regions"]] == [0.1, -0.2, 0.3]
    assert [region["label"] for region in read["regions"]] == ["dog", "sky", "ball"]
    assert read["regions"][1]["share"] == 0
    boxes = [region["box"] for region in read["regions"]]
    np.testing.assert_allclose(boxes, random_regions(3).boxes, atol=1e-6)
    assert "label" not in explanation_of([0.1]).to_json()["regions"][0]  # type: ignore[index]


def without_regions(folder: Path) -> None:
    """The export as it was before encoders gave their reasoned regions."""
    model = onnx.load(folder / IMAGE_FILE)
    del model.graph.output[1:]
    (folder / IMAGE_FILE).write_bytes(model.SerializeToString())


def test_an_export_without_reasoned_regions_answers_the_sentence_and_says_what_it_lacks(tmp_path: Path) -> None:
    stored = small_model()
    export_onnx(stored, tmp_path / "new")
    export_onnx(stored, tmp_path / "old")
    without_regions(tmp_path / "old")
    new, old = (OnnxEncoder(tmp_path / name, threads=1) for name in ("new", "old"))
    regions = random_regions(5)
    weights = explain_regions(new, regions, SENTENCE).weights
    np.testing.assert_array_equal(explain_regions(old, regions, SENTENCE).weights, weights)
    with pytest.raises(CheckpointError, match="gives embeddings only.*export the model again"):
        explain_regions(old, regions, SENTENCE, "image")


@pytest.mark.parametrize("view", VIEWS)
def test_regions_of_another_size_are_refused(view: ExplainView, tmp_path: Path) -> None:
    export_onnx(small_model(), tmp_path / "exported")
    regions = Regions(np.ones((3, 11), np.float32), random_regions(3).boxes)
    with pytest.raises(DataError, match="this model reads"):
        explain_regions(OnnxEncoder(tmp_path / "exported"), regions, SENTENCE, view)


def test_an_explanation_needs_no_torch(tmp_path: Path) -> None:
    export_onnx(small_model(), tmp_path / "exported")
    program = (
        "import sys, numpy as np, vsrn\n"
        "from vsrn.encoders.explain import explain_regions\n"
        "from vsrn.data.regions import Regions\n"
        f"encoder = vsrn.load({str(tmp_path / 'exported')!r})\n"
        "regions = Regions(np.ones((3, 12), np.float32), np.ones((3, 4), np.float32))\n"
        "print([explain_regions(encoder, regions, 'a red dog', view).view for view in ('sentence', 'image')])\n"
        "print(*{'torch', 'onnx', 'timm', 'PIL'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["['sentence', 'image']", ""]


@pytest.mark.parametrize("view", VIEWS)
def test_regions_without_boxes_have_their_weights(view: ExplainView) -> None:
    model, regions = TorchEncoder(small_model(), "cpu"), random_regions(5)
    without = Regions(regions.features, None)  # type: ignore[arg-type]
    found, wanted = (explain_regions(model, given, SENTENCE, view) for given in (without, regions))
    np.testing.assert_array_equal(found.weights, wanted.weights)
    np.testing.assert_array_equal(found.shares, wanted.shares)
    assert found.boxes is None
    assert found.heat is None
    assert [region.weight for region in found.top(2)] == [region.weight for region in wanted.top(2)]
    assert all("box" not in region for region in found.to_json()["regions"])  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no boxes, so nothing can be drawn"):
        draw_explanation(Image.new("RGB", (8, 8)), found, SENTENCE)
