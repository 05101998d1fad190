"""Fine-tune the last stages of the offline grid's network together with a model: a model with its own extractor.

    python experiments/fine_tune_grid.py PHOTOS RUN -o runs/fine-tuned    # goes on where it was stopped

RUN is a model trained on the grid's regions as they are, without a captioner: it says what to learn from and what
chooses the best weights, which network it is, and its encoders are trained along from where they stand. The stages
before `FIRST_STAGE` do not change, so what they make of each photo is computed once, for the whole photo and random
crops of it, and kept in the output's `state`.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from vsrn.config import LossConfig
from vsrn.data.photos import decode_photo
from vsrn.data.region_store import StoreInfo
from vsrn.data.splits import Split
from vsrn.data.vocabulary import UNK, Vocabulary
from vsrn.encoders.torch_backend import encode_tokens
from vsrn.extractors.base import make_extractor
from vsrn.extractors.grid import (
    POOLED_SIDE,
    GridKind,
    fine_tuned_network,
    load_network,
    weights_path,
    write_fine_tuned,
)
from vsrn.extractors.provenance import kept_weights
from vsrn.metrics import EncodedSplit, rank_blocks, retrieval_metrics, similarity_blocks
from vsrn.model.base import MatchingModel
from vsrn.model.gru import pad_tokens
from vsrn.model.losses import cosine_similarities
from vsrn.model.registry import LOSSES
from vsrn.model.saved import StoredModel, read_model, write_model
from vsrn.training.batches import draw_margins, drop_regions
from vsrn.training.run import open_training_splits

FIRST_STAGE = 5
VIEWS = 3
ROUNDS = 3
BATCH = 128


@dataclass(frozen=True)
class Stages:
    """The grid's network in two halves, and its kind."""

    network: Any
    kind: GridKind

    @property
    def map_shape(self) -> tuple[int, ...]:
        """The shape of what the first half makes of a photo."""
        side = self.kind.side
        with torch.inference_mode():
            return tuple(self.early(torch.zeros(1, 3, side, side)).shape[1:])

    def early(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) scaled pixels -> (B, *map_shape)."""
        hidden = self.network.bn1(self.network.conv_stem(pixels))
        for stage in self.network.blocks[:FIRST_STAGE]:
            hidden = stage(hidden)
        return hidden

    def late(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, *map_shape) -> (B, 36, 1280) regions."""
        for stage in self.network.blocks[FIRST_STAGE:]:
            hidden = stage(hidden)
        hidden = self.network.bn2(self.network.conv_head(hidden))
        return functional.adaptive_avg_pool2d(hidden, POOLED_SIDE).flatten(2).mT

    def late_modules(self) -> nn.ModuleList:
        """What is trained."""
        return nn.ModuleList([*self.network.blocks[FIRST_STAGE:], self.network.conv_head, self.network.bn2])


def main(
    photos: Annotated[Path, tyro.conf.Positional],
    run: Annotated[Path, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    weights: Path | None = None,
    epochs: int = 8,
    learning_rate: float = 2e-4,
    head_learning_rate: float = 3e-4,
    average: float = 0.99,
    word_dropout: float = 0.1,
    regions_dropped: float = 0.2,
    seed: int = 0,
) -> None:
    """Fine-tune, validating after every epoch; the best weights so far are in the output.

    Args:
        photos: Folder of the photos.
        run: A model trained on their regions.
        output: Folder of the fine-tuned model, its extractor's weights among it.
        weights: Of the network [default: those that RUN keeps, else the installed ones].
        epochs: Passes over the photos, each with all its captions.
        learning_rate: Of the network's last stages; a cosine leads it to 0.
        head_learning_rate: Of the encoders.
        average: Decay of the running average of the weights, which is what is validated and kept.
        word_dropout: Share of the words that the caption encoder reads as <unk>.
        regions_dropped: Largest share of an image's regions that is dropped.
        seed: Of order and views.
    """
    torch.manual_seed(seed)
    stored = read_model(run)
    started_from = weights or kept_weights(run)
    if started_from is None:
        stages = Stages(load_network(weights_path()), GridKind())
    else:
        stages = Stages(*fine_tuned_network(started_from))
    learn, choose = open_training_splits(stored.config)
    (output / "state").mkdir(parents=True, exist_ok=True)
    learned = early_maps(stages, photos, learn, output / "state/learn.f16", VIEWS)
    chosen = early_maps(stages, photos, choose, output / "state/choose.f16", 1)

    model = nn.ModuleDict({"late": stages.late_modules(), "vsrn": stored.model})
    averaged = copy.deepcopy(model)
    rates = {"late": learning_rate, "vsrn": head_learning_rate}
    groups = [{"params": list(model[part].parameters()), "base": rate} for part, rate in rates.items()]
    optimizer = torch.optim.Adam(groups, fused=True)
    state = output / "state/latest.pt"
    first, best = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["epoch"], saved["best"]
    batches = learn.num_images // BATCH
    for epoch in range(first, epochs):
        started, total = time.monotonic(), 0.0
        stored.model.train()
        for step, (hidden, tokens) in enumerate(batches_of(learn, learned, stored.vocabulary, (seed, epoch))):
            done = epoch * batches + step
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * done / (epochs * batches)))
            pairs = embeddings_of(stages, stored.model, moved(hidden), tokens, word_dropout, regions_dropped)
            loss = loss_of_rounds(*pairs, stored.config.loss)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 2.0)
            optimizer.step()
            follow(averaged, model, min(average, done / (done + 10)))
            total += float(loss.detach())
        rsum, text = validate(averaged, stored.vocabulary, choose, chosen)
        print(f"epoch {epoch + 1}: loss {total / batches:.1f}, {text}, {time.monotonic() - started:.0f} s", flush=True)
        if rsum > best:
            best = rsum
            write(averaged, stages, stored, output)
        everything = {"model": model.state_dict(), "averaged": averaged.state_dict()}
        everything |= {"optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        torch.save(everything, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)


def embeddings_of(
    stages: Stages,
    model: MatchingModel,
    hidden: torch.Tensor,
    tokens: list[list[np.ndarray]],
    word_dropout: float,
    most_dropped: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) of the photos and (rounds, B, D) of their captions."""
    features, counts = without_some(stages.late(hidden), most_dropped)
    words, lengths = pad_tokens([ids for one in tokens for ids in one])
    unread = (torch.rand(words.shape) < word_dropout) & (words > UNK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = model.image_encoder(features, counts).embeddings
        captions = model.caption_encoder(words.masked_fill(unread, UNK), lengths)
    return images, captions.view(len(tokens), -1, captions.shape[1])


def loss_of_rounds(images: torch.Tensor, captions: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """The model's own loss of each photo with one of its captions, the mean over the rounds."""
    return torch.stack(
        [LOSSES.make(loss.matching, loss)(cosine_similarities(images, each)) for each in captions]
    ).mean()


def without_some(features: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 36, 1280) regions -> those that are kept, first, and (B,) how many."""
    margins = draw_margins(*features.shape[:2], most, torch.randint(2**31, (1,)).tolist())
    places = np.broadcast_to(np.arange(features.shape[1])[None, :, None], (*features.shape[:2], 1))
    order, counts = drop_regions(places, None, margins)
    return features.gather(1, torch.from_numpy(order).expand(-1, -1, features.shape[2])), torch.from_numpy(counts)


def moved(hidden: torch.Tensor) -> torch.Tensor:
    """A random part of each map, mirrored or not, as large as the whole: what cropping the photo would about give."""
    B = len(hidden)
    scale = torch.empty(B, 2).uniform_(0.7, 1.0)
    shift = (1 - scale) * torch.empty(B, 2).uniform_(-1, 1)
    scale[:, 0] *= torch.randint(2, (B,)) * 2 - 1
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 1], shift
    grid = functional.affine_grid(theta, list(hidden.shape), align_corners=False)
    resampled = functional.grid_sample(hidden, grid, padding_mode="border", align_corners=False)
    return resampled.to(memory_format=torch.channels_last)


def batches_of(
    split: Split, maps: np.memmap, vocabulary: Vocabulary, seed: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, list[list[np.ndarray]]]]:
    """(B, *map_shape) of one view of each photo, and for each round a caption of each, in a new order."""
    random = np.random.default_rng(seed)
    tokens = [np.array(vocabulary.encode(caption)) for caption in split.captions]
    of_image = [np.flatnonzero(split.image_of_caption == image) for image in range(split.num_images)]
    order = random.permutation(split.num_images)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        images = order[start : start + BATCH]
        views = random.integers(VIEWS, size=BATCH)
        hidden = np.stack([maps[image, view] for image, view in zip(images, views, strict=True)])
        captions = [random.permutation(of_image[image])[:ROUNDS] for image in images]
        rounds = [[tokens[each[turn]] for each in captions] for turn in range(ROUNDS)]
        yield torch.from_numpy(hidden).float().to(memory_format=torch.channels_last), rounds


@torch.inference_mode()
def validate(averaged: nn.ModuleDict, vocabulary: Vocabulary, split: Split, maps: np.memmap) -> tuple[float, str]:
    """Recalls on the held-out photos, by the averaged weights."""
    model: MatchingModel = averaged["vsrn"].eval()
    late = averaged["late"]
    parts = []
    for start in range(0, len(maps), 50):
        hidden = torch.from_numpy(maps[start : start + 50, 0].astype(np.float32)).to(memory_format=torch.channels_last)
        for stage in late:
            hidden = stage(hidden)
        features = functional.adaptive_avg_pool2d(hidden, POOLED_SIDE).flatten(2).mT
        parts.append(model.image_encoder(features).embeddings.numpy())
    captions = encode_tokens(
        model.caption_encoder, [np.array(vocabulary.encode(caption)) for caption in split.captions]
    )
    blocks = similarity_blocks([EncodedSplit(np.concatenate(parts), captions)])
    metrics = retrieval_metrics(rank_blocks(blocks, split.image_of_caption))
    to_text, to_image = metrics.image_to_text, metrics.text_to_image
    return metrics.rsum, f"R@1 {to_text.recall_at_1:.1f} / {to_image.recall_at_1:.1f}, rsum {metrics.rsum:.1f}"


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running average a step towards the weights."""
    for average, weight in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(weight, 1 - decay)


def write(averaged: nn.ModuleDict, stages: Stages, stored: StoredModel, output: Path) -> None:
    """The averaged model, and the whole network with its averaged last stages as float16."""
    names = {id(tensor): name for name, tensor in stages.network.state_dict(keep_vars=True).items()}
    tuned, whole = stages.late_modules().state_dict(keep_vars=True), copy.deepcopy(stages.network)
    parts = {names[id(tuned[key])]: tensor for key, tensor in averaged["late"].state_dict().items()}
    whole.load_state_dict(whole.state_dict() | parts)
    path = output / "extractor.safetensors"
    write_fine_tuned(path, whole, stages.kind)
    regions = StoreInfo("grid", make_extractor("grid", path).fingerprint)
    write_model(output, replace(stored, model=averaged["vsrn"], regions=regions))


@torch.inference_mode()
def early_maps(stages: Stages, photos: Path, split: Split, path: Path, views: int) -> np.memmap:
    """(num_images, views, *map_shape) float16 on disk: the whole photo, mirrored, and random crops."""
    ids = split.image_ids()
    shape = (len(ids), views, *stages.map_shape)
    done_path = path.with_suffix(".done")
    if done_path.exists():
        return np.memmap(path, dtype=np.float16, mode="r", shape=shape)
    maps = np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
    side, bicubic = stages.kind.side, v2.InterpolationMode.BICUBIC
    crop = v2.Compose(
        [v2.RandomResizedCrop(side, (0.5, 1.0), (0.8, 1.25), bicubic), v2.RandomHorizontalFlip()],
    )
    for place, name in enumerate(ids):
        photo = torch.from_numpy(np.array(decode_photo(photos / name, target_size=side))).permute(2, 0, 1)
        seen = [v2.functional.resize(photo, [side, side], bicubic), *(crop(photo) for _ in range(views - 1))]
        pixels = (torch.stack(seen).float() - 127) / 128
        # Twice as fast; what is validated is exact.
        with torch.autocast("cpu", torch.bfloat16, enabled=views > 1):
            maps[place] = stages.early(pixels.to(memory_format=torch.channels_last)).half().numpy()
        if place % 500 == 0:
            print(f"{path.name}: {place} of {len(ids)}", flush=True)
    maps.flush()
    done_path.touch()
    return maps


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    tyro.cli(main)
