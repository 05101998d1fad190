"""One job of the Flickr8K comparison: a model is trained and evaluated in this process.

    train_job(order, key, settings, cut_at)  ->  a result as a dict of plain numbers, with the ranks of val's queries

A result has no weights. Similarities of rows that combinations are made of stay in the folder of work.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

import vsrn
from vsrn.configs import find_packaged
from vsrn.data import vocabulary
from vsrn.data.splits import Split, hold_out, open_split
from vsrn.devices import pick_device
from vsrn.evaluation.rerank import candidates, reranked
from vsrn.files import replacing
from vsrn.metrics import (
    EncodedSplit,
    FloatArray,
    IntArray,
    Ranks,
    RetrievalMetrics,
    rank_blocks,
    retrieval_metrics,
    similarity_blocks,
)
from vsrn.training.checkpoint import Progress, read_log

# One job after the other reads the same captions, and splitting them into words takes seconds.
vocabulary.tokenize = functools.lru_cache(maxsize=2**17)(vocabulary.tokenize)  # type: ignore[attr-defined]

TOP = 50
VAL, HELD_OUT = "val", "held_out"


@dataclass(frozen=True)
class Order:
    """What a lane is told to do.

    key       what results call it
    settings  of the config, by dotted names; data.path and train.device among them
    folder    of the run, new or stopped before
    keep      folder for its similarities, or None
    parts     for a combination, the folders of similarities of its parts; then nothing is trained
    reranked  whether the second part re-orders what the first one finds
    cut_at    time.time() at which training must have ended
    """

    key: str
    settings: dict[str, Any]
    folder: Path
    keep: Path | None = None
    parts: tuple[Path, ...] = ()
    reranked: bool = False
    cut_at: float = float("inf")


class Clock:
    """Stops a run, as Ctrl-C does, after the epoch whose successor would end too late; knows when steps began."""

    def __init__(self, cut_at: float) -> None:
        self.cut_at = cut_at
        self.first = self.last = time.time()
        self.began: float | None = None
        self.asked = False

    def stepped(self, _progress: Progress, _row: dict[str, Any] | None, /) -> None:
        """Stop where the time is up in the middle of an epoch."""
        if self.began is None:
            self.began = time.time()
            self.last = self.began
        if time.time() > self.cut_at:
            self.stop()

    def validated(self, _progress: Progress, _metrics: RetrievalMetrics, /) -> None:
        """Stop where the next epoch does not fit."""
        now = time.time()
        if now + (now - self.last) > self.cut_at:
            self.stop()
        self.last = now

    def noted(self, _note: str, /) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Ask the run to stop, once: the trainer saves and returns."""
        if not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGINT)


def do(order: Order) -> dict[str, Any]:
    """What an order asks for."""
    return combine(order) if order.parts else train_job(order)


def train_job(order: Order) -> dict[str, Any]:
    """Train and evaluate one model. Raises what `vsrn.train` and `vsrn.load` raise."""
    clock = Clock(order.cut_at)
    resume = (order.folder / "state").exists()
    if order.folder.exists() and not resume:
        shutil.rmtree(order.folder)
    run = vsrn.train({}, output=order.folder, resume=resume, settings=order.settings, reporter=clock)
    trained = time.time()
    curve = [(row["step"], row["validation"]["rsum"]) for row in read_log(order.folder) if "validation" in row]
    if not curve:
        raise TimeoutError("the time was up before the first epoch ended")
    steps_of_epoch = curve[0][0]
    result: dict[str, Any] = {
        "finished": run.finished,
        "cut": clock.asked and not run.finished,
        "epochs": run.step // steps_of_epoch,
        "best_epoch": run.best_step // steps_of_epoch,
        "steps": run.step,
        "seconds": round(trained - (clock.began or trained), 2),
        "setup_seconds": round((clock.began or trained) - clock.first, 2),
        "resumed": resume,
        "parameters": count_parameters(order.folder),
        "curve": curve,
        HELD_OUT: run.validation,
    }
    result |= evaluate(order)
    result["evaluation_seconds"] = round(time.time() - trained, 2)
    if run.finished:
        shutil.rmtree(order.folder)
    return result


def evaluate(order: Order) -> dict[str, Any]:
    """Metrics and ranks on val; where similarities are kept, those of val and of the held-out photos are written."""
    encoder = vsrn.load(order.folder, order.settings["train.device"])
    path = order.settings["data.path"]
    val = open_split(path, VAL)
    similarities = matrix(encoder.encode_split(val))
    ranks = ranks_of(similarities, val.image_of_caption)
    if order.keep is not None:
        order.keep.mkdir(parents=True, exist_ok=True)
        save(order.keep / f"{VAL}.npy", similarities)
        save(order.keep / f"{HELD_OUT}.npy", matrix(encoder.encode_split(held_out(order.settings))))
    return {VAL: retrieval_metrics(ranks).to_json(), "ranks": ranks}


def held_out(settings: dict[str, Any]) -> Split:
    """The held-out photos of a job's settings."""
    train = open_split(settings["data.path"], "train")
    return hold_out(train, find_packaged(settings["data.held_out"]))[1]


def combine(order: Order) -> dict[str, Any]:
    """Metrics of an ensemble or of a re-ranking on both sets of photos, from the similarities of its parts."""
    splits = {VAL: open_split(order.settings["data.path"], VAL), HELD_OUT: held_out(order.settings)}
    began = time.time()
    result: dict[str, Any] = {}
    for name, split in splits.items():
        parts = [np.load(part / f"{name}.npy") for part in order.parts]
        if order.reranked:
            ranks = reordered(parts[0], parts[1], split.image_of_caption)
        else:
            ranks = ranks_of(np.mean(parts, axis=0), split.image_of_caption)
        result |= {name: retrieval_metrics(ranks).to_json()} | ({"ranks": ranks} if name == VAL else {})
    return result | {"finished": True, "evaluation_seconds": round(time.time() - began, 2)}


def reordered(first: FloatArray, second: FloatArray, owners: IntArray) -> Ranks:
    """Ranks after the second similarities re-ordered the best 50 matches of every query by the first ones."""
    found, by_first, by_second = ranks_of(first, owners), around(first), around(second)
    top = min(TOP, len(first))
    return reranked(found, owners, by_second, *candidates([by_first], owners, top))


def around(similarities: FloatArray) -> EncodedSplit:
    """Similarities of (images, captions) that were computed before, as what a model would compute them from."""
    rows, columns = (np.arange(size) for size in similarities.shape)
    return EncodedSplit(rows, columns, lambda images, captions: similarities[np.ix_(images, captions)])


def matrix(encoded: EncodedSplit) -> FloatArray:
    """(images, captions) similarities."""
    return np.concatenate([block for _, block in similarity_blocks([encoded])()])


def ranks_of(similarities: FloatArray, owners: IntArray) -> Ranks:
    """Ranks of both directions."""
    return rank_blocks(lambda: [(0, similarities)], owners)


def save(path: Path, array: FloatArray) -> None:
    """Write an array, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def count_parameters(model: Path) -> int:
    """Numbers in a run's weights."""
    with safe_open(model / "model.safetensors", framework="numpy") as weights:
        return sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118 (not a dict)


def card(device: str) -> str:
    """Name of the device that a name means."""
    picked = pick_device(device)
    return torch.cuda.get_device_name(picked) if picked.type == "cuda" else picked.type
