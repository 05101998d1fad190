"""Part 2: training at Flickr30K's and COCO's size by the package's own `Trainer`, and what its steps are made of."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from material import (
    COCO_CAPTIONS,
    COCO_WORDS,
    FLICKR30K_CAPTIONS,
    FLICKR30K_WORDS,
    PAPER,
    SMALL,
    Sizes,
    exact,
    make_config,
    without_captioner,
    write_store,
)
from profiling import profiled
from recording import Figures, Part, said_of, seconds_of, synchronize

from vsrn.config import Config, ModelConfig, config_fields
from vsrn.metrics import RetrievalMetrics
from vsrn.model.base import Batch
from vsrn.model.reasoning import FOLD_AT
from vsrn.training.checkpoint import Progress
from vsrn.training.optimizer import make_optimizer
from vsrn.training.passes import SYNC_DEBUG_WARNING
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer

FLICKR30K_EPOCHS = COCO_EPOCHS = 30


def measure(part: Part) -> None:
    """The paper's step first, then what it is made of, then its variants."""

    def step(
        name: str,
        config: str = "f30k",
        *,
        deep: bool = False,
        seconds: float = 5.0,
        compiled: bool = False,
        **fields: Any,
    ) -> None:
        needs = 75 if compiled else 25 if deep else 14
        part.measure(
            name,
            lambda: training(part, name, config, deep=deep, seconds=seconds, compiled=compiled, **fields),
            needs=needs,
            limit=150 if compiled else 90,
        )

    bf16: dict[str, Any] = {"train__precision": "bf16"}
    step("joint bf16", deep=True, seconds=9.0, **bf16)
    step("no captioner bf16", deep=True, **without_captioner(**bf16))
    part.measure("parts of a step", lambda: parts_of_a_step(part), needs=10)
    step("joint fp32", train__precision="fp32")
    if "train.cuda_graphs" in config_fields():
        step("joint bf16, no CUDA graphs", deep=True, seconds=5.0, train__cuda_graphs=False, **bf16)
    step("joint bf16, dropping regions", train__drop_regions=0.2, **bf16)
    step("COCO joint bf16", "coco", **bf16)
    step("joint bf16, batch 256", train__batch_size=16 if part.small else 256, **bf16)
    step("SCAN bf16", "scan/f30k", seconds=4.0, **bf16)
    step("VSE-infinity bf16", "vse-infinity/f30k", seconds=4.0, **bf16)
    if part.device.type == "cuda":
        # On a processor this needs a C++ compiler.
        step("joint bf16, compiled", compiled=True, **bf16)


@functools.cache
def matrix_rate(device: torch.device, *, small: bool) -> float:
    """FLOP per second of bf16 products of random square matrices, 8,192 wide."""
    side = 256 if small else 8192
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right, device, 0.1 if small else 1.0, warm_up=5)


@functools.cache
def store_of(folder: Path, small: bool, coco: bool) -> Path:
    """The store of random features, with the caption lengths of Flickr30K or of COCO."""
    lengths = COCO_WORDS if coco else FLICKR30K_WORDS
    return write_store(folder / ("coco" if coco else "f30k"), SMALL if small else PAPER, lengths)


class EnoughError(Exception):
    """Ends a run whose steps have been measured."""


@dataclass
class Plan:
    """What is done with the steps of a run, one phase after the other.

    warm_up   steps, and seconds, of which the one that ends first ends the warm-up
    seconds   that are measured
    deep      whether the loader is taken away, host syncs are looked for and a profile is made afterwards
    profiled  steps of that profile
    profile   its file
    """

    device: torch.device
    warm_up: tuple[int, float]
    seconds: float
    deep: bool
    profiled: int
    profile: Path


class Stopwatch:
    """A reporter that times the steps of a run by its plan, and ends the run by `EnoughError`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.figures: Figures = {}
        self.loader: Loader | None = None
        self.script = self._phases()

    def stepped(self, _progress: Progress, _row: dict[str, Any] | None, /) -> None:
        """Go on with the plan; it is called after each step."""
        if next(self.script, "end") == "end":
            raise EnoughError

    def validated(self, _progress: Progress, _metrics: RetrievalMetrics) -> None:
        """No run that is measured gets so far."""
        raise AssertionError("a run was validated while it was measured")

    def noted(self, _note: str, /) -> None:
        """Say nothing."""

    def _phases(self) -> Iterator[str]:
        """Each `yield` is a step."""
        plan, loader = self.plan, self.loader
        assert loader is not None
        began = time.perf_counter()
        for _ in range(plan.warm_up[0]):
            if time.perf_counter() - began > plan.warm_up[1]:
                break
            yield "warm-up"
        loader.seconds = 0.0
        yield from self._timed("", plan.seconds)
        self.figures["loader_share"] = loader.seconds / self.figures["measured_seconds"]
        if not plan.deep:
            return
        loader.repeats = True
        yield "the first of the repeated batches"
        yield from self._timed("_of_one_batch", plan.seconds / 3)
        loader.repeats = False
        yield from self._host_syncs()
        with profiled(plan.device, plan.profile, self.figures):
            yield from itertools.repeat("profiled", plan.profiled)
            synchronize(plan.device)

    def _timed(self, name: str, seconds: float) -> Iterator[str]:
        synchronize(self.plan.device)
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds or steps < 2:
            yield "timed"
            steps += 1
        synchronize(self.plan.device)
        took = time.perf_counter() - began
        self.figures[f"steps_per_second{name}"] = steps / took
        self.figures[f"measured_steps{name}"] = steps
        self.figures[f"measured_seconds{name}"] = took

    def _host_syncs(self) -> Iterator[str]:
        """20 steps in which torch warns wherever the host waits for the device; the log's row every 10 steps does."""
        if self.plan.device.type != "cuda":
            return
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", SYNC_DEBUG_WARNING)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield from itertools.repeat("watched", 20)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = collections.Counter(
            f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
            for warning in seen
            if "synchroniz" in str(warning.message)
        )
        self.figures["host_syncs_per_step"] = sum(places.values()) / 20
        self.figures["host_syncs_of_20_steps"] = dict(places.most_common(20))


class Loader:
    """Takes the place of `batches.epoch`: it times how long steps wait for batches, and can repeat the last batch."""

    def __init__(self, epoch: Callable[..., Iterator[Batch]]) -> None:
        self.epoch, self.seconds, self.repeats = epoch, 0.0, False

    def __call__(self, *arguments: Any, **named: Any) -> Iterator[Batch]:
        """The batches of an epoch; the arguments are those of `TrainingBatches.epoch`."""
        batches, batch = self.epoch(*arguments, **named), None
        while True:
            if batch is None or not self.repeats:
                began = time.perf_counter()
                batch = next(batches, None)
                self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def training(
    part: Part, name: str, packaged: str, *, deep: bool, seconds: float, compiled: bool = False, **fields: Any
) -> Figures:
    """Train by a packaged config until enough steps have been measured.

    compiled  whether the image encoder and the captioner's step are compiled by torch first
    """
    device, sizes = part.device, SMALL if part.small else PAPER
    config = make_config(packaged, store_of(part.scratch, part.small, "coco" in packaged), sizes, device, **fields)
    rate = matrix_rate(device, small=part.small)
    file = part.folder / f"profile-{name.replace(',', '').replace(' ', '-')}.txt"
    plan = (
        Plan(device, (3, 1.0), 0.1, deep, 2, file)
        if part.small
        else Plan(device, (150, 100.0 if compiled else 7.0), seconds, deep, 6, file)
    )
    watch = Stopwatch(plan)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with exact() if config.train.precision == "fp32" else contextlib.nullcontext():
        trainer = Trainer(prepare_run(config, part.scratch / name, resume=False), watch)
        if compiled:
            compile_parts(trainer.model)
        watch.loader = Loader(trainer.batches.epoch)
        setattr(trainer.batches, "epoch", watch.loader)  # noqa: B010 - a method is replaced
        try:
            trainer.run(resume=False)
        except EnoughError:
            pass
        except Exception as error:
            # What was timed before the profile, say, failed is worth its line.
            if "steps_per_second" not in watch.figures:
                raise
            watch.figures["failed_after_timing"] = said_of(error)
    tokens = len(trainer.batches.tokens) / len(trainer.batches.split.captions)
    flop = 3 * forward_flop(trainer.config, sizes, tokens)
    return watch.figures | _derived(watch.figures, trainer.config, flop, rate) | memory(device) | graphs_of(trainer)


def compile_parts(model: Any) -> None:
    """Have torch compile what is elementwise between products: the image encoder, and a step of the captioner."""
    model.image_encoder.compile()
    if model.captioner is not None:
        setattr(model.captioner, "step", torch.compile(model.captioner.step))  # noqa: B010 - a method is replaced


def _derived(figures: Figures, config: Config, flop: float, rate: float) -> Figures:
    """What follows from the steps a second and the operations of each."""
    batch, speed = config.train.batch_size, figures["steps_per_second"]
    return {
        "captions_per_second": speed * batch,
        "minutes_flickr30k": FLICKR30K_CAPTIONS // batch * FLICKR30K_EPOCHS / speed / 60,
        "minutes_coco": COCO_CAPTIONS // batch * COCO_EPOCHS / speed / 60,
        "tflop_per_step": flop / 1e12,
        "tflop_per_second": flop * speed / 1e12,
        "matrix_tflop_per_second": rate / 1e12,
        "share_of_matrix_rate": flop * speed / rate,
    }


def graphs_of(trainer: Trainer) -> Figures:
    """How many CUDA graphs the run recorded, and why it recorded none where it could not."""
    graphs: Any = getattr(getattr(trainer, "passes", None), "graphs", None)
    if graphs is None:
        return {"cuda_graphs": 0}
    return {"cuda_graphs": len(graphs._graphs), "cuda_graphs_failure": graphs.failure}


def memory(device: torch.device) -> Figures:
    """The most device memory that tensors took, and that torch held for them, in GB of 10**9 bytes."""
    if device.type != "cuda":
        return {}
    return {
        "peak_gb_of_tensors": torch.cuda.max_memory_allocated() / 1e9,
        "peak_gb_reserved": torch.cuda.max_memory_reserved() / 1e9,
    }


def forward_flop(config: Config, sizes: Sizes, tokens: float) -> float:
    """Floating-point operations of a step's forward pass, of its matrix products alone; backward takes twice as many.

    A product of (m, k) with (k, n) counts 2 m k n. Elementwise work, norms, softmax and the optimiser count nothing.
    Captions count their real tokens, not padding, and reasoning layers the cheaper of folded and plain products, so the
    figure is of the arithmetic that is needed rather than of what is done. With B captions, N = 36 regions of F
    numbers, D joint size, W word size, P tokens, H captioner size and V words:

    projection    2 B N F D
    reasoning     each layer 8 B N D^2 plain, or 4 B N D^2 + 4 D^3 folded, and 4 B N^2 D
    pooling GRU   12 B N D^2
    caption GRU   6 P D (W + D) for each direction; further layers alike with their own input
    captioner     2 B N D H, 12 B N H^2, 2 B N H^2; for each word 2 H^2 + 4 N H + 6 H (W + 2 H) + 2 H V
    similarities  2 B^2 D, or of SCAN 2 P B N D and 2 P B N^2

    tokens  of a caption on average, with <start> and <end>
    """
    model, batch, regions = config.model, config.train.batch_size, sizes.regions
    D, F, rows, words = model.joint_dim, model.feature_dim or 0, batch * regions, batch * tokens
    flop = 2.0 * rows * F * D
    if model.kind == "scan":
        directions = 2 if model.scan.bidirectional else 1
        flop += 2 * words * rows * D + 2 * words * rows * regions
    else:
        directions = 2 if model.caption_bidirectional else 1
        flop += 2 * batch**2 * D
        reasoning = model.reasoning_layers if model.kind == "vsrn" else 0
        plain, folded = 8 * rows * D**2, 4 * rows * D**2 + 4 * D**3
        flop += reasoning * ((min(plain, folded) if rows >= FOLD_AT * D else plain) + 4 * rows * regions * D)
        flop += 12 * rows * D**2 if model.kind == "vsrn" and model.aggregator == "gru" else 0
        flop += _captioner_flop(model, rows, sizes, words) if model.kind == "vsrn" else 0
    for layer in range(model.caption_layers):
        inputs = model.word_dim if layer == 0 else directions * D
        flop += directions * 6 * words * D * (inputs + D)
    return flop


def _captioner_flop(model: ModelConfig, rows: int, sizes: Sizes, words: float) -> float:
    captioner = model.captioner
    if not captioner.enabled:
        return 0.0
    directions = 2 if captioner.bidirectional else 1
    gates = 3 if captioner.cell == "gru" else 4
    inner, H = captioner.hidden_dim, directions * captioner.hidden_dim
    encoder = 2 * rows * model.joint_dim * inner + directions * 4 * gates * rows * inner**2 + 2 * rows * H**2
    step = 2 * H**2 + 4 * sizes.regions * H + 2 * gates * H * (captioner.word_dim + 2 * H)
    return encoder + words * (step + 2 * H * sizes.words)


def parts_of_a_step(part: Part) -> Figures:
    """Milliseconds of what a step at the paper's sizes has to contain, each alone."""
    device, small = part.device, part.small
    B, N, D = (4, 5, 16) if small else (128, 36, 2048)
    seconds = 0.05 if small else 0.5
    figures: Figures = {}
    gru = torch.nn.GRU(D, D, batch_first=True).to(device, torch.bfloat16)
    inputs = torch.randn(B, N, D, device=device, dtype=torch.bfloat16, requires_grad=True)

    def both() -> None:
        gru(inputs)[0].sum().backward()

    with torch.no_grad():
        figures["gru_forward_ms"] = 1e3 * seconds_of(lambda: gru(inputs), device, seconds)
    figures["gru_forward_and_backward_ms"] = 1e3 * seconds_of(both, device, seconds)
    products = 12 * B * N * D * D
    figures["gru_forward_tflop_per_second"] = products / figures["gru_forward_ms"] / 1e9
    # The paper's model has 126 million parameters.
    parameters = [torch.nn.Parameter(torch.randn(D, 8 * D, device=device)) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    config = make_config("f30k", Path(), SMALL if small else PAPER, device)
    optimizer = make_optimizer(dataclasses.replace(config.train), parameters)
    figures["adam_parameters"] = sum(parameter.numel() for parameter in parameters)
    figures["adam_ms"] = 1e3 * seconds_of(optimizer.step, device, seconds)
    clip = functools.partial(torch.nn.utils.clip_grad_norm_, parameters, 2.0)
    figures["gradient_clip_ms"] = 1e3 * seconds_of(clip, device, seconds)
    return figures | _copies(part, B * N * D, seconds)


def _copies(part: Part, numbers: int, seconds: float) -> Figures:
    """How fast a batch's features reach the device, from pinned memory and from other."""
    device = part.device
    figures: Figures = {}
    pageable = torch.zeros(numbers, dtype=torch.float16)
    kinds = {"pageable": pageable}
    if device.type == "cuda":
        kinds["pinned"] = pageable.pin_memory()
        figures["pinning_ms"] = 1e3 * seconds_of(pageable.pin_memory, device, seconds)
    for name, tensor in kinds.items():
        taken = seconds_of(functools.partial(tensor.to, device, non_blocking=True, copy=True), device, seconds)
        figures[f"copy_{name}_ms"] = 1e3 * taken
        figures[f"copy_{name}_gb_per_second"] = 2 * numbers / taken / 1e9
    return figures
