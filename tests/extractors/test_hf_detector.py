"""Detectors of the DETR kind as extractors: tiny random ones, against what transformers itself says of a photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vsrn.errors import ConfigError
from vsrn.extractors.base import make_extractor

transformers = pytest.importorskip("transformers")
QUERIES, CLASSES = 50, 5
SIZES = {"num_labels": CLASSES, "id2label": dict(enumerate(["dog", "cat", "car", "cup", "hat"]))}


def resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )


def detr() -> Any:
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=resnet(), d_model=16,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=QUERIES, **SIZES,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor(
        size={"shortest_edge": 96, "longest_edge": 160}
    )


def yolos() -> Any:
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=QUERIES, **SIZES,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessor(
        size={"height": 64, "width": 64}
    )


def rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_layers=1,
        encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16, num_queries=QUERIES, decoder_ffn_dim=16,
        decoder_in_channels=[16, 16, 16], decoder_layers=2, decoder_attention_heads=2, decoder_n_points=2, **SIZES,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor(
        size={"height": 96, "width": 96}
    )


@pytest.mark.parametrize("kind", [detr, yolos, rt_detr])
def test_regions_are_what_the_detector_says(kind: Any, tmp_path: Path) -> None:
    model, processor = kind()
    model.eval()
    # Fresh weights give every query the same answer.
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    extractor = make_extractor("hf-detector:someone/detector", tmp_path, device="cpu")
    assert (extractor.num_regions, extractor.feature_dim, extractor.has_scores) == (36, 16, True)
    assert extractor.names.classes == ["dog", "cat", "car", "cup", "hat"]
    small = np.random.default_rng(2).integers(0, 256, (6, 9, 3), np.uint8)
    photo = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)
    (regions,) = extractor([extractor.prepare(photo)])
    read = processor(images=photo, return_tensors="pt")
    with torch.inference_mode():
        said = model(**read)
    # Its own reading of the outputs: boxes in pixels, of all queries where each has one answer.
    (wanted,) = processor.post_process_object_detection(said, threshold=0, target_sizes=[(90, 120)])
    scores = regions.scores
    assert scores is not None
    assert (np.diff(scores) <= 0).all()
    pixels = regions.boxes * [120, 90, 120, 90]
    edges = torch.tensor([120.0, 90.0, 120.0, 90.0])
    theirs = wanted["boxes"].clamp(torch.zeros(4), edges).numpy()
    assert regions.classes is not None
    for place in range(36):
        same = np.abs(wanted["scores"].numpy() - scores[place]) < 1e-4
        same &= wanted["labels"].numpy() == regions.classes[place]
        assert (np.abs(theirs[same] - pixels[place]).max(axis=1) < 0.02).any()
    hidden = said.last_hidden_state[0, -QUERIES:].numpy()
    distances = np.abs(hidden[None] - regions.features[:, None]).max(axis=2)
    assert distances.min(axis=1).max() < 1e-4
    assert len(set(distances.argmin(axis=1))) == 36
    assert extractor.fingerprint == make_extractor("hf-detector:someone/detector", tmp_path).fingerprint


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'hf-detector:' wants the name of a model, as in hf-detector:facebook/detr"):
        make_extractor("hf-detector:")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=28, patch_size=7)).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'hf-detector:someone/dino' cannot be had"):
        make_extractor("hf-detector:someone/dino", tmp_path)
