"""A profile of some steps: the 25 heaviest operations as text, and how the time divides among kinds of work."""

from __future__ import annotations

import collections
import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recording import Figures, synchronize
from torch.profiler import ProfilerActivity, profile

# Kinds of work by the names of kernels (of operators on a processor); the first that fits counts.
KINDS = {
    "optimizer": r"adam|multi_tensor|foreach|lpnorm|optimizer|clip_grad",
    "recurrences": r"rnn|gru|lstm|recurren",
    "products": r"gemm|gemv|cutlass|xmma|nvjet|cublas|splitk|aten::(add|b|badd)?mm|mkldnn|onednn|linear",
    "copies": r"memcpy|memset|copy|catarray|aten::cat|to_copy|aten::to\b",
    "norms_and_reductions": r"batch_?norm|bn_|softmax|reduce|norm|nll",
}


@contextlib.contextmanager
def profiled(device: torch.device, path: Path, figures: Figures) -> Iterator[None]:
    """Profile what happens within; the table goes to `path`, the shares of the time into `figures`."""
    on_gpu = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiler:
        began = time.perf_counter()
        yield
        synchronize(device)
        took = time.perf_counter() - began
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
    path.write_text(f"{took:.4f} s\n\n{table}\n", encoding="utf-8")
    shares = _shares_on_gpu(profiler, took) if on_gpu else _shares_on_processor(profiler)
    figures["profile"] = path.name
    figures["shares"] = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    figures["share_by_kind"] = shares


def kind_of(name: str) -> str:
    """The kind of work that a kernel or an operator does, by its name.

    >>> kind_of("sm90_xmma_gemm_bf16"), kind_of("RNN_blockPersist_fp_GRU"), kind_of("vectorized_elementwise_kernel")
    ('products', 'recurrences', 'elementwise')
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "elementwise")


def _shares_on_gpu(profiler: Any, took: float) -> dict[str, float]:
    """Of the time between first and last, the share of each kind of kernel, and of what no kernel fills."""
    spent: collections.Counter[str] = collections.Counter()
    spans = []
    for event in profiler.events():
        if event.device_type.name != "CUDA" or _is_a_label(event):
            continue
        spent[kind_of(event.name)] += event.time_range.elapsed_us()
        spans.append((event.time_range.start, event.time_range.end))
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    shares = {kind: microseconds / 1e6 / took for kind, microseconds in spent.most_common()}
    return shares | {"gap": max(0.0, 1 - busy / 1e6 / took)}


def _is_a_label(event: Any) -> bool:
    """Whether an event of the GPU's line is a name around kernels rather than a kernel."""
    return bool(getattr(event, "is_user_annotation", False)) or "#" in event.name or event.name.startswith("Profiler")


def _shares_on_processor(profiler: Any) -> dict[str, float]:
    """The share of each kind of operator in the time of all."""
    spent: collections.Counter[str] = collections.Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(spent.values()) or 1.0
    return {kind: microseconds / total for kind, microseconds in spent.most_common()}
