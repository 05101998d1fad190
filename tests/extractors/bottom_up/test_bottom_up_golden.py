"""The whole detector, full size, against the public port with weights seeded by name; and its weights' journey."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from seeded_detector import hugging_face_file, milvlg_file, recording

from vsrn.data.listing import find_photos
from vsrn.errors import CheckpointError
from vsrn.extractors.base import RegionExtractor, make_extractor, prepare_photo
from vsrn.extractors.bottom_up.extractor import BottomUpExtractor, Recipe, ScaleRules
from vsrn.extractors.bottom_up.network import BottomUpNetwork, ProposalRules, SelectionRules, place_anchors, propose
from vsrn.extractors.bottom_up.weights import BOX_DELTAS, read_weights
from vsrn.extractors.compare import compare, find_rows, open_existing, photos_to_compare
from vsrn.extractors.extract import extract

# So small that a photo takes a second or two.
SMALL = Recipe(ScaleRules(96, 160), ProposalRules(after_nms=12), SelectionRules(3, 5, threshold=0.99))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pytorch_model.bin"
    torch.save(hugging_face_file(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights_file: Path) -> BottomUpExtractor:
    return BottomUpExtractor(weights_file, SMALL)


@pytest.fixture(scope="module")
def network(extractor: BottomUpExtractor) -> BottomUpNetwork:
    return extractor.network


@pytest.fixture(scope="module")
def feature_map(network: BottomUpNetwork) -> torch.Tensor:
    with torch.inference_mode():
        return network.feature_map(recording()["image"])


@pytest.fixture(scope="module")
def features(network: BottomUpNetwork, feature_map: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.describe(feature_map, recording()["boxes"])


def assert_near(ours: torch.Tensor, name: str) -> None:
    theirs = recording()[name]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_trunk_and_the_proposal_networks_outputs(network: BottomUpNetwork, feature_map: torch.Tensor) -> None:
    assert_near(feature_map, "res4")
    with torch.inference_mode():
        objectness, deltas = network.rpn(feature_map)
    assert_near(objectness, "rpn_logits")
    assert_near(deltas, "rpn_deltas")


def test_anchors_and_proposals(network: BottomUpNetwork, feature_map: torch.Tensor) -> None:
    height, width = feature_map.shape[2:]
    assert_near(place_anchors(network.cell_anchors, height, width), "anchors")
    with torch.inference_mode():
        objectness, deltas = network.rpn(feature_map)
        boxes = propose(objectness[0], deltas[0], network.cell_anchors, (160, 224), ProposalRules())
    theirs = recording()["proposals"]
    assert boxes.shape == theirs.shape == (300, 4)
    apart = torch.cdist(boxes, theirs, p=float("inf"))
    assert apart.min(dim=0).values.max() < 0.01
    assert apart.min(dim=1).values.max() < 0.01


def test_features_classes_and_attributes_of_given_boxes(network: BottomUpNetwork, features: torch.Tensor) -> None:
    assert_near(features, "pool5_flat")
    with torch.inference_mode():
        logits = network.class_score(features)
        assert_near(logits, "class_logits")
        assert_near(network.attribute_logits(features, logits.argmax(dim=1)), "attribute_logits")


def test_the_layer_that_is_left_out_would_read_the_same_features(features: torch.Tensor) -> None:
    weight, bias = (hugging_face_file()[f"{BOX_DELTAS}.{tensor}"] for tensor in ("weight", "bias"))
    assert_near((features @ weight.T + bias)[:, :400], "box_deltas")


def test_a_photo_goes_all_the_way(extractor: BottomUpExtractor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    as_protocol: RegionExtractor = extractor
    pixels = prepare_photo(as_protocol, tmp_path / "photo.png")
    assert pixels.shape == (96, 144, 3)
    (regions,) = as_protocol([pixels])
    assert regions.features.shape == (3, 2048)
    assert regions.scores is not None
    assert np.all(np.diff(regions.scores) <= 0)
    assert regions.boxes.min() >= 0
    assert regions.boxes.max() <= 1
    # Each region's features are those of its box, and its confidence is that of a class.
    network = extractor.network
    with torch.inference_mode():
        feature_map = network.feature_map(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        boxes = torch.from_numpy(regions.boxes) * torch.tensor([144, 96, 144, 96])
        again = network.describe(feature_map, boxes)
        logits = network.class_score(again)
        attributes = network.attribute_logits(again, logits.argmax(dim=1))
    probabilities = logits.softmax(dim=1)[:, :-1]
    assert torch.allclose(again, torch.from_numpy(regions.features), rtol=1e-3, atol=1e-3)
    for score, row in zip(regions.scores, probabilities, strict=True):
        assert (row - score).abs().min() < 1e-4
    assert regions.classes is not None
    assert regions.attributes is not None
    for number, row in zip(regions.classes, logits, strict=True):
        assert row[number] >= row[:1600].max() - 1e-3 * row.abs().max()
    for number, row in zip(regions.attributes, attributes, strict=True):
        assert row[number] >= row.max() - 1e-3 * row.abs().max()


def test_a_store_of_its_features_is_recognised_as_its_own(
    extractor: BottomUpExtractor, weights_file: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2, 6, 9, 3), np.uint8)
    for name, colours in zip(("a.png", "b.png"), noise, strict=True):
        Image.fromarray(colours).resize((90, 60), Image.Resampling.BICUBIC).save(tmp_path / name)
    photos = photos_to_compare(tmp_path, None, None)
    extract(find_photos(tmp_path), extractor, tmp_path / "store", "photos")
    existing = open_existing(tmp_path / "store" / "photos_ims.npy")
    assert find_rows([photo for photo, _ in photos], existing) == ([0, 1], True)
    placed = [(*photo, row) for row, photo in enumerate(photos)]
    for same in compare(placed, existing, extractor):
        assert same.num_in_place == same.num_agreeing == same.num_ours == same.num_theirs
    # The same weights under another recipe: more regions, of which only some are the same.
    other = BottomUpExtractor(weights_file, replace(SMALL, selection=SelectionRules(9, 9)))
    for different in compare(placed, existing, other):
        assert different.num_agreeing < 9 == different.num_ours


@pytest.mark.parametrize("caffe", [False, True], ids=["detectron2", "caffe"])
def test_the_other_naming_holds_the_same_detector(weights_file: Path, tmp_path: Path, caffe: bool) -> None:
    save_file(milvlg_file(caffe=caffe), tmp_path / "other.safetensors")
    other, first = read_weights(tmp_path / "other.safetensors"), read_weights(weights_file)
    assert other.edge == (1.0 if caffe else 0.0)
    tensors = other.network.state_dict()
    assert tensors.keys() == first.network.state_dict().keys()
    for name, tensor in first.network.state_dict().items():
        assert torch.allclose(tensors[name], tensor, atol=1e-5), name
    assert other.fingerprint != first.fingerprint


def test_a_file_wrapped_by_its_trainer_is_the_same_file(weights_file: Path, tmp_path: Path) -> None:
    torch.save({"model": hugging_face_file(), "iteration": 380000}, tmp_path / "model_final.pth")
    assert read_weights(tmp_path / "model_final.pth").fingerprint == read_weights(weights_file).fingerprint


def test_the_recipe_is_part_of_the_fingerprint(extractor: BottomUpExtractor, weights_file: Path) -> None:
    again = BottomUpExtractor(weights_file, SMALL)
    adaptive = BottomUpExtractor(weights_file, Recipe(selection=SelectionRules(10, 100)))
    assert again.fingerprint == extractor.fingerprint
    assert adaptive.fingerprint != extractor.fingerprint
    assert (adaptive.name, adaptive.num_regions) == ("bottom-up:10-100", 100)
    (weights_file.parent / "classes.txt").write_text("".join(f"thing {number}\n" for number in range(1600)))
    by_name = make_extractor("bottom-up:10-100", weights_file, classes=weights_file.parent / "classes.txt")
    assert (by_name.name, by_name.fingerprint) == (adaptive.name, adaptive.fingerprint)
    assert by_name.names.classes[:2] == ["thing 0", "thing 1"]


def test_a_tensor_of_another_shape_or_not_finite_is_named(tmp_path: Path) -> None:
    few_classes = {**hugging_face_file(), "roi_heads.box_predictor.cls_score.weight": torch.zeros(81, 2048)}
    broken = {**hugging_face_file(), "backbone.res2.0.conv1.norm.bias": torch.full((64,), float("nan"))}
    for tensors, words in (
        (few_classes, r"in another shape \S+cls_score\.weight \(\(81, 2048\), not \(1601, 2048\)\)"),
        (broken, r"with NaN or infinity backbone\.res2\.0\.conv1\.norm\.bias"),
    ):
        torch.save(tensors, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=words):
            read_weights(tmp_path / "weights.pth")
