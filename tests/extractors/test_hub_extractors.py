"""Backbones and detectors of other packages as extractors: small or random ones, against the networks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model
from torchvision.ops import box_iou

from vsrn.data.regions import Regions
from vsrn.errors import CheckpointError, ConfigError, PhotoError
from vsrn.extractors.base import ExtractorFiles, RegionExtractor, make_extractor
from vsrn.extractors.bottom_up.network import SelectionRules
from vsrn.extractors.torchvision_detector import DetectorExtractor
from vsrn.metrics import FloatArray
from vsrn.tensors import from_hub

# (network, places of its map along a side, whether they are patches): a map, one with channels last, patches.
BACKBONES = {"resnet18": (7, False), "swin_tiny_patch4_window7_224": (7, False), "deit_tiny_patch16_224": (14, True)}


def drawn(seed: int = 0, width: int = 90, height: int = 60) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def squashed(photo: Image.Image, side: int, mean: list[float], std: list[float]) -> torch.Tensor:
    pixels = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC), np.float64) / 255
    return torch.tensor(((pixels - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)


def regions_of(extractor: RegionExtractor, photo: Image.Image) -> Regions:
    (regions,) = extractor([extractor.prepare(photo)])
    assert regions.features.shape == (extractor.num_regions, extractor.feature_dim)
    assert regions.features.dtype == np.float32
    return regions


def mean_of_cells(cells: FloatArray, box: FloatArray) -> FloatArray:
    """(F, side, side) map, xyxy fractions -> (F,) mean of the cells in the box."""
    left, top, right, bottom = (round(float(edge) * cells.shape[1]) for edge in box)
    assert np.allclose(box * cells.shape[1], [left, top, right, bottom], atol=1e-5)
    return np.asarray(cells[:, top:bottom, left:right].mean(axis=(1, 2)))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbones_regions_are_its_map_in_windows_or_its_patches(name: str, tmp_path: Path) -> None:
    side, patches = BACKBONES[name]
    network: Any = timm.create_model(name, pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = make_extractor(f"timm:{name}", tmp_path / "weights.pth")
    regions = regions_of(extractor, drawn())
    config = network.pretrained_cfg
    with torch.inference_mode():
        output = network.forward_features(squashed(drawn(), 224, config["mean"], config["std"]))[0].numpy()
    if patches:
        # One token in front is for the class.
        output = output[1:].reshape(side, side, -1).transpose(2, 0, 1)
    elif output.shape[0] == side:
        output = output.transpose(2, 0, 1)
    assert output.shape[1:] == (side, side)
    assert len(regions.features) == (side * side if patches else 36)
    for features, box in zip(regions.features, regions.boxes, strict=True):
        np.testing.assert_allclose(features, mean_of_cells(output, box), atol=1e-4)
    corners = [tuple(box[[1, 0]]) for box in regions.boxes]
    assert corners == sorted(corners)
    assert (regions.boxes[0, :2] == 0).all()
    assert (regions.boxes[-1, 2:] == 1).all()
    assert (extractor.name, extractor.has_scores, regions.scores) == (f"timm:{name}", False, None)


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    tensors = timm.create_model("resnet18", pretrained=False).state_dict()
    without = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    torch.save(tensors, tmp_path / "all.pth")
    save_file(without, tmp_path / "needed.safetensors")
    save_file({**without, "conv1.weight": without["conv1.weight"] + 0.01}, tmp_path / "moved.safetensors")
    prints = {path.stem: make_extractor("timm:resnet18", path).fingerprint for path in tmp_path.iterdir()}
    assert prints["all"] == prints["needed"] != prints["moved"]


def test_what_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"timm has no network 'resnet81'.*Did you mean 'resnet18'"):
        make_extractor("timm:resnet81")
    with pytest.raises(ConfigError, match=r"no two-stage detector 'retinanet_resnet50_fpn'; write 'torchvision:' and"):
        make_extractor("torchvision:retinanet_resnet50_fpn")
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "\x1b[31m": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"misses bn1\.bias, bn1\.running_mean, .* more and has left over"
    ) as said:
        make_extractor("timm:resnet18", tmp_path / "w.safetensors")
    assert str(said.value).isprintable()
    (tmp_path / "pickle.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"pickle\.pth is not a readable file of tensors"):
        make_extractor("timm:resnet18", tmp_path / "pickle.pth")


def test_a_hub_that_does_not_answer_is_one_sentence() -> None:
    def fail() -> None:
        raise OSError("Name or service not known\n(Caused by NewConnectionError)")

    with pytest.raises(ConfigError) as refused:
        from_hub("timm:resnet18", fail)
    assert str(refused.value) == (
        "the weights of 'timm:resnet18' cannot be had from the hub (OSError: Name or service not known (Caused by"
        " NewConnectionError)); name a copy of them with --weights."
    )


def vision_models(transformers: Any) -> dict[str, Any]:
    """Tiny random ones of three kinds: tokens in front of the patches, none, and half of a model of two kinds."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    vision = {**sizes, "image_size": 28, "patch_size": 7}
    text = {**sizes, "vocab_size": 40, "max_position_embeddings": 8}
    return {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**vision)),
        "clip": transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)),
        "siglip": transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)),
    }


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_patches_of_a_hugging_face_model_are_its_last_hidden_state(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = vision_models(transformers)[kind].eval()
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=mean, image_std=std
    )
    model.save_pretrained(tmp_path / kind)
    processor.save_pretrained(tmp_path / kind)
    extractor = make_extractor(f"hf:someone/{kind}", tmp_path / kind)
    regions = regions_of(extractor, drawn())
    with torch.inference_mode():
        pixels = squashed(drawn(), 28, mean, std)
        whole = model(pixel_values=pixels) if kind == "dinov2" else model.vision_model(pixel_values=pixels)
    tokens = whole.last_hidden_state[0].numpy()
    np.testing.assert_allclose(regions.features, tokens[len(tokens) - 16 :], atol=1e-4)
    assert len(tokens) == (16 if kind == "siglip" else 17)
    quarters = np.arange(4) / 4
    wanted = [(left, top, left + 0.25, top + 0.25) for top in quarters for left in quarters]
    np.testing.assert_allclose(regions.boxes, wanted)
    assert extractor.fingerprint == make_extractor(f"hf:someone/{kind}", tmp_path / kind).fingerprint


def test_a_hugging_face_model_is_read_from_safetensors_only(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = vision_models(transformers)["dinov2"]
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="'hf:someone/model' cannot be had"):
        make_extractor("hf:someone/model", tmp_path)
    with pytest.raises(ConfigError, match=r"is no folder; --weights names the folder"):
        make_extractor("hf:someone/model", tmp_path / "pytorch_model.bin")


# So small that a photo takes a moment; what is random is made likely to differ.
SMALL_DETECTOR = {"min_size": 96, "max_size": 128, "rpn_post_nms_top_n_test": 30, "num_classes": 7}


@pytest.fixture(scope="module", params=["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def detector(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    network: Any = get_model(request.param, weights=None, weights_backbone=None, **SMALL_DETECTOR).eval()
    torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.3)
    return network


def test_a_detectors_regions_are_its_surest_proposals(detector: Any) -> None:
    rules = SelectionRules(fewest=5, most=5)
    extractor: RegionExtractor = DetectorExtractor("torchvision:x", ExtractorFiles(), detector, selection=rules)
    photo = drawn(4, 120, 90)
    regions = regions_of_any(extractor, photo)
    seen: dict[str, Any] = {}
    hooks = [
        detector.roi_heads.box_head.register_forward_hook(lambda _m, _i, out: seen.update(described=out)),
        detector.roi_heads.box_predictor.register_forward_hook(lambda _m, _i, out: seen.update(logits=out[0])),
        detector.rpn.register_forward_hook(lambda _m, given, out: seen.update(proposals=out[0][0], images=given[0])),
    ]
    with torch.inference_mode():
        detector([torch.tensor(np.asarray(photo), dtype=torch.float32).permute(2, 0, 1) / 255])
    for hook in hooks:
        hook.remove()
    ((height, width),) = seen["images"].image_sizes
    probabilities = torch.softmax(seen["logits"], dim=1)[:, 1:]
    best = surest(seen["proposals"], probabilities)
    order = np.argsort(-best, kind="stable")[:5]
    assert regions.scores is not None
    np.testing.assert_allclose(regions.scores, best[order], atol=1e-5)
    np.testing.assert_allclose(regions.features, seen["described"].numpy()[order], atol=1e-3)
    assert regions.classes is not None
    assert np.array_equal(regions.classes, probabilities.numpy()[order].argmax(axis=1))
    sides = np.array([width, height, width, height])
    np.testing.assert_allclose(regions.boxes, seen["proposals"].numpy()[order] / sides, atol=1e-5)
    assert 0 <= regions.boxes.min() <= regions.boxes.max() <= 1


def test_regressed_regions_are_boxes_of_the_detectors_own_answer(detector: Any) -> None:
    torch.nn.init.normal_(detector.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    rules, photo = SelectionRules(fewest=5, most=5), drawn(4, 120, 90)
    named = "torchvision:x:regressed"
    regions = regions_of_any(
        DetectorExtractor(named, ExtractorFiles(), detector, selection=rules, regressed=True), photo
    )
    heads = detector.roi_heads
    pooled: dict[str, Any] = {}
    kept = (heads.score_thresh, heads.nms_thresh, heads.detections_per_img)
    # So that it answers with every box of every class.
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, 1.0, 10_000
    hook = detector.backbone.register_forward_hook(lambda _m, _i, out: pooled.update(maps=out))
    with torch.inference_mode():
        (answer,) = detector([torch.tensor(np.asarray(photo), dtype=torch.float32).permute(2, 0, 1) / 255])
    hook.remove()
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = kept
    boxes = answer["boxes"].numpy() / [120, 90, 120, 90]
    assert regions.scores is not None
    assert regions.classes is not None
    for box, score, number in zip(regions.boxes, regions.scores, regions.classes, strict=True):
        same = (answer["labels"].numpy() == number + 1) & (np.abs(answer["scores"].numpy() - score) < 1e-4)
        assert (np.abs(boxes[same] - box).max(axis=1) < 1e-4).any()
    height, width = DetectorExtractor(named, ExtractorFiles(), detector).prepare(photo).shape[1:]
    sides = torch.tensor([width, height, width, height])
    with torch.inference_mode():
        rows = heads.box_roi_pool(pooled["maps"], [torch.from_numpy(regions.boxes) * sides], [(height, width)])
        described = heads.box_head(rows).numpy()
    np.testing.assert_allclose(regions.features, described, atol=2e-3)


def regions_of_any(extractor: RegionExtractor, photo: Image.Image) -> Regions:
    (regions,) = extractor([extractor.prepare(photo)])
    return regions


def surest(boxes: torch.Tensor, probabilities: torch.Tensor) -> FloatArray:
    """Of each box its best class in which no likelier box covers it, by loops."""
    overlaps = box_iou(boxes, boxes).numpy()
    best = np.zeros(len(boxes), np.float32)
    for of_class in probabilities.numpy().T:
        kept: list[int] = []
        for place in np.argsort(-of_class, kind="stable"):
            if all(overlaps[place, other] <= 0.3 for other in kept):
                kept.append(int(place))
        best[kept] = np.maximum(best[kept], of_class[kept])
    return best


def test_a_detector_is_loaded_from_a_file(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(5)
    network: Any = get_model(name, weights=None, weights_backbone=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = make_extractor(f"torchvision:{name}", tmp_path / "weights.pth")
    assert (extractor.num_regions, extractor.feature_dim, extractor.has_scores) == (36, 1024, True)
    wanted = DetectorExtractor(f"torchvision:{name}", ExtractorFiles(), network)
    assert extractor.fingerprint == wanted.fingerprint
    assert extractor.names.classes[:2] == ["person", "bicycle"]
    assert len(extractor.names.classes) == 90
    regressed = make_extractor(f"torchvision:{name}:regressed", tmp_path / "weights.pth")
    assert (regressed.name, regressed.names) == (f"torchvision:{name}:regressed", extractor.names)
    assert regressed.fingerprint != extractor.fingerprint
    ours, theirs = (regions_of_any(made, drawn(1)) for made in (extractor, wanted))
    assert np.array_equal(ours.features, theirs.features)
    assert 1 <= len(ours.features) <= 36
    with pytest.raises(PhotoError, match="is 5000 x 1 pixels, too narrow"):
        extractor.prepare(Image.new("RGB", (5000, 1)))
