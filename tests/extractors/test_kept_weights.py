"""Weights that a user names for an extractor follow the regions, the models and the indexes made with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fine_tuned_grid import save_captioned_photos, save_fine_tuned
from shy import vsrn_extract

import vsrn
from vsrn.cli import main
from vsrn.data.region_store import StoreInfo, open_region_store
from vsrn.errors import ConfigError, DataError
from vsrn.extractors import provenance as kept
from vsrn.extractors.base import make_extractor, prepare_photo
from vsrn.extractors.provenance import carry_weights, kept_weights, learned_extractor

SMALL_RUN = """
[data]
path = "{store}"
held_out = ""
validation = "val"
[model]
joint_dim = 8
word_dim = 4
reasoning_layers = 1
[model.captioner]
enabled = false
[train]
epochs = 1
learning_rate_drop = []
batch_size = 2
"""


def command(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    assert left.value.code == 0


def train(store: Path, run: Path, *more: str) -> None:
    config = run.parent / f"{run.name}.toml"
    config.write_text(SMALL_RUN.format(store=store))
    command("train", config, "-o", run, *more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a store made with fine-tuned weights, and a run that learned from it; the weights are gone since."""
    folder = tmp_path_factory.mktemp("world")
    dataset = save_captioned_photos(folder / "photos")
    weights = save_fine_tuned(folder / "tuned.safetensors")
    assert vsrn_extract(folder / "photos", "--captions", dataset, "-o", folder / "store", "--weights", weights) == 0
    train(folder / "store", folder / "run")
    weights.rename(folder / "elsewhere.safetensors")
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(world, tmp_path / "copy"))
    shutil.rmtree(tmp_path / "copy")


def photos_of(folder: Path) -> list[Path]:
    return sorted((folder / "photos").glob("*.png"))


def test_the_store_keeps_a_copy(world: Path) -> None:
    weights = (world / "elsewhere.safetensors").read_bytes()
    assert (world / "store" / "extractor.safetensors").read_bytes() == weights
    assert (world / "run" / "extractor.safetensors").read_bytes() == weights
    info = open_region_store(world / "store", "train").info
    assert info.fingerprint == make_extractor("grid", world / "elsewhere.safetensors").fingerprint
    assert info.fingerprint != make_extractor("grid").fingerprint


def test_a_run_reads_photos_as_it_learned_to(world: Path) -> None:
    model = vsrn.load(world / "run", device="cpu")
    from_photos = model.encode_images(photos_of(world))
    stored = [open_region_store(world / "store", split).features for split in ("train", "val")]
    from_store = model.encode_regions(np.concatenate(stored).astype(np.float32))
    # The store holds half precision.
    np.testing.assert_allclose(from_photos, from_store, atol=5e-3)
    other = make_extractor("grid")
    untuned = np.stack([other([prepare_photo(other, photo)])[0].features for photo in photos_of(world)])
    assert np.abs(model.encode_regions(untuned) - from_photos).max() > 5e-2


@pytest.mark.parametrize("option", ["-o", "--onnx"])
def test_what_is_exported_reads_photos_too(world: Path, tmp_path: Path, option: str) -> None:
    command("export", world / "run", option, tmp_path / "exported")
    exported = vsrn.load(tmp_path / "exported", device="cpu")
    wanted = vsrn.load(world / "run", device="cpu").encode_images(photos_of(world))
    np.testing.assert_allclose(exported.encode_images(photos_of(world)), wanted, atol=1e-4)


@pytest.mark.parametrize("exported_first", [False, True])
def test_an_index_reads_photos_too(world: Path, tmp_path: Path, exported_first: bool) -> None:
    model = world / "run"
    if exported_first:
        command("export", model, "--onnx", tmp_path / "exported")
        model = tmp_path / "exported"
    command("index", world / "photos", "-o", tmp_path / "index", "--model", model)
    index = vsrn.open_index(tmp_path / "index")
    for photo in photos_of(world):
        assert index.search_image(photo, k=1)[0].id == photo.name


def test_a_model_whose_weights_are_gone_says_what_to_put_where(copy: Path) -> None:
    (copy / "run" / "extractor.safetensors").unlink()
    with pytest.raises(DataError, match=r"'grid' here has other weights.*put the weights.*extractor\.safetensors"):
        vsrn.load(copy / "run", device="cpu").encode_images(photos_of(copy))
    (copy / "run" / "extractor.safetensors").symlink_to(copy / "elsewhere.safetensors")
    assert vsrn.load(copy / "run", device="cpu").encode_images(photos_of(copy)).shape == (6, 8)


def test_a_detectors_weights_are_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^'bottom-up' needs the detector's .*; name their file with --weights\.$"):
        make_extractor("bottom-up")
    with pytest.raises(DataError, match=r"learned from 'bottom-up:10-100', which cannot be made here.*put the weights"):
        learned_extractor(StoreInfo("bottom-up:10-100", "f" * 64), None)


@pytest.mark.parametrize("name", ["bottom-up", "timm:resnet18.a1_in1k", "torchvision:fasterrcnn_resnet50_fpn"])
def test_a_model_without_its_weights_names_no_option_of_another_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match="put the weights that its photos were extracted with") as refused:
        learned_extractor(StoreInfo(name, "f" * 64), None, "cpu")
    assert "--weights" not in str(refused.value)


def test_names_are_for_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("dog\n")
    assert vsrn_extract(tmp_path, "-o", tmp_path / "store", "--classes", tmp_path / "names.txt") == 2
    assert "--classes names what bottom-up attention finds, not 'grid'" in capsys.readouterr().err


def test_a_run_does_not_keep_weights_that_made_other_splits(copy: Path) -> None:
    for split in ("train", "val"):
        for path in (copy / "store").glob(f"{split}*"):
            path.unlink()
    dataset = copy / "dataset.json"
    assert vsrn_extract(copy / "photos", "--captions", dataset, "-o", copy / "store") == 0
    train(copy / "store", copy / "second")
    assert kept_weights(copy / "store") is not None
    assert kept_weights(copy / "second") is None


def test_other_weights_are_refused_where_some_are_kept(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_fine_tuned(copy / "other.safetensors", seed=2)
    again: list[str | Path] = ["-o", copy / "store", "--split", "more", "--weights"]
    assert vsrn_extract(copy / "photos", *again, other) == 2
    assert "holds regions made with other weights" in capsys.readouterr().err
    assert vsrn_extract(copy / "photos", *again, copy / "elsewhere.safetensors") == 0


def test_shards_keep_them_and_hand_them_on(copy: Path) -> None:
    for number in (1, 2):
        part: list[str | Path] = [
            "--shard",
            f"{number}/2",
            "--weights",
            copy / "elsewhere.safetensors",
            "--batch-size",
            "2",
        ]
        assert vsrn_extract(copy / "photos", "-o", copy / "parts", *part) == 0
    found = kept_weights(copy / "parts")
    assert found is not None
    assert found.read_bytes() == (copy / "elsewhere.safetensors").read_bytes()


def test_large_weights_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "detector.pth"
    weights.write_bytes(b"x" * 100)
    monkeypatch.setattr(kept, "MOST_BYTES", 99)
    kept.keep_weights(weights, tmp_path)
    assert kept_weights(tmp_path) is None
    (tmp_path / "model").mkdir()
    carry_weights(weights, tmp_path / "model")
    linked = kept_weights(tmp_path / "model")
    assert linked is not None
    assert (linked.name, linked.resolve()) == ("extractor.pth", weights)


def with_fingerprint(store: Path, split: str, fingerprint: str) -> None:
    page = store / f"{split}.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"fingerprint": fingerprint}))


def test_a_run_is_not_resumed_on_other_regions(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copy / "store"
    train(store, copy / "third")
    for split in ("train", "val"):
        with_fingerprint(store, split, "e" * 64)
    with pytest.raises(SystemExit) as left:
        main(["train", str(copy / "third.toml"), "-o", str(copy / "third"), "--resume"])
    assert left.value.code == 2
    assert "began with regions of another extractor or other weights" in capsys.readouterr().err


def test_splits_of_two_extractors_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_fingerprint(copy / "store", "val", "e" * 64)
    (copy / "fourth.toml").write_text(SMALL_RUN.format(store=copy / "store"))
    train_again = ["train", copy / "fourth.toml", "-o", copy / "fourth"]
    evaluate = ["evaluate", copy / "run", "--data", copy / "store", "--split", "val"]
    for arguments in (train_again, evaluate):
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments)])
        assert left.value.code == 2
        assert "extract" in capsys.readouterr().err
    assert not (copy / "fourth").exists()
