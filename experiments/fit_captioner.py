"""Give a model a captioner: it learns to write from the model's regions, which stay as they are.

    python experiments/fit_captioner.py RUN -o OUT --data.path STORE

STORE holds the regions that RUN reads. What RUN finds does not change; the best captioner by its loss on the held-out
photos is kept.
"""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vsrn.config import CaptionerConfig
from vsrn.extractors.provenance import kept_weights
from vsrn.model.base import Batch, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, read_model, write_model
from vsrn.training.batches import TrainingBatches
from vsrn.training.run import open_training_splits


@dataclass(frozen=True)
class Data:
    """Where the regions are."""

    path: str


def main(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    data: Data,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    epochs: int = 6,
    learning_rate: float = 1e-3,
    word_dim: int = 160,
    seed: int = 0,
) -> None:
    """Train a captioner and write the model with it.

    Args:
        run: A model.
        data: Its regions.
        output: Folder of the model with its captioner.
        epochs: Passes over the captions.
        learning_rate: Adam's; a cosine leads it to 0.
        word_dim: Size of the captioner's words.
        seed: Of its first weights, of order and dropout.
    """
    torch.manual_seed(seed)
    stored = with_captioner(read_model(run), word_dim)
    model = stored.model
    captioner = model.captioner
    assert captioner is not None
    learn, choose = open_training_splits(replace(stored.config, data=replace(stored.config.data, path=data.path)))
    batches = TrainingBatches(learn, stored.vocabulary, 128, seed)
    judged = list(TrainingBatches(choose, stored.vocabulary, 128, seed).epoch(0))
    optimizer = torch.optim.Adam(captioner.parameters(), lr=learning_rate, fused=True)
    total, best, kept = epochs * batches.steps_per_epoch, math.inf, copy.deepcopy(captioner.state_dict())
    for epoch in range(epochs):
        captioner.train()
        for step, batch in enumerate(batches.epoch(epoch)):
            for group in optimizer.param_groups:
                done = (epoch * batches.steps_per_epoch + step) / total
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad(set_to_none=True)
            loss_of(model, captioner, batch).backward()
            torch.nn.utils.clip_grad_norm_(captioner.parameters(), 2.0)
            optimizer.step()
        captioner.eval()
        with torch.no_grad():
            loss = float(torch.stack([loss_of(model, captioner, batch) for batch in judged]).mean())
        print(f"epoch {epoch + 1}: loss on held-out photos {loss:.2f}", flush=True)
        if loss < best:
            best, kept = loss, copy.deepcopy(captioner.state_dict())
    captioner.load_state_dict(kept)
    output.mkdir(parents=True, exist_ok=True)
    extractor = kept_weights(run)
    if extractor is not None:
        shutil.copyfile(extractor, output / extractor.name)
    write_model(output, stored)


def with_captioner(stored: StoredModel, word_dim: int) -> StoredModel:
    """The model with a fresh captioner."""
    captioner = CaptionerConfig(hidden_dim=256, word_dim=word_dim, max_tokens=40)
    config = replace(stored.config, model=replace(stored.config.model, captioner=captioner))
    model = build_model(config, stored.vocabulary)
    parts = {name: tensor for name, tensor in stored.model.state_dict().items() if not name.startswith("captioner.")}
    model.load_state_dict(parts, strict=False)
    return replace(stored, config=config, model=model.eval())


def loss_of(model: MatchingModel, captioner: Captioner, batch: Batch) -> torch.Tensor:
    """Cross entropy of a batch's captions, summed over words, a caption."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            regions = model.image_encoder(batch.features, batch.counts).reasoned_regions
        return captioner.generation_loss(regions, batch.tokens, batch.lengths, batch.counts)


if __name__ == "__main__":
    tyro.cli(main)
