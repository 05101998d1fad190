"""Part 1: whether the device computes what the CPU does.

Recordings within the tests' tolerances, losses and gradients against float64, bf16 against float32, runs that are cut
or repeated, `torchrun` and NCCL, and extraction.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from material import SMALL as SMALL_SIZES
from material import captioner_of, exact, make_config, make_it_reason, make_vocabulary, write_learnable_store
from recording import Figures, Part
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

import golden
import vsrn
from golden import Check, apart, judged, norms_apart
from vsrn.config import Config, LossConfig, ModelConfig, ScanConfig, config_fields, config_to_toml
from vsrn.metrics import RetrievalMetrics
from vsrn.model.base import Batch
from vsrn.model.gru import pad_tokens
from vsrn.model.losses import TripletLoss
from vsrn.model.registry import build_model
from vsrn.model.saved import WEIGHTS_FILE
from vsrn.training.checkpoint import STATE_FILE, Progress, read_log
from vsrn.training.distributed import GlobalBatchNorm

# Relative to the norms of what is compared. Float32 on a CPU comes to a tenth of these.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3


def measure(part: Part) -> None:
    """All of it, the most telling first."""
    device = part.device

    def extracted(name: str) -> Figures:
        # Photos need more packages than the rest.
        figures: Figures = getattr(importlib.import_module("extracting"), name)(part)
        return figures

    part.measure("recordings of VSRN", lambda: golden.vsrn_recordings(device), needs=5)
    part.measure("recordings of SCAN", lambda: golden.scan_recording(device), needs=3)
    part.measure("recordings of pooling", lambda: golden.pooling_recording(device), needs=3)
    part.measure("loss and gradients", lambda: gradients(device, small=part.small), needs=15)
    part.measure("cut run bf16", lambda: cut_run(part, "bf16", 0.0), needs=12)
    part.measure("same seed twice", lambda: same_seed(part), needs=12)
    if "train.cuda_graphs" in config_fields():
        part.measure("recorded steps fp32", lambda: recorded_steps(part, "fp32"), needs=8)
        part.measure("recorded steps", lambda: recorded_steps(part, "bf16"), needs=8)
    part.measure("bf16 drift", lambda: drift(part), needs=15, limit=90)
    part.measure("cut run dropping regions", lambda: cut_run(part, "bf16", 0.2), needs=12)
    part.measure("grid extraction", lambda: extracted("grid"), needs=5)
    part.measure("torchrun", lambda: torchrun(part), needs=20, limit=75)
    part.measure("collectives", lambda: collectives(part), needs=5, limit=40)
    part.measure("cut run fp32", lambda: cut_run(part, "fp32", 0.0), needs=12)
    part.measure("bottom-up extraction", lambda: extracted("bottom_up"), needs=12)


# Losses and gradients.


def model_configs(small: bool) -> dict[str, ModelConfig]:
    """Every kind of model whose gradients are compared."""
    dim = 16 if small else 128
    sizes: dict[str, Any] = {"feature_dim": 2 * dim, "joint_dim": dim, "word_dim": dim // 2}
    vsrn_config = ModelConfig(
        **sizes, normalisation="flickr30k", captioner=captioner_of("gru", bidirectional=False, hidden_dim=dim)
    )

    def captioned(cell: str, *, bidirectional: bool) -> ModelConfig:
        captioner = captioner_of(cell, bidirectional=bidirectional, hidden_dim=dim)
        return dataclasses.replace(vsrn_config, captioner=captioner)

    pooled: dict[str, Any] = {"reasoning_layers": 0, "aggregator": "gpo", "normalisation": "none"}
    captions: dict[str, Any] = {"caption_aggregator": "gpo", "caption_bidirectional": True}
    off = dataclasses.replace(vsrn_config.captioner, enabled=False)
    i2t: Any = {"direction": "image_to_text", "inverse_temperature": 4.0, "logsumexp_factor": 5.0}
    return {
        "VSRN, GRU captioner": vsrn_config,
        "VSRN, LSTM captioner": captioned("lstm", bidirectional=False),
        "VSRN, bidirectional GRU captioner": captioned("gru", bidirectional=True),
        "VSRN, bidirectional LSTM captioner": captioned("lstm", bidirectional=True),
        "VSRN, COCO": dataclasses.replace(vsrn_config, normalisation="coco"),
        "VSE++": ModelConfig(kind="vsepp", **sizes),
        "VSE-infinity": ModelConfig(**sizes, **pooled, **captions, captioner=off),
        "SCAN t2i": ModelConfig(kind="scan", **sizes),
        "SCAN i2t": ModelConfig(kind="scan", **sizes, scan=ScanConfig(**i2t)),
    }


def gradients(device: torch.device, *, small: bool) -> Figures:
    """Loss and every gradient of a step, float32 on the device against float64 on the CPU."""
    checks: list[Check] = []
    with exact():
        for name, config in model_configs(small).items():
            torch.manual_seed(0)
            model = build_model(Config(model=config), make_vocabulary(50 if small else 500))
            make_it_reason(model)
            # A step that may be recorded has its captions' lengths on the GPU too.
            places = ["cpu", str(device)] if getattr(model, "takes_lengths_anywhere", False) else ["cpu"]
            for kind in ("all regions", "padded regions"):
                batch = random_batch(config, 8 if small else 48, counted=kind == "padded regions", words=50)
                theirs = losses_and_gradients(model, batch, torch.device("cpu"), torch.float64)
                for place in places:
                    given = batch._replace(lengths=batch.lengths.to(place))
                    ours = losses_and_gradients(model, given, device, torch.float32)
                    where = f"{name}, {kind}, lengths on {place}"
                    checks += [(f"{where}: {what}", *rest) for what, *rest in _compared(ours, theirs)]  # type: ignore[misc]
    return judged(checks)


def random_batch(config: ModelConfig, pairs: int, *, counted: bool, words: int) -> Batch:
    """Float32 regions, captions and lengths, and counts of real regions or None."""
    generator = np.random.default_rng(3)
    regions, features = 12, config.feature_dim or 1
    values = torch.from_numpy(generator.random((pairs, regions, features), dtype=np.float32))
    captions = [generator.integers(4, words, size) for size in generator.integers(4, 15, pairs)]
    tokens, lengths = pad_tokens(sorted(captions, key=len, reverse=True))
    counts = torch.from_numpy(generator.integers(3, regions + 1, pairs)) if counted else None
    if counts is not None:
        values[torch.arange(regions) >= counts[:, None]] = 0
    return Batch(values, tokens, lengths, counts)


def losses_and_gradients(
    model: torch.nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The losses of a batch and the gradient of every parameter, by a copy of the model."""
    copied = copy.deepcopy(model).to(device, dtype).train()
    counts = None if batch.counts is None else batch.counts.to(device)
    sent = Batch(batch.features.to(device, dtype), batch.tokens.to(device), batch.lengths, counts)
    losses = copied(sent, TripletLoss(LossConfig()))
    losses.joint.backward()
    found = {name: p.grad for name, p in copied.named_parameters() if p.grad is not None}
    return {"matching loss": losses.matching, "generation loss": losses.generation} | found


def _compared(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> Iterator[Check]:
    assert ours.keys() == theirs.keys()
    norms = {name: float(tensor.detach().norm()) for name, tensor in theirs.items()}
    largest = max(norms.values())
    for name, tensor in theirs.items():
        difference = float((ours[name].detach().cpu().double() - tensor.detach()).norm())
        if name.endswith(" loss"):
            yield name, difference, LOSS_TOLERANCE * max(norms[name], 1e-3)
        else:
            # A bias before BatchNorm has the gradient 0 in exact arithmetic; what rounding leaves is small.
            floor = largest if name.endswith("w_r.bias") else 1e-3 * largest
            yield f"gradient of {name}", difference, GRADIENT_TOLERANCE * max(norms[name], floor)


# Whole runs.


class Until:
    """A reporter that asks a run to stop after a step, as Ctrl-C does."""

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def stepped(self, progress: Progress, _row: dict[str, Any] | None, /) -> None:
        """Ask for the stop."""
        if progress.step == self.step:
            signal.raise_signal(signal.SIGINT)

    def validated(self, _progress: Progress, _metrics: RetrievalMetrics) -> None:
        """Say nothing."""

    def noted(self, _note: str, /) -> None:
        """Say nothing."""


@functools.cache
def learnable(folder: Path, small: bool) -> Path:
    """The store that these runs learn from."""
    images, regions, features = (32, 5, 16) if small else (256, 36, 512)
    return write_learnable_store(folder / "learnable", images, regions, features)


def run_config(part: Part, steps: int, **fields: Any) -> Config:
    """A run of so many steps with captioner and dropout, of a quarter of the paper's sizes."""
    store = learnable(part.scratch, part.small)
    sizes: dict[str, Any] = {"model__joint_dim": 512, "model__captioner__hidden_dim": 256} if not part.small else {}
    # Validations in between, since they use the model that the steps were recorded with.
    wanted = {
        "train__max_steps": steps,
        "train__validate_every": 8,
        "train__learning_rate": 1e-3,
        "train__learning_rate_drop": [],
        **sizes,
    }
    base = SMALL_SIZES if part.small else dataclasses.replace(SMALL_SIZES, model={}, batch=128)
    return make_config("f30k", store, base, part.device, **(wanted | fields))


def train(config: Config, folder: Path, *, resume: bool = False, stop: int = -1) -> None:
    """Train, or go on."""
    vsrn.train(config, output=folder, resume=resume, reporter=Until(stop))


def difference_of_runs(one: Path, other: Path) -> Figures:
    """Whether two runs ended with the same checkpoint and best weights bit for bit, and else how far apart.

    largest_relative_difference  of a floating-point tensor of the model, by `norms_apart`; not of the optimiser's
                                 moments and counters nor of random states, which have other scales
    weights_that_differ_most     the twelve largest of these
    """
    differing, shares = 0, {}
    for name in (STATE_FILE, Path(WEIGHTS_FILE)):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])]:
            differing += 1
            if ours[key].is_floating_point() and not key.startswith(("optimizer.", "random.")):
                shares[f"{name.name}: {key}"] = norms_apart(ours[key], theirs[key])
    rows = [[row.get("loss") for row in read_log(run) if "loss" in row] for run in (one, other)]
    return {
        "bit_for_bit": not differing,
        "tensors_that_differ": differing,
        "largest_relative_difference": max(shares.values(), default=0.0),
        "weights_that_differ_most": dict(sorted(shares.items(), key=lambda item: -item[1])[:12]),
        "last_losses": [row[-1] for row in rows],
    }


def cut_run(part: Part, precision: str, drop_regions: float) -> Figures:
    """A run of 30 steps that is stopped after 13 and resumed, against one that is not."""
    steps, cut = (12, 5) if part.small else (30, 13)
    config = run_config(part, steps, train__precision=precision, train__drop_regions=drop_regions)
    folder = part.scratch / f"cut-{precision}-{drop_regions}"
    train(config, folder / "whole")
    train(config, folder / "cut", stop=cut)
    train(config, folder / "cut", resume=True)
    return difference_of_runs(folder / "whole", folder / "cut")


def same_seed(part: Part) -> Figures:
    """Two runs of one seed; and which operations torch knows to be not deterministic, by its own warnings."""
    steps = 12 if part.small else 30
    config = run_config(part, steps, train__precision="bf16")
    folder = part.scratch / "seed"
    train(config, folder / "one")
    train(config, folder / "other")
    figures = difference_of_runs(folder / "one", folder / "other")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for name in ("strict-one", "strict-other"):
                train(config, folder / name)
    finally:
        torch.use_deterministic_algorithms(False)
    strict = difference_of_runs(folder / "strict-one", folder / "strict-other")
    told = {str(warning.message).split(". ")[0][:200] for warning in seen if "determin" in str(warning.message)}
    return figures | {
        "bit_for_bit_with_deterministic_algorithms": strict["bit_for_bit"],
        "not_deterministic": sorted(told),
    }


def recorded_steps(part: Part, precision: str) -> Figures:
    """A run whose steps are recorded as CUDA graphs and played again, against one whose steps are not, no dropout."""
    folder = part.scratch / f"recorded {precision}"
    for recorded in (True, False):
        fields = {"train__precision": precision, "train__cuda_graphs": recorded, "model__captioner__dropout": 0.0}
        with exact():
            train(run_config(part, 12 if part.small else 30, **fields), folder / str(recorded))
    return difference_of_runs(folder / "True", folder / "False")


def drift(part: Part) -> Figures:
    """200 steps in bf16 and in float32 of one seed without dropout: losses along the way, embeddings at the end."""
    steps = 20 if part.small else 200
    folder, losses, embedded = part.scratch / "drift", {}, {}
    store = learnable(part.scratch, part.small)
    features = np.load(store / "dev_ims.npy")
    captions = (store / "dev_caps.txt").read_text(encoding="utf-8").splitlines()
    for precision in ("fp32", "bf16"):
        fields: dict[str, Any] = {"train__precision": precision, "model__captioner__dropout": 0.0}
        with exact():
            train(run_config(part, steps, **fields, loss__negatives="all"), folder / precision)
            losses[precision] = [row["loss"] for row in read_log(folder / precision) if "loss" in row]
            encoder = vsrn.load(folder / precision, device=str(part.device))
            embedded[precision] = encoder.encode_regions(features), encoder.encode_captions(captions)
    cosines = [(ours * theirs).sum(axis=1) for ours, theirs in zip(embedded["bf16"], embedded["fp32"], strict=True)]
    apart_by = [abs(ours / theirs - 1) for ours, theirs in zip(losses["bf16"], losses["fp32"], strict=True)]
    return {
        "largest_relative_loss_difference": max(apart_by),
        "first_loss": losses["fp32"][0],
        "last_loss_fp32": losses["fp32"][-1],
        "last_loss_bf16": losses["bf16"][-1],
        "image_cosine_least": float(cosines[0].min()),
        "image_cosine_mean": float(cosines[0].mean()),
        "caption_cosine_least": float(cosines[1].min()),
        "caption_cosine_mean": float(cosines[1].mean()),
        "losses": losses,
    }


# Several processes.


def torchrun(part: Part) -> Figures:
    """`torchrun --nproc-per-node 1 -m vsrn train`: with one process vsrn joins no group, so NCCL is started by none."""
    config = run_config(part, 6, train__precision="bf16")
    path = part.scratch / "torchrun.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [*launched, "--nproc-per-node=1", "-m", "vsrn", "train", str(path), "-o", str(part.scratch / "torchrun")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))
    steps = (
        [row["step"] for row in read_log(part.scratch / "torchrun") if "validation" in row]
        if not done.returncode
        else []
    )
    return {
        "passed": done.returncode == 0 and steps == [6],
        "status": done.returncode,
        "process_group": "none for one process",
        "said": done.stderr.strip().splitlines()[-12:],
    }


def collectives(part: Part) -> Figures:
    """A group of one process, NCCL on a GPU: what vsrn asks of it, against the same without a group."""
    device = part.device
    group = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(group, init_method=f"file://{part.scratch / 'group'}", rank=0, world_size=1)
    try:
        with exact():
            checks = [*_gathering(device), *_batch_norm(device), *_shared_gradients(device)]
    finally:
        dist.destroy_process_group()
    backend = "nccl " + nccl_version() if device.type == "cuda" else "gloo"
    return judged(checks) | {"backend": backend}


def nccl_version() -> str:
    """The version of NCCL that torch has."""
    found: tuple[int, ...] = torch.cuda.nccl.version()
    return ".".join(map(str, found))


def _gathering(device: torch.device) -> Iterator[Check]:
    rows = torch.randn(64, 128, device=device)
    found = [torch.empty_like(rows)]
    dist.all_gather(found, rows)
    yield "all_gather", apart(found[0], rows), 1e-12
    total = rows.clone()
    dist.all_reduce(total)
    yield "all_reduce", apart(total, rows), 1e-12
    states = [torch.empty_like(torch.get_rng_state())]
    dist.all_gather(states, torch.get_rng_state())
    yield "all_gather on the CPU", apart(states[0], torch.get_rng_state()), 1e-12


def _batch_norm(device: torch.device) -> Iterator[Check]:
    values = torch.randn(32, 64, 36, device=device)
    results = []
    for kind in (torch.nn.BatchNorm1d, GlobalBatchNorm):
        norm, inputs = kind(64).to(device), values.clone().requires_grad_()
        outputs = norm(inputs)
        (outputs**3).sum().backward()
        assert inputs.grad is not None
        assert norm.running_var is not None
        results.append((outputs, inputs.grad, norm.running_var))
    for name, one, other in zip(("outputs", "gradient", "variance"), *results, strict=True):
        yield f"BatchNorm over processes: {name}", apart(one, other), 1e-4 * float(one.detach().abs().max())


def _shared_gradients(device: torch.device) -> Iterator[Check]:
    config = model_configs(small=True)["VSRN, GRU captioner"]
    torch.manual_seed(0)
    model = build_model(Config(model=config), make_vocabulary(50)).to(device).train()
    batch = random_batch(config, 8, counted=False, words=50)
    sent = Batch(batch.features.to(device), batch.tokens.to(device), batch.lengths, None)
    found: list[dict[str, torch.Tensor]] = []
    wrap: list[Callable[[torch.nn.Module], torch.nn.Module]] = [lambda module: module, DistributedDataParallel]
    for wrapped in wrap:
        model.zero_grad(set_to_none=True)
        wrapped(model)(sent, TripletLoss(LossConfig())).joint.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        yield f"DDP: gradient of {name}", apart(found[1][name], gradient), 1e-5 * largest
