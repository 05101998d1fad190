"""Training: what a step computes, and that nothing is lost or changed by stopping and going on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Silent, assert_same_run, train

from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.data.splits import open_split
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.metrics import RetrievalMetrics
from vsrn.model.base import MatchingModel
from vsrn.model.losses import cosine_similarities, matching_loss
from vsrn.training.batches import TrainingBatches
from vsrn.training.checkpoint import STATE_FILE, Progress, read_log
from vsrn.training.optimizer import learning_rate_at
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer

WORDS = ["red", "blue", "green", "tall", "small", "dog", "cat", "bird", "boat", "tree", "runs", "sleeps", "sings"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose regions say, noisily, which words its captions use."""
    generator = np.random.default_rng(7)
    meanings = generator.normal(size=(len(WORDS), 12)).astype(np.float32)
    folder = tmp_path / "store"
    folder.mkdir()
    for split, images in (("train", 40), ("dev", 12)):
        features, captions = [], []
        for _ in range(images):
            said = generator.choice(len(WORDS), size=3, replace=False)
            noise = generator.normal(size=(5, 12)).astype(np.float32)
            features.append(meanings[said[generator.integers(3, size=5)]] + 0.1 * noise)
            for caption in range(2):
                captions.append(" ".join(WORDS[word] for word in said[: 3 - caption]))
        np.save(folder / f"{split}_ims.npy", np.stack(features).astype(np.float16))
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


@pytest.fixture
def config(store: Path) -> Config:
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(
            joint_dim=16,
            word_dim=8,
            reasoning_layers=2,
            normalisation="flickr30k",
            captioner=CaptionerConfig(hidden_dim=8, word_dim=8, max_tokens=6),
        ),
        train=TrainConfig(
            batch_size=16, epochs=4, learning_rate=5e-3, learning_rate_drop=[3], validate_every=7, device="cpu"
        ),
    )


def test_a_run_that_drops_regions_and_is_cut_equals_the_unbroken_one(config: Config, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, drop_regions=0.6))
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=5)
    train(config, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cuts", [[1], [5], [7], [3, 4, 11], [19]])
def test_a_run_cut_in_pieces_equals_the_unbroken_one(
    config: Config, tmp_path: Path, cuts: list[int], precision: Any
) -> None:
    config = replace(config, train=replace(config.train, precision=precision))
    whole = train(config, tmp_path / "whole")
    assert whole.finished
    for place, cut in enumerate(cuts):
        result = train(config, tmp_path / "cut", resume=place > 0, stop_after=cut)
        assert (result.finished, result.progress.step) == (False, cut)
        torch.manual_seed(place)  # whatever happens in between must not matter
    last = train(config, tmp_path / "cut", resume=True)
    assert last.progress == whole.progress
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(config: Config, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, validate_every=2))
    train(config, tmp_path / "whole")
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    generator, killed, resume = np.random.default_rng(3), tmp_path / "killed", False
    for _ in range(4):
        command = [sys.executable, "-m", "vsrn", "train", str(tmp_path / "config.toml"), "-o", str(killed)]
        process = subprocess.Popen(
            command + ["--resume"] * resume, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        wait_for_steps(killed, process)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.wait()
        resume = (killed / STATE_FILE).exists()
    assert resume
    train(config, killed, resume=True)
    assert_same_run(tmp_path / "whole", killed)


def wait_for_steps(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a process that trains has written its checkpoint anew, or has ended."""
    state = run / STATE_FILE
    before = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.005)


@pytest.mark.parametrize(("warm_up_epochs", "epoch", "hardness"), [(0, 0, 1.0), (2, 0, 0.0), (2, 1, 0.5), (2, 3, 1.0)])
def test_a_step_is_adam_on_the_clipped_gradient_of_the_joint_loss(
    config: Config, tmp_path: Path, warm_up_epochs: int, epoch: int, hardness: float
) -> None:
    config = replace(
        config,
        loss=replace(config.loss, warm_up_epochs=warm_up_epochs),
        model=replace(config.model, captioner=CaptionerConfig(enabled=False)),
        train=replace(config.train, gradient_clip=0.5, learning_rate_drop=[]),
    )
    trainer = Trainer(prepare_run(config, tmp_path / "run", resume=False), Silent())
    trainer.progress = Progress(epoch=epoch, step=epoch * trainer.batches.steps_per_epoch)
    batch = next(trainer.batches.epoch(0))
    # By hand, in float64: loss, clipped gradient, and Adam's first step, which is the gradient's sign
    # scaled by g / (|g| + eps).
    oracle = prepare_run(config, tmp_path / "oracle", resume=False).model.double().train()
    assert isinstance(oracle, MatchingModel)
    images = oracle.image_encoder(batch.features.double()).embeddings
    captions = oracle.caption_encoder(batch.tokens, batch.lengths)
    matching_loss(cosine_similarities(images, captions), 0.2, hardness).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients.values()))
    assert norm > 0.5, "the example must be clipped"

    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer._step([batch])
    for name, parameter in trainer.model.named_parameters():
        clipped = gradients[name] * 0.5 / norm
        # A gradient within float noise of 0 may step either way.
        certain = clipped.abs() > 1e-5
        expected = -config.train.learning_rate * clipped / (clipped.abs() + 1e-8)
        moved = (parameter.detach() - before[name]).double()
        torch.testing.assert_close(moved[certain], expected[certain], rtol=1e-2, atol=1e-6, msg=name)


def test_training_learns_what_the_data_says(config: Config, tmp_path: Path) -> None:
    config = replace(
        config, train=replace(config.train, epochs=30, learning_rate_drop=[], validate_every=0, learning_rate=5e-3)
    )
    result = train(config, tmp_path / "run")
    # By chance, 12 images of 2 captions each give R@1/5/10 that sum to about 250 in both directions.
    assert result.progress.best_rsum is not None
    assert result.progress.best_rsum > 400
    rows = [row for row in read_log(tmp_path / "run") if "loss" in row]
    assert rows[-1]["generation_loss"] < 0.6 * rows[0]["generation_loss"]
    assert rows[-1]["matching_loss"] < 0.6 * rows[0]["matching_loss"]


def test_the_weights_kept_are_those_of_the_best_validation(config: Config, tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    class Watching(Silent):
        def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
            seen.append((metrics.rsum, progress.step))

    result = Trainer(prepare_run(config, tmp_path / "run", resume=False), Watching())
    result.run(resume=False)
    assert [step for _, step in seen] == [7, 14, 20]
    assert (result.progress.best_rsum, result.progress.best_step) == max(seen, key=lambda pair: (pair[0], -pair[1]))
    stopped = train(config, tmp_path / "again", stop_after=result.progress.best_step)
    assert stopped.progress.best_step == result.progress.best_step
    best, again = load_file(tmp_path / "run" / "model.safetensors"), load_file(tmp_path / "again" / STATE_FILE)
    assert all(torch.equal(best[name], again[f"model.{name}"]) for name in best)


@pytest.mark.parametrize(
    ("drops", "rates"), [([15], [2e-4] * 15 + [2e-5] * 15), ([10, 20], [2e-4] * 10 + [2e-5] * 10 + [2e-6] * 10)]
)
def test_the_learning_rate_falls_after_the_epochs_of_the_paper(drops: list[int], rates: list[float]) -> None:
    train = TrainConfig(learning_rate_drop=drops)
    assert [learning_rate_at(train, 7 * epoch, 7, 210) for epoch in range(30)] == pytest.approx(rates)
    assert [learning_rate_at(train, 7 * epoch + 6, 7, 210) for epoch in range(30)] == pytest.approx(rates)


def test_every_epoch_is_another_order_of_all_captions_and_any_step_can_be_found_again(store: Path) -> None:
    split = open_split(store, "train")
    prepared = TrainingBatches(split, prepare_vocabulary(store), batch_size=16, seed=1)
    assert prepared.steps_per_epoch == 80 // 16
    epochs = [[batch.tokens.tolist() for batch in prepared.epoch(epoch)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert [batch.tokens.tolist() for batch in prepared.epoch(1, first_step=3)] == epochs[1][3:]
    drawn = sorted(tuple(t for t in row if t) for batch in epochs[0] for row in batch)
    assert drawn == sorted(tuple(prepare_vocabulary(store).encode(caption)) for caption in split.captions)


def test_a_batch_pairs_each_caption_with_its_own_image(store: Path) -> None:
    split, vocabulary = open_split(store, "train"), prepare_vocabulary(store)
    for batch in TrainingBatches(split, vocabulary, batch_size=16, seed=1).epoch(0):
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)
        for features, padded, length in zip(batch.features, batch.tokens, batch.lengths, strict=True):
            tokens = padded[: int(length)].tolist()
            owners = [image for caption, image in captions_of(split) if vocabulary.encode(caption) == tokens]
            assert any(np.array_equal(features.numpy(), split.regions.features[owner]) for owner in owners)


def captions_of(split: Any) -> list[tuple[str, int]]:
    return list(zip(split.captions, split.image_of_caption.tolist(), strict=True))


def prepare_vocabulary(store: Path) -> Any:
    from vsrn.data.vocabulary import build_vocabulary

    return build_vocabulary(open_split(store, "train").captions, min_count=1)


def test_a_folder_that_holds_a_run_is_not_overwritten(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=1)
    with pytest.raises(CheckpointError, match="already holds a run; add --resume"):
        prepare_run(config, tmp_path / "run", resume=False)


def test_resuming_with_another_config_names_the_field(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=1)
    other = replace(config, loss=LossConfig(margin=0.3))
    with pytest.raises(ConfigError, match=r"begun with loss.margin = 0.2, not 0.3"):
        prepare_run(other, tmp_path / "run", resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_nothing_is_written_when_a_run_cannot_start(config: Config, tmp_path: Path, resume: bool) -> None:
    broken = [
        replace(config, data=replace(config.data, train="trian")),
        replace(config, data=replace(config.data, held_out=str(tmp_path / "no.txt"))),
        replace(config, data=replace(config.data, vocabulary=str(tmp_path / "no.json"))),
        replace(config, model=replace(config.model, feature_dim=2048)),
    ]
    for each in broken:
        with pytest.raises((ConfigError, DataError, CheckpointError)):
            prepare_run(each, tmp_path / "run", resume=resume)
        assert not (tmp_path / "run").exists()


def test_a_truncated_checkpoint_is_refused_in_one_sentence(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=3)
    state = tmp_path / "run" / STATE_FILE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        train(config, tmp_path / "run", resume=True)


def test_a_checkpoint_of_hostile_shapes_is_refused_in_one_sentence(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=3)
    header = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**63 + 5], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "run" / STATE_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"step": ' + "9" * 100_000 + "}", '{"step": "\xff"}'])
def test_a_log_is_read_up_to_what_is_no_row(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 2}\n')
    assert read_log(tmp_path) == [{"step": 1}]


def test_the_log_is_json_lines_with_losses_and_validations(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation" in row] == [7, 14, 20]
    for row in rows:
        if "loss" in row:
            assert row["loss"] == pytest.approx(row["matching_loss"] + row["generation_loss"])
            assert row["learning_rate"] == pytest.approx(5e-4 if row["step"] > 15 else 5e-3)
    assert list((tmp_path / "run").glob("events.*")), "TensorBoard events are beside it"


@pytest.mark.parametrize("kind", ["vsrn", "scan"])
def test_words_start_from_vectors_learned_elsewhere(
    config: Config, tmp_path: Path, kind: Literal["vsrn", "scan"]
) -> None:
    (tmp_path / "words.txt").write_text("dog 1 2 3 4 5 6 7 8\nunheard 0 0 0 0 0 0 0 0\ncat 8 7 6 5 4 3 2 1\n")
    model = ModelConfig(kind=kind, joint_dim=16, word_dim=8, captioner=CaptionerConfig(enabled=False))
    without = prepare_run(replace(config, model=model), tmp_path / "without", resume=False)
    config = replace(config, model=model, data=replace(config.data, word_vectors=str(tmp_path / "words.txt")))
    started = prepare_run(config, tmp_path / "with", resume=False)
    assert without.model.words is not None
    assert started.model.words is not None
    expected = without.model.words.weight.detach().clone()
    expected[started.vocabulary.ids["dog"]] = torch.arange(1.0, 9)
    expected[started.vocabulary.ids["cat"]] = torch.arange(1.0, 9).flip(0)
    assert torch.equal(started.model.words.weight, expected)


def test_word_vectors_of_another_size_are_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog 1 2 3\n")
    config = replace(config, data=replace(config.data, word_vectors=str(tmp_path / "words.txt")))
    with pytest.raises(ConfigError, match=r"model\.word_dim is 8, .* set it to 3"):
        prepare_run(config, tmp_path / "run", resume=False)
