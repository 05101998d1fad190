"""A model's fine-tuned extractor, exported as halves: smaller, and the same photos come out as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fine_tuned_grid import save_captioned_photos, save_fine_tuned
from safetensors.torch import load_file, save_file

import vsrn
from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.data.region_store import StoreInfo
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError
from vsrn.extractors.grid import GridExtractor
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel


def model_of(weights: Path) -> StoredModel:
    torch.manual_seed(0)
    config = Config(
        model=ModelConfig(feature_dim=1280, joint_dim=32, captioner=CaptionerConfig(enabled=False), reasoning_layers=0)
    )
    vocabulary = Vocabulary([*SPECIAL_WORDS, "photo", "number"])
    learned_from = StoreInfo("grid", GridExtractor(weights).fingerprint)
    return StoredModel(config, vocabulary, build_model(config, vocabulary).eval(), learned_from, weights)


def whole_weights(folder: Path) -> Path:
    """As a training saves them: float32, the classifier and counters beside them."""
    halves = load_file(save_fine_tuned(folder / "halves.safetensors"))
    generator = torch.Generator().manual_seed(3)
    whole = {
        key: tensor.float() * (1 + 1e-4 * torch.rand(tensor.shape, generator=generator))
        for key, tensor in halves.items()
    }
    whole |= {"classifier.weight": torch.ones(1000, 1280), "bn1.num_batches_tracked": torch.tensor(7)}
    save_file(whole, folder / "whole.safetensors")
    return folder / "whole.safetensors"


def test_photos_come_out_as_before(tmp_path: Path) -> None:
    stored = model_of(whole_weights(tmp_path))
    photos = sorted(save_captioned_photos(tmp_path / "photos").parent.glob("photos/*.png"))
    info = export_onnx(stored, tmp_path / "half", "fp16")
    assert (tmp_path / "half" / "extractor.safetensors").stat().st_size < 7_000_000
    assert info.extractor_fingerprint != stored.regions.fingerprint
    assert json.loads((tmp_path / "half" / "export.json").read_text())["extractor_fingerprint"] == (
        GridExtractor(tmp_path / "half" / "extractor.safetensors").fingerprint
    )
    before = TorchEncoder(stored, "cpu").encode_images(photos)
    after = vsrn.load(tmp_path / "half").encode_images(photos)
    assert (before * after).sum(axis=1).min() > 0.999
    assert len(np.unique(after.round(2), axis=0)) == len(photos)


def test_halves_stay_who_they_were(tmp_path: Path) -> None:
    stored = model_of(save_fine_tuned(tmp_path / "halves.safetensors"))
    for precision in ("fp32", "fp16"):
        info = export_onnx(stored, tmp_path / precision, precision)
        assert info.extractor_fingerprint == stored.regions.fingerprint


def test_weights_that_halves_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = whole_weights(tmp_path)
    tensors = load_file(path)
    tensors["bn1.running_var"] = tensors["bn1.running_var"] + 1e6
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="bn1.running_var' is beyond float16; export without --half"):
        export_onnx(model_of(path), tmp_path / "half", "fp16")
    assert not (tmp_path / "half").exists()
