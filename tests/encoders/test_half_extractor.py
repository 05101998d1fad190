"""A model's fine-tuned extractor, exported as halves: smaller, and the same photos come out as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from fine_tuned_grid import save_captioned_photos, save_fine_tuned
from PIL import Image
from safetensors.torch import load_file, save_file

import vsrn
from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.data.region_store import StoreInfo
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_writing import write_extractor
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError
from vsrn.extractors.base import make_extractor, prepare_photo
from vsrn.extractors.grid import GridExtractor, write_fine_tuned
from vsrn.extractors.grid_onnx import GridKind, OnnxGridExtractor
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
    assert (tmp_path / "half" / "extractor.onnx").stat().st_size < 7_000_000
    assert info.extractor_fingerprint != stored.regions.fingerprint
    assert json.loads((tmp_path / "half" / "export.json").read_text())["extractor_fingerprint"] == (
        GridExtractor(tmp_path / "half" / "extractor.onnx").fingerprint
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
        # float16 holds them, so they take its room only.
        assert (tmp_path / precision / "extractor.onnx").stat().st_size < 7_100_000


@pytest.mark.parametrize(("network", "side"), [("tf_efficientnet_lite0", 224), ("tf_efficientnet_lite1", 352)])
def test_an_exported_extractor_is_that_of_torch(network: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = save_fine_tuned(tmp_path / "tuned.safetensors")
    if network != GridKind().network:
        write_fine_tuned(source, timm.create_model(network, num_classes=0), GridKind(network, side))
    fingerprint = write_extractor(source, tmp_path / "exported.onnx", halves=False)
    by_torch = GridExtractor(source, "cpu")
    exported = make_extractor("grid", tmp_path / "exported.onnx", device="cpu")
    assert isinstance(exported, OnnxGridExtractor)
    assert by_torch.fingerprint == exported.fingerprint == fingerprint
    # On another device torch reads the weights of the same file.
    assert GridExtractor(tmp_path / "exported.onnx", "cpu").fingerprint == fingerprint
    assert (exported.num_regions, exported.feature_dim) == (by_torch.num_regions, by_torch.feature_dim)
    for path in sorted(save_captioned_photos(tmp_path / "photos").parent.glob("photos/*.png"))[:3]:
        prepared, photo = prepare_photo(by_torch, path), Image.open(path).convert("RGB")
        assert np.array_equal(exported.prepare(photo), prepared)
        with_cells = zip(exported.with_cells(photo, prepared), by_torch.with_cells(photo, prepared), strict=True)
        for ours, wanted in (*zip(exported([prepared] * 3), by_torch([prepared] * 3), strict=True), *with_cells):
            np.testing.assert_allclose(ours.features, wanted.features, atol=1e-4 * np.abs(wanted.features).max())
            assert np.array_equal(ours.boxes, wanted.boxes)


def test_exports_of_before_open(tmp_path: Path) -> None:
    stored = model_of(save_fine_tuned(tmp_path / "halves.safetensors"))
    export_onnx(stored, tmp_path / "now", "fp16")
    shutil.copytree(tmp_path / "now", tmp_path / "before")
    (tmp_path / "before" / "extractor.onnx").unlink()
    shutil.copy(tmp_path / "halves.safetensors", tmp_path / "before" / "extractor.safetensors")
    photos = sorted(save_captioned_photos(tmp_path / "photos").parent.glob("photos/*.png"))
    now, before = (vsrn.load(tmp_path / name, "cpu") for name in ("now", "before"))
    assert now.extractor.fingerprint == before.extractor.fingerprint
    np.testing.assert_allclose(now.encode_images(photos), before.encode_images(photos), atol=1e-4)


def test_files_that_are_no_exported_extractor_are_refused(tmp_path: Path) -> None:
    write_extractor(save_fine_tuned(tmp_path / "tuned.safetensors"), tmp_path / "whole.onnx", halves=True)
    whole, path = (tmp_path / "whole.onnx").read_bytes(), tmp_path / "extractor.onnx"
    elsewhere, other, broken = onnx.load_from_string(whole), onnx.load_from_string(whole), onnx.load_from_string(whole)
    elsewhere.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    elsewhere.graph.initializer[0].external_data.add(key="location", value="../secret")
    other.graph.input[0].name = other.graph.node[-1].output[0]
    broken.graph.initializer[0].raw_data = np.full(broken.graph.initializer[0].dims, np.nan, np.float32).tobytes()
    huge = onnx.load_from_string(whole)
    huge.graph.initializer[0].dims[:] = [2**40, 2**40]
    onnx.helper.set_model_props(named := onnx.load_from_string(whole), {"network": "resnet50"})
    for content, said in (
        (whole[: len(whole) // 2], "is not a readable ONNX file"),
        (b"\xff" * 100, "is not a readable ONNX file"),
        (b"", "is not the network|cannot be read by onnxruntime"),
        (elsewhere.SerializeToString(), "keeps .* in another file"),
        (huge.SerializeToString(), "is not as large as it says"),
        (broken.SerializeToString(), "has NaN or infinity in"),
        (other.SerializeToString(), "cannot be read by onnxruntime|is not the network"),
        (named.SerializeToString(), "vsrn's grid reads"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            make_extractor("grid", path, device="cpu")


def test_weights_that_halves_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = whole_weights(tmp_path)
    tensors = load_file(path)
    tensors["bn1.running_var"] = tensors["bn1.running_var"] + 1e6
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="bn1.running_var' is beyond float16; export without --half"):
        export_onnx(model_of(path), tmp_path / "half", "fp16")
    assert not (tmp_path / "half").exists()
