"""Explanations against the slow and obvious way, by torch and by onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

from vsrn.config import CaptionerConfig, Config, ModelConfig, ScanConfig
from vsrn.data.regions import Regions
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.base import Encoder
from vsrn.encoders.draw import draw_explanation
from vsrn.encoders.explain import LAMBDA, ExplainView, Explanation, blurred, explain_regions, heat_map, region_shares
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import IMAGE_FILE, OnnxEncoder
from vsrn.encoders.scan_encoder import ScanEncoder
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, DataError
from vsrn.metrics import FloatArray
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel
from vsrn.model.scan import SCAN

SENTENCE = "a red dog sings"
VIEWS: list[ExplainView] = ["relevance", "words", "sentence", "image"]
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
def caption_by_torch(stored: StoredModel, sentence: str) -> torch.Tensor:
    """The embedding of a sentence, by the model itself."""
    tokens = torch.tensor(stored.vocabulary.encode(sentence))
    embedding: torch.Tensor = stored.model.caption_encoder(tokens[None], torch.tensor([len(tokens)]))[0]
    return embedding


@torch.no_grad()
def similarity_by_torch(stored: StoredModel, features: FloatArray, sentence: str = SENTENCE) -> float:
    """Of one image with a sentence, by the model itself."""
    image = stored.model.image_encoder(torch.from_numpy(features)[None]).embeddings[0]
    caption = caption_by_torch(stored, sentence)
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
        explanation = explain_regions(encoder, regions, SENTENCE, "sentence")
        assert explanation.score == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(explanation.weights, expected, atol=1e-5)
        assert explanation.weights.dtype == np.float32
        np.testing.assert_array_equal(explanation.boxes, regions.boxes)


@pytest.mark.parametrize("view", ["relevance", "words"])
@pytest.mark.parametrize("count", [1, 2, 36])
def test_relevance_is_what_a_region_fits_a_text_more_than_an_average_word(
    count: int, view: ExplainView, stored: StoredModel, encoders: list[Encoder]
) -> None:
    regions = random_regions(count)
    with torch.no_grad():
        reasoned = stored.model.image_encoder(torch.from_numpy(regions.features)[None]).reasoned_regions[0]
        average = torch.stack([caption_by_torch(stored, word) for word in ("red", "dog", "sings")]).mean(dim=0)
        of_text = {
            text: [float(region @ caption_by_torch(stored, text)) - float(region @ average) for region in reasoned]
            for text in (SENTENCE, "red", "dog", "sings")
        }
    for encoder in encoders:
        explanation = explain_regions(encoder, regions, SENTENCE, view)
        assert explanation.score == pytest.approx(similarity_by_torch(stored, regions.features), abs=1e-5)
        assert list(explanation.words) == ["red", "dog", "sings"]
        if view == "relevance":
            np.testing.assert_allclose(explanation.weights, of_text[SENTENCE], atol=1e-5)
        if view == "relevance" or encoder.default_view == "relevance":
            for word, weights in explanation.words.items():
                np.testing.assert_allclose(weights, of_text[word], atol=1e-5)
                np.testing.assert_array_equal(explanation.of_word(word.upper()).weights, weights)


@pytest.mark.parametrize("view", ["sentence", "words"])
def test_where_regions_cannot_be_compared_with_words_a_word_loses_what_it_loses_without_a_region(
    view: ExplainView, tmp_path: Path
) -> None:
    stored, regions = small_model(), random_regions(4)
    export_onnx(stored, tmp_path / "exported")
    for encoder in (TorchEncoder(stored, "cpu"), OnnxEncoder(tmp_path / "exported", threads=1)):
        explanation = explain_regions(encoder, regions, SENTENCE, view)
        for word, weights in explanation.words.items():
            whole = similarity_by_torch(stored, regions.features, word)
            rest = [np.delete(regions.features, place, axis=0) for place in range(4)]
            lost = [whole - similarity_by_torch(stored, features, word) for features in rest]
            np.testing.assert_allclose(weights, lost, atol=1e-5)
            assert explanation.of_word(word).view == "sentence"


@pytest.mark.parametrize(
    ("fields", "view"),
    [
        ({}, "sentence"),
        ({"aggregator": "mean", "normalisation": "flickr30k"}, "sentence"),
        ({"aggregator": "gpo", "normalisation": "none", "absolute": True}, "sentence"),
        ({"aggregator": "mean", "normalisation": "coco"}, "relevance"),
        ({"aggregator": "gpo", "normalisation": "none"}, "relevance"),
        ({"kind": "vsepp", "reasoning_layers": 4}, "relevance"),
    ],
)
def test_relevance_is_the_default_where_an_image_is_made_of_its_regions_alone(
    fields: dict[str, Any], view: ExplainView
) -> None:
    encoder = TorchEncoder(small_model(**fields), "cpu")
    assert explain_regions(encoder, random_regions(5), SENTENCE).view == encoder.default_view == view


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@torch.no_grad()
def test_a_scan_explains_by_the_cosines_that_its_attention_is_made_of(direction: Any) -> None:
    stored = small_model(kind="scan", reasoning_layers=4, scan=ScanConfig(direction=direction, inverse_temperature=4))
    encoder, regions = ScanEncoder(cast("StoredModel[SCAN]", stored), "cpu"), random_regions(7)
    tokens = torch.tensor(stored.vocabulary.encode(SENTENCE))
    words = encoder.model.word_encoder(tokens[None], torch.tensor([len(tokens)]))[0]
    vectors = encoder.model.region_encoder(torch.from_numpy(regions.features)[None]).vectors[0]
    cosines = {
        stored.vocabulary.words[token]: [float(word @ region) for region in vectors]
        for token, word in zip(tokens, words, strict=True)
    }
    explanation = explain_regions(encoder, regions, SENTENCE)
    assert (explanation.view, list(explanation.words)) == ("relevance", ["red", "dog", "sings"])
    named = [cosines[word] for word in ("red", "dog", "sings")]
    np.testing.assert_allclose(explanation.weights, np.mean(named, axis=0), atol=1e-5)
    # Of a sentence that names nothing, every token counts.
    assert explain_regions(encoder, regions, "a").weights.any()
    for word, weights in explanation.words.items():
        np.testing.assert_allclose(weights, cosines[word], atol=1e-5)
    assert explanation.score == pytest.approx(float(encoder.compare(regions.features[None], None, SENTENCE)[0, 0]))
    assert explain_regions(encoder, regions, SENTENCE, "sentence").weights.any()
    with pytest.raises(CheckpointError, match="has no vector of an image"):
        explain_regions(encoder, regions, SENTENCE, "image")


def test_cells_are_weighed_in_place_of_the_regions_that_the_score_is_of() -> None:
    model = TorchEncoder(small_model(aggregator="mean", normalisation="none", reasoning_layers=0), "cpu")
    regions, cells = random_regions(4), random_regions(9)
    found = explain_regions(model, regions, SENTENCE, None, ["a", "b", "c", "d"], cells)
    np.testing.assert_array_equal(found.boxes, cells.boxes)
    np.testing.assert_array_equal(found.weights, explain_regions(model, cells, SENTENCE).weights)
    assert found.score == explain_regions(model, regions, SENTENCE).score
    assert found.labels is None


def test_the_view_by_words_gives_each_region_its_largest_share_in_a_word() -> None:
    model = TorchEncoder(small_model(aggregator="mean", normalisation="none", reasoning_layers=0), "cpu")
    found = explain_regions(model, random_regions(6), SENTENCE, "words")
    shares = [found.of_word(word).shares for word in ("red", "dog", "sings")]
    np.testing.assert_allclose(found.weights, np.max(shares, axis=0), atol=1e-6)
    for word, place in found.places().items():
        assert place.share == found.of_word(word).shares.max()
    with pytest.raises(DataError, match="no place is known of the word 'cat'; words with places: red, dog, sings"):
        found.of_word("cat")
    assert explain_regions(model, random_regions(6), "a", "words").top(3) == []


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


@given(hnp.arrays(np.float32, st.integers(1, 12).map(lambda side: (side, side)), elements=fractions))
def test_a_blurred_pixel_is_the_sum_of_all_pixels_by_their_distance(heat: FloatArray) -> None:
    places = [(row, column) for row in range(len(heat)) for column in range(len(heat))]
    expected = np.zeros(heat.shape)
    for row, column in places:
        for y, x in places:
            expected[row, column] += heat[y, x] * np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * 3**2))
    if expected.max() > 0:
        expected /= expected.max()
    np.testing.assert_allclose(blurred(heat, 3), expected, atol=1e-5)


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


def test_what_fits_no_better_than_the_median_region_has_no_share() -> None:
    shares = region_shares(np.array([3.5, -5, 2.5, 2, 1.5], np.float32), "relevance")
    np.testing.assert_allclose(shares, [0.75, 0, 0.25, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(region_shares(np.array([2], np.float32), "relevance"), [1])


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
    stored = small_model(aggregator="mean", normalisation="none")
    export_onnx(stored, tmp_path / "new")
    export_onnx(stored, tmp_path / "old")
    without_regions(tmp_path / "old")
    new, old = (OnnxEncoder(tmp_path / name, threads=1) for name in ("new", "old"))
    regions = random_regions(5)
    found = explain_regions(old, regions, SENTENCE)
    assert found.view == "sentence"
    np.testing.assert_array_equal(found.weights, explain_regions(new, regions, SENTENCE, "sentence").weights)
    assert explain_regions(new, regions, SENTENCE).view == "relevance"
    assert list(explain_regions(old, regions, SENTENCE, "words").words) == ["red", "dog", "sings"]
    for view in ("relevance", "image"):
        with pytest.raises(CheckpointError, match="gives embeddings only.*export the model again"):
            explain_regions(old, regions, SENTENCE, view)


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
        f"print([explain_regions(encoder, regions, 'a red dog', view).view for view in {VIEWS}])\n"
        "print(*{'torch', 'onnx', 'timm', 'PIL'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["['relevance', 'words', 'sentence', 'image']", ""]


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


def test_nothing_stands_out_where_the_best_region_hardly_fits() -> None:
    """Its lead over an average word, its weight, is compared with its lead over the photo's median."""

    def stands_out(weights: list[float], view: ExplainView) -> bool:
        return Explanation(None, np.array(weights, np.float32), None, 0.0, None, view).stands_out

    assert stands_out([3, 0.5, 0], "relevance")
    assert stands_out([3, -1, -2], "relevance")  # 3 of 4
    assert not stands_out([2, -1, -2], "relevance")  # 2 of 3
    assert not stands_out([-1, -5, -6], "relevance")
    assert not stands_out([0, 0, 0], "relevance")
    assert stands_out([0.1, -5, -6], "sentence")
    assert not stands_out([-0.1, -5, -6], "sentence")
    assert not stands_out([], "relevance")
