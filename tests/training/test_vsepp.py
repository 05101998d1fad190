"""VSE++ end to end: on real photos and on vectors, cut and unbroken, still and fine-tuned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_same_run, train
from worlds import make_store

import vsrn
from vsrn.config import EFFICIENTNET, Config, DataConfig, LossConfig, ModelConfig, NetworkConfig, TrainConfig
from vsrn.data.photo_splits import open_split_for
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import DataError
from vsrn.evaluation.evaluate import Retrieval, evaluate
from vsrn.model.vsepp import PhotoEncoder
from vsrn.training.batches import PhotoBatches
from vsrn.training.checkpoint import read_log
from vsrn.training.run import prepare_run

NUM_PHOTOS = 24


@pytest.fixture(scope="module")
def few_photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two dozen real photos to learn from, with their real captions, and six to choose by."""
    images = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_bytes())["images"]
    chosen = [image for image in images if image["split"] == "train"][:NUM_PHOTOS]
    chosen += [image for image in images if image["split"] == "val"][:6]
    path = tmp_path_factory.mktemp("captions") / "dataset.json"
    path.write_text(json.dumps({"images": chosen}))
    return DataConfig(photos=str(shared / "flickr8k" / "images"), annotations=str(path), min_count=2)


@pytest.fixture
def config(few_photos: DataConfig) -> Config:
    return Config(
        data=few_photos,
        model=ModelConfig(
            kind="vsepp",
            joint_dim=32,
            word_dim=16,
            network=NetworkConfig(EFFICIENTNET, photo_size=36, crop_size=32, smallest_crop=0.5, fine_tune_after=1),
        ),
        train=TrainConfig(
            batch_size=20, epochs=2, learning_rate=2e-3, learning_rate_drop=[1], validate_every=4, device="cpu"
        ),
    )


def test_it_learns_which_caption_is_of_which_photo(config: Config, tmp_path: Path) -> None:
    """Its own pairs, by the middles of the photos: far above chance, although they are small."""
    network = replace(config.model.network, photo_size=48, crop_size=48, smallest_crop=0.9, fine_tune_after=None)
    learning = replace(
        config,
        data=replace(config.data, validation="train"),
        model=replace(config.model, network=network),
        loss=LossConfig(negatives="all"),
        train=replace(config.train, epochs=12, learning_rate=5e-3, learning_rate_drop=[], validate_every=0),
    )
    result = train(learning, tmp_path / "run")
    losses = [row["loss"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0] / 2
    # By chance an image is first for 1 of 24 sentences, and among the first ten for 10.
    by_chance = 2 * 100 * (1 + 5 + 10) / NUM_PHOTOS
    assert result.progress.best_rsum is not None
    assert result.progress.best_rsum > 2.5 * by_chance


@pytest.mark.parametrize("cuts", [[3], [6, 8, 9]])
def test_a_run_cut_in_pieces_equals_the_unbroken_one(config: Config, tmp_path: Path, cuts: list[int]) -> None:
    """Cut while the network stands still, where it is set free (after 6 steps), and while it learns."""
    whole = train(config, tmp_path / "whole")
    for place, cut in enumerate(cuts):
        result = train(config, tmp_path / "cut", resume=place > 0, stop_after=cut)
        assert (result.finished, result.progress.step) == (False, cut)
        torch.manual_seed(place)  # whatever happens in between must not matter
    assert train(config, tmp_path / "cut", resume=True).progress == whole.progress
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_network_stands_still_until_it_is_fine_tuned(config: Config, tmp_path: Path) -> None:
    fresh = prepare_run(config, tmp_path / "fresh", resume=False).model.state_dict()
    state = tmp_path / "run" / "state" / "latest.safetensors"
    for step, moves in ((6, False), (8, True)):
        train(config, tmp_path / "run", resume=step > 6, stop_after=step)
        weights = load_file(state)
        moved = {name for name in fresh if not torch.equal(weights[f"model.{name}"], fresh[name])}
        assert "image_encoder.projection.weight" in moved
        assert any(name.startswith("image_encoder.network.") for name in moved) == moves
        assert not any("running" in name for name in moved), "BatchNorm keeps its statistics either way"


def test_which_part_of_a_photo_is_seen_depends_on_seed_epoch_and_caption_alone(config: Config) -> None:
    prepared = prepare_run(config, Path("never-written"), resume=False, process=1)
    whole = list(PhotoBatches(prepared.train, prepared.vocabulary, 20, seed=5).epoch(1))
    rest = list(PhotoBatches(prepared.train, prepared.vocabulary, 20, seed=5).epoch(1, first_step=4))
    for ours, theirs in zip(whole[4:], rest, strict=True):
        assert torch.equal(ours.features, theirs.features)
        assert torch.equal(ours.tokens, theirs.tokens)
    for seed, epoch in ((5, 0), (6, 1)):
        other = list(PhotoBatches(prepared.train, prepared.vocabulary, 20, seed=seed).epoch(epoch))
        assert not torch.equal(whole[0].features, other[0].features)
    processes = [PhotoBatches(prepared.train, prepared.vocabulary, 20, 5, rank=rank, processes=2) for rank in (0, 1)]
    shares = [next(batches.epoch(1)) for batches in processes]
    together = torch.cat([share.features for share in shares])
    same = (together[:, None] == whole[0].features[None]).flatten(2).all(dim=2)
    assert same.any(dim=1).all(), "two processes see, between them, what one would see"


def test_a_photo_has_the_same_vector_from_the_library_and_in_evaluation(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=1)
    config = replace(config, train=replace(config.train, epochs=1, learning_rate_drop=[]))
    run = tmp_path / "whole"
    train(replace(config, model=replace(config.model, network=replace(config.model.network, fine_tune_after=0))), run)
    model = vsrn.load(run, device="cpu")
    assert isinstance(model, TorchEncoder)
    assert isinstance(model.model.image_encoder, PhotoEncoder)
    split = open_split_for(model.stored.config, "val")
    files = [Path(config.data.photos) / name for name in split.image_ids()]
    encoded = model.encode_split(split)
    np.testing.assert_allclose(model.encode_images(files), encoded.images, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encoded.images, axis=1), 1, atol=1e-5)
    evaluation = evaluate(Retrieval([model], split), ["run"])
    validated = [row["validation"]["rsum"] for row in read_log(run) if "validation" in row]
    assert evaluation.metrics.rsum == pytest.approx(max(validated), abs=0.05)
    rounded = vsrn.load(run, device="cpu", precision="bf16").encode_images(files)
    assert ((rounded * encoded.images).sum(axis=1) > 0.99).all()


def test_precomputed_vectors_train_as_they_are(tmp_path: Path) -> None:
    """The field's ten-crop files: one vector an image, (images, F)."""
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12})
    for split in ("train", "dev"):
        path = store / f"{split}_ims.npy"
        np.save(path, np.load(path).mean(axis=1))
    config = Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(kind="vsepp", joint_dim=16, word_dim=8),
        loss=LossConfig(negatives="all"),
        train=TrainConfig(batch_size=16, epochs=8, learning_rate=5e-3, learning_rate_drop=[], device="cpu"),
    )
    train(config, tmp_path / "run")
    losses = [row["loss"] for row in read_log(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0] / 2
    model = vsrn.load(tmp_path / "run", device="cpu")
    vectors = np.load(store / "dev_ims.npy")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {name for name in weights if name.startswith("image_encoder.")} == {
        "image_encoder.projection.weight",
        "image_encoder.projection.bias",
    }
    projected = vectors.astype(np.float64) @ weights["image_encoder.projection.weight"].double().numpy().T
    projected += weights["image_encoder.projection.bias"].double().numpy()
    plain = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_regions(vectors[:, None]), plain, atol=1e-5)


def test_photos_for_a_model_of_regions_are_refused_and_the_other_way_round(config: Config, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 20, "dev": 6})
    regions = replace(config, data=DataConfig(path=str(store), min_count=1), model=ModelConfig("vsepp", joint_dim=8))
    short = TrainConfig(batch_size=20, epochs=1, learning_rate_drop=[], device="cpu")
    train(replace(regions, train=short), tmp_path / "regions")
    still = replace(config.model, network=replace(config.model.network, fine_tune_after=None))
    train(replace(config, model=still, train=short), tmp_path / "photos")
    for one, other in (("regions", "photos"), ("photos", "regions")):
        split = open_split_for(vsrn.load(tmp_path / one).config, "dev")
        with pytest.raises(DataError, match=f"holds {one}, but this model reads {other}"):
            vsrn.load(tmp_path / other).encode_split(split)
