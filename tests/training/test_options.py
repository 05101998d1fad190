"""Optimisers, schedules, accumulation, early ends and masks: each against torch's own or a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import Silent, assert_same_run, train
from worlds import make_store

from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from vsrn.errors import ConfigError, DataError
from vsrn.model.losses import TripletLoss, contrastive_loss, cosine_similarities
from vsrn.training.checkpoint import Progress, read_log
from vsrn.training.optimizer import learning_rate_at
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer


@pytest.fixture
def config(tmp_path: Path) -> Config:
    store = make_store(tmp_path / "store", {"train": 40, "dev": 12})
    captioner = CaptionerConfig(hidden_dim=8, word_dim=8, max_tokens=6)
    return Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=captioner),
        train=TrainConfig(batch_size=8, epochs=3, learning_rate=5e-3, validate_every=4, device="cpu"),
    )


def with_train(config: Config, **fields: Any) -> Config:
    return replace(config, train=replace(config.train, **fields))


CHOICES: list[dict[str, Any]] = [
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"schedule": "cosine", "warm_up_steps": 5},
    {"accumulate": 2},
    {"max_steps": 13},
    {"patience": 1, "learning_rate": 1e-9},
    {"loggers": []},
]


@pytest.mark.parametrize("fields", CHOICES, ids=lambda fields: next(iter(fields)))
def test_a_run_cut_in_pieces_equals_the_unbroken_one(config: Config, tmp_path: Path, fields: dict[str, Any]) -> None:
    config = with_train(config, **fields)
    whole = train(config, tmp_path / "whole")
    for place, cut in enumerate((3, 7)):
        train(config, tmp_path / "cut", resume=place > 0, stop_after=cut)
    last = train(config, tmp_path / "cut", resume=True)
    assert (last.progress, last.finished, last.early) == (whole.progress, whole.finished, whole.early)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adam", 0.3), ("adamw", 0.3)])
def test_steps_are_those_of_torchs_own_optimiser(config: Config, tmp_path: Path, name: Any, decay: float) -> None:
    """Over two steps, each the mean gradient of two batches, clipped."""
    config = with_train(config, optimizer=name, weight_decay=decay, accumulate=2, gradient_clip=0.5)
    config = replace(config, model=replace(config.model, captioner=CaptionerConfig(enabled=False)))
    # In float64, since Adam makes a whole step of a gradient that is float32's noise about 0.
    prepared = prepare_run(config, tmp_path / "run", resume=False)
    prepared.model.double()
    trainer = Trainer(prepared, Silent())
    oracle: Any = prepare_run(config, tmp_path / "oracle", resume=False).model.double().train()
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    optimizer = kind(oracle.parameters(), lr=5e-3, weight_decay=decay, foreach=False)
    batches = [batch._replace(features=batch.features.double()) for batch in trainer.batches.epoch(0)]
    for step in range(2):
        optimizer.zero_grad()
        for batch in batches[2 * step : 2 * step + 2]:
            images = oracle.image_encoder(batch.features, batch.counts).embeddings
            similarities = cosine_similarities(images, oracle.caption_encoder(batch.tokens, batch.lengths))
            (TripletLoss(LossConfig())(similarities) / 2).backward()
        torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        optimizer.step()
        trainer._step(batches[2 * step : 2 * step + 2])
    for (key, ours), theirs in zip(trainer.model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=key)


def test_the_cosine_schedule_with_warm_up_is_torchs_own() -> None:
    settings = TrainConfig(learning_rate=0.4, schedule="cosine", warm_up_steps=6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 6, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=34)
    theirs = []
    for step in range(40):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 5:
            warm_up.step()
        elif step > 5:
            cosine.step()
    assert [learning_rate_at(settings, step, 10, 40) for step in range(40)] == pytest.approx(theirs)


def test_a_run_ends_after_its_steps_with_a_validation(config: Config, tmp_path: Path) -> None:
    result = train(with_train(config, max_steps=6), tmp_path / "run")
    assert (result.finished, result.progress.step) == (True, 6)
    assert [row["step"] for row in read_log(tmp_path / "run") if "validation" in row] == [4, 6]


def test_a_run_without_progress_ends_early_and_says_so(config: Config, tmp_path: Path) -> None:
    config = with_train(config, patience=2, learning_rate=1e-12)
    result = train(config, tmp_path / "run")
    rsums = [row["validation"]["rsum"] for row in read_log(tmp_path / "run") if "validation" in row]
    assert result.early
    assert result.finished
    assert len(rsums) == 3
    assert max(rsums[1:]) <= rsums[0]
    # Its end is its end; more patience goes on.
    assert train(config, tmp_path / "run", resume=True).progress.step == result.progress.step
    assert train(with_train(config, patience=0), tmp_path / "run", resume=True).progress.step > result.progress.step


@pytest.mark.parametrize("matching", ["triplet", "contrastive"])
def test_captions_of_one_image_are_no_negatives_where_that_is_asked(
    config: Config, tmp_path: Path, matching: str
) -> None:
    """Against a loop over the pairs of a batch that holds images twice."""
    loss = LossConfig(matching=matching, negatives="hardest", mask_same_image=True)
    config = with_train(replace(config, loss=loss), batch_size=40)
    trainer = Trainer(prepare_run(config, tmp_path / "run", resume=False), Silent())
    batch = next(trainer.batches.epoch(0))
    owners = batch.images
    assert owners is not None
    assert len(set(owners.tolist())) < len(owners)
    oracle: Any = prepare_run(config, tmp_path / "oracle", resume=False).model.train()
    images = oracle.image_encoder(batch.features, batch.counts).embeddings
    similarities = cosine_similarities(images, oracle.caption_encoder(batch.tokens, batch.lengths)).detach().numpy()
    trainer._step([batch])
    assert float(trainer.recent[-1][0]) == pytest.approx(by_hand(similarities, owners.numpy(), matching), rel=1e-4)
    assert float(trainer.recent[-1][0]) != pytest.approx(
        by_hand(similarities, np.arange(len(owners)), matching), rel=1e-4
    )


def by_hand(similarities: Any, owners: Any, matching: str) -> float:
    total = 0.0
    for table in (similarities, similarities.T):
        for place, row in enumerate(table):
            others = [value for value, owner in zip(row, owners, strict=True) if owner != owners[place]]
            if matching == "triplet":
                total += max([0.2 + value - row[place] for value in others if value > row[place] - 0.2], default=0.0)
            else:
                scaled = np.array([row[place], *others]) / 0.05
                total += float(np.log(np.exp(scaled - scaled[0]).sum()))
    return total


def test_a_mask_without_repeated_images_changes_nothing() -> None:
    similarities = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    unmasked = similarities.masked_fill(torch.zeros(5, 5, dtype=torch.bool), -torch.inf)
    assert torch.equal(contrastive_loss(similarities, 0.1), contrastive_loss(unmasked, 0.1))


def test_more_batches_a_step_than_an_epoch_has_are_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate 99 is more than the \d+ batches of an epoch"):
        train(with_train(config, accumulate=99), tmp_path / "run")


def test_a_batch_beyond_the_captions_is_said(config: Config, tmp_path: Path) -> None:
    prepared = prepare_run(with_train(config, batch_size=100_000), tmp_path / "run", resume=False)
    assert any("train.batch_size 100,000 is more than the" in note for note in prepared.notes)


def test_sizes_of_all_splits_are_compared_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    path = Path(config.data.path) / "dev_ims.npy"
    np.save(path, np.load(path)[..., :-2])
    with pytest.raises(DataError, match=r"split 'train' have \d+ numbers a region and those of split 'dev' \d+"):
        prepare_run(config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_an_old_checkpoint_without_newer_fields_still_says_where_it_stands() -> None:
    import msgspec

    old = b'{"epoch":1,"step_in_epoch":2,"step":9,"best_rsum":12.5,"best_step":5}'
    assert msgspec.json.decode(old, type=Progress) == Progress(1, 2, 9, 12.5, 5, 0)
