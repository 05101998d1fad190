"""Fine-tune the last stages of the offline grid's network together with a model: a model with its own extractor.

    python experiments/fine_tune_grid.py PHOTOS RUN -o runs/fine-tuned    # goes on where it was stopped

RUN is a model trained on the grid's regions as they are, without a captioner: it says what to learn from and what
chooses the best weights, which network it is, and its encoders are trained along from where they stand. Every step sees
a new random part of each photo.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import nn
from torch.nn import functional

from vsrn.config import LossConfig
from vsrn.data.photo_splits import processors
from vsrn.data.photos import decode_photo
from vsrn.data.region_store import StoreInfo
from vsrn.data.splits import Split
from vsrn.data.vocabulary import UNK, Vocabulary
from vsrn.devices import pick_device
from vsrn.encoders.torch_backend import encode_tokens
from vsrn.extractors.base import make_extractor
from vsrn.extractors.grid import fine_tuned_network, load_network, weights_path, write_fine_tuned
from vsrn.extractors.grid_onnx import POOLED_SIDE, GridKind
from vsrn.extractors.provenance import kept_weights
from vsrn.metrics import EncodedSplit, rank_blocks, retrieval_metrics, similarity_blocks
from vsrn.model.base import MatchingModel
from vsrn.model.gru import pad_tokens
from vsrn.model.losses import cosine_similarities
from vsrn.model.registry import LOSSES
from vsrn.model.saved import StoredModel, read_model, write_model
from vsrn.training.batches import draw_margins, drop_regions
from vsrn.training.run import open_training_splits

# Captions of each photo in a step.
ROUNDS = 3
# Least share of a photo's area that a step sees, and least ratio of what it sees to the photo's own shape.
SMALLEST_PART, NARROWEST = 0.5, 0.8
# How much brightness, contrast and colour change at most.
LIGHT = 0.2


@dataclass(frozen=True)
class Data:
    """Where the captions are.

    path  a region store of the same photos, where it is not RUN's
    """

    path: str = ""


@dataclass(frozen=True)
class Stages:
    """The grid's network in two parts, of which the second one is trained, and its kind.

    first  number of the first stage that is trained
    """

    network: Any
    kind: GridKind
    first: int

    def features(self, pixels: torch.Tensor, tuned: nn.Module) -> torch.Tensor:
        """(B, 3, side, side) scaled pixels -> (B, 36, 1280) regions; `tuned` is the second part, or its average."""
        with torch.no_grad():
            hidden = self.network.bn1(self.network.conv_stem(pixels))
            for stage in self.network.blocks[: self.first]:
                hidden = stage(hidden)
        for stage in tuned.children():
            hidden = stage(hidden)
        return functional.adaptive_avg_pool2d(hidden, POOLED_SIDE).flatten(2).mT

    def tuned(self) -> nn.ModuleList:
        """What is trained."""
        return nn.ModuleList([*self.network.blocks[self.first :], self.network.conv_head, self.network.bn2])


def main(
    photos: Annotated[Path, tyro.conf.Positional],
    run: Annotated[Path, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    data: Data,
    weights: Path | None = None,
    first_stage: int = 1,
    epochs: int = 14,
    stop_after: int = 0,
    batch: int = 128,
    learning_rate: float = 4e-4,
    head_learning_rate: float = 3e-4,
    weight_decay: float = 0.01,
    average: float = 0.99,
    word_dropout: float = 0.1,
    regions_dropped: float = 0.2,
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Fine-tune, validating after every epoch; the best weights so far are in the output.

    Args:
        photos: Folder of the photos.
        run: A model trained on their regions.
        output: Folder of the fine-tuned model, its extractor's weights among it.
        data: Where the captions are.
        weights: Of the network [default: those that RUN keeps, else the installed ones].
        first_stage: The stages of the network from this one on are trained, of 0 to 6.
        epochs: Passes over the photos, each with all its captions.
        stop_after: End after so many of them; 0 for all.
        batch: Photos a step.
        learning_rate: Of the network's last stages; a cosine leads it to 0.
        head_learning_rate: Of the encoders.
        weight_decay: AdamW's.
        average: Decay of the running average of the weights, which is what is validated and kept.
        word_dropout: Share of the words that the caption encoder reads as <unk>.
        regions_dropped: Largest share of an image's regions that is dropped.
        device: Where it is done: cpu, cuda or auto.
        seed: Of order and views.
    """
    torch.manual_seed(seed)
    place = pick_device(device)
    if place.type == "cuda":
        torch.backends.cudnn.benchmark = True
    stored = read_model(run)
    started_from = weights or kept_weights(run)
    network, kind = (
        (load_network(weights_path()), GridKind()) if started_from is None else fine_tuned_network(started_from)
    )
    stages = Stages(network.to(place), kind, first_stage)
    learn, choose = splits_of(stored, data.path)
    (output / "state").mkdir(parents=True, exist_ok=True)
    learned, chosen = (pixels_of(split, photos, kind.side).to(place) for split in (learn, choose))

    model = nn.ModuleDict({"tuned": stages.tuned(), "vsrn": stored.model}).to(place)
    averaged = copied(model)
    rates = {"tuned": learning_rate, "vsrn": head_learning_rate}
    groups = [{"params": list(model[part].parameters()), "base": rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    state = output / "state/latest.pt"
    first, best = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=place)
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["epoch"], saved["best"]
    batches = learn.num_images // batch
    for epoch in range(first, min(epochs, stop_after or epochs)):
        started, total = time.monotonic(), torch.zeros((), device=place)
        stored.model.train()
        for step, (images, tokens) in enumerate(batches_of(learn, stored.vocabulary, batch, (seed, epoch))):
            done = epoch * batches + step
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * done / (epochs * batches)))
            pixels = seen(learned[torch.from_numpy(images).to(place)])
            with torch.autocast(place.type, dtype=torch.bfloat16):
                features = stages.features(pixels, model["tuned"])
                pairs = embeddings_of(stored.model, features, tokens, word_dropout, regions_dropped)
            loss = loss_of_rounds(*pairs, stored.config.loss)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], 2.0)
            optimizer.step()
            follow(averaged, model, min(average, done / (done + 10)))
            total += loss.detach()
        rsum, text = validate(stages, averaged, stored.vocabulary, choose, chosen)
        print(
            f"epoch {epoch + 1}: loss {total.item() / batches:.1f}, {text}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if rsum > best:
            best = rsum
            write(averaged, stages, stored, output)
        saved = {"model": model.state_dict(), "averaged": averaged.state_dict()}
        saved |= {"optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        torch.save(saved, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)


def splits_of(stored: StoredModel, path: str) -> tuple[Split, Split]:
    """What is learned from, and what chooses the best weights.

    path  of the region store, where it is not the model's own
    """
    source = replace(stored.config.data, path=path or stored.config.data.path)
    learn, choose = open_training_splits(replace(stored.config, data=source))
    assert isinstance(learn, Split)
    assert isinstance(choose, Split)
    return learn, choose


def pixels_of(split: Split, folder: Path, side: int) -> torch.Tensor:
    """(num_images, 3, side, side) uint8: the photos as the network reads them, squashed."""

    def read(name: str) -> np.ndarray:
        photo = decode_photo(folder / name, target_size=side)
        return np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC))

    ids = split.image_ids()
    photos = np.empty((len(ids), side, side, 3), np.uint8)
    with ThreadPoolExecutor(processors()) as pool:
        for place, photo in enumerate(pool.map(read, ids)):
            photos[place] = photo
    return torch.from_numpy(photos).permute(0, 3, 1, 2)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, side, side) of 0 to 255 -> as the network learned."""
    return ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)


def seen(photos: torch.Tensor, smallest: float = SMALLEST_PART) -> torch.Tensor:
    """(B, 3, side, side) uint8 -> a random part of each, mirrored or not, in a slightly different light, scaled.

    smallest  share of a photo's area that is seen at least
    """
    B, place = len(photos), photos.device

    def drawn(low: float, high: float) -> torch.Tensor:
        return torch.empty(B, device=place).uniform_(low, high)

    area, ratio = drawn(smallest, 1), torch.exp(drawn(math.log(NARROWEST), -math.log(NARROWEST)) / 2)
    width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    theta = torch.zeros(B, 2, 3, device=place)
    theta[:, 0, 0] = width * (torch.randint(2, (B,), device=place) * 2 - 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * drawn(-1, 1), (1 - height) * drawn(-1, 1)
    grid = functional.affine_grid(theta, list(photos.shape), align_corners=False)
    parts = functional.grid_sample(photos.float(), grid, "bicubic", "border", align_corners=False)
    means = parts.mean(dim=(1, 2, 3), keepdim=True)
    grey = parts.mean(dim=1, keepdim=True)
    brightness, contrast, colour = (drawn(1 - LIGHT, 1 + LIGHT)[:, None, None, None] for _ in range(3))
    parts = grey + (parts - grey) * colour
    return scaled(((means + (parts - means) * contrast) * brightness).clamp(0, 255))


def embeddings_of(
    model: MatchingModel, features: torch.Tensor, tokens: list[list[np.ndarray]], word_dropout: float, most: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) of the photos and (rounds, B, D) of their captions; `most` is the largest share of regions dropped."""
    kept, counts = without_some(features, most)
    words, lengths = pad_tokens([ids for one in tokens for ids in one])
    unread = (torch.rand(words.shape) < word_dropout) & (words > UNK)
    images = model.image_encoder(kept, counts).embeddings
    captions = model.caption_encoder(words.masked_fill(unread, UNK).to(features.device), lengths)
    return images, captions.view(len(tokens), -1, captions.shape[1])


def loss_of_rounds(images: torch.Tensor, captions: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """The model's own loss of each photo with one of its captions, the mean over the rounds."""
    return torch.stack(
        [LOSSES.make(loss.matching, loss)(cosine_similarities(images.float(), each)) for each in captions.float()]
    ).mean()


def without_some(features: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 36, 1280) regions -> those that are kept, first, and (B,) how many."""
    margins = draw_margins(len(features), features.shape[1], most, torch.randint(2**31, (1,)).tolist())
    places = np.broadcast_to(np.arange(features.shape[1])[None, :, None], (*features.shape[:2], 1))
    order, counts = drop_regions(places, None, margins)
    chosen = torch.from_numpy(order).to(features.device).expand(-1, -1, features.shape[2])
    return features.gather(1, chosen), torch.from_numpy(counts).to(features.device)


def batches_of(
    split: Split, vocabulary: Vocabulary, batch: int, seed: tuple[int, int]
) -> Iterator[tuple[np.ndarray, list[list[np.ndarray]]]]:
    """(B,) places of photos, in a new order, and for each round the words of a caption of each."""
    random = np.random.default_rng(seed)
    tokens = [np.array(vocabulary.encode(caption)) for caption in split.captions]
    of_image = [np.flatnonzero(split.image_of_caption == image) for image in range(split.num_images)]
    order = random.permutation(split.num_images)
    for start in range(0, len(order) - batch + 1, batch):
        images = order[start : start + batch]
        captions = [random.permutation(of_image[image])[:ROUNDS] for image in images]
        yield images, [[tokens[each[turn]] for each in captions] for turn in range(ROUNDS)]


@torch.inference_mode()
def validate(
    stages: Stages, averaged: nn.ModuleDict, vocabulary: Vocabulary, split: Split, photos: torch.Tensor
) -> tuple[float, str]:
    """Recalls on the held-out photos, by the averaged weights."""
    model = averaged["vsrn"].eval()
    assert isinstance(model, MatchingModel)
    parts = [
        model.image_encoder(stages.features(scaled(some), averaged["tuned"])).embeddings.cpu().numpy()
        for some in photos.split(50)
    ]
    captions = encode_tokens(
        model.caption_encoder, [np.array(vocabulary.encode(caption)) for caption in split.captions]
    )
    blocks = similarity_blocks([EncodedSplit(np.concatenate(parts), captions)])
    metrics = retrieval_metrics(rank_blocks(blocks, split.image_of_caption))
    to_text, to_image = metrics.image_to_text, metrics.text_to_image
    return metrics.rsum, f"R@1 {to_text.recall_at_1:.1f} / {to_image.recall_at_1:.1f}, rsum {metrics.rsum:.1f}"


def copied(model: nn.ModuleDict) -> nn.ModuleDict:
    """A copy with weights of its own, those of each GRU in one piece of memory.

    `deepcopy` leaves a GRU's weights apart; on a GPU, cuDNN would then bring them together at every call, and warn.
    """
    same = copy.deepcopy(model)
    for module in same.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return same


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running average a step towards the weights."""
    pairs = zip(averaged.state_dict().values(), model.state_dict().values(), strict=True)
    moving = [(average, weight) for average, weight in pairs if average.is_floating_point()]
    torch._foreach_lerp_([average for average, _ in moving], [weight for _, weight in moving], 1 - decay)


def write(averaged: nn.ModuleDict, stages: Stages, stored: StoredModel, output: Path) -> None:
    """The averaged model, and the whole network with its averaged last stages as float16."""
    names = {id(tensor): name for name, tensor in stages.network.state_dict(keep_vars=True).items()}
    tuned, whole = stages.tuned().state_dict(keep_vars=True), copy.deepcopy(stages.network)
    parts = {names[id(tuned[key])]: tensor for key, tensor in averaged["tuned"].state_dict().items()}
    whole.load_state_dict(whole.state_dict() | parts)
    path = output / "extractor.safetensors"
    write_fine_tuned(path, whole, stages.kind)
    regions = StoreInfo("grid", make_extractor("grid", path, device="cpu").fingerprint)
    model = averaged["vsrn"]
    assert isinstance(model, MatchingModel)
    write_model(output, replace(stored, model=model, regions=regions, extractor_weights=path))


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    tyro.cli(main)
