"""Both sides of a claim, interleaved in one process, and what is kept of it.

A machine's speed drifts, so only ratios of neighbouring runs mean anything: every round runs one side, then the
other, and the ratio is taken within the round.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is: the median over rounds, and its spread."""

    median: float
    low: float
    high: float
    ours_seconds: float
    theirs_seconds: float


def interleave(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 5, *, warm_up: bool = True) -> Ratio:
    """Time both sides in turn. The first round is not counted where `warm_up`."""
    pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(rounds + warm_up)][int(warm_up) :]
    ratios = [slow / fast for slow, fast in pairs]
    return Ratio(
        median(ratios), min(ratios), max(ratios), median(fast for _, fast in pairs), median(slow for slow, _ in pairs)
    )


class CountedProducts(TorchDispatchMode):
    """Counts the floating-point operations of matrix products; torch's own counter adds hooks, which vsrn heeds."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it if it is a product."""
        named = kwargs or {}
        if func._overloadpacket in flop_registry:
            result = func(*args, **named)
            self.flop += flop_registry[func._overloadpacket](*args, **named, out_val=result)
            return result
        with self:
            # In inference mode `linear` and `matmul` arrive whole.
            parts = func.decompose(*args, **named)
        return func(*args, **named) if parts is NotImplemented else parts


def share_of_products(ours: Callable[[], Any], dtype: torch.dtype, rounds: int = 3) -> str:
    """How much of the time of `ours` its matrix products would take by themselves, in words.

    The products are counted while it runs once; as many operations are then timed in products that are large enough to
    run at the processor's own speed, (4608, 512) by (512, 1536), in turn with it.
    """
    with CountedProducts() as counted:
        ours()
    flop = counted.flop
    left, right = torch.randn(4608, 512).to(dtype), torch.randn(512, 1536).to(dtype)
    times = max(1, round(flop / (2 * 4608 * 512 * 1536)))

    @torch.inference_mode()
    def products() -> None:
        for _ in range(times):
            left @ right

    ratio = interleave(products, ours, rounds)
    rate = flop / 1e9 / ratio.ours_seconds
    return f"{1 / ratio.median:.0%} of its time is that of its {flop / 1e9:.0f} GFLOP of bare products ({rate:.0f}/s)"


def _seconds(side: Callable[[], Any]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def record(claim: str, *, target: str, measured: str, reached: bool, checked: str, **numbers: Any) -> None:
    """Print a claim's outcome and keep it in `results/`, with the command and the machine.

    target    what was to be reached, in words
    measured  what was, in words
    checked   how both sides were shown to compute the same thing
    """
    print(f"{claim}: {measured} (target {target}{'' if reached else ', NOT reached'}); {checked}")
    content = {
        "claim": claim,
        "target": target,
        "measured": measured,
        "reached": reached,
        "checked": checked,
        "command": shlex.join(["python", *_from_root(sys.argv)]),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__.split('+')[0]}",
        **{name: asdict(value) if isinstance(value, Ratio) else value for name, value in numbers.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", claim.lower()).strip("-")
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def record_ratio(claim: str, ratio: Ratio, target: float, checked: str, **numbers: Any) -> None:
    """Record a claim of the form "so many times faster"."""
    record(
        claim,
        target=f"{target:g}x",
        measured=f"{ratio.median:.1f}x [{ratio.low:.1f}-{ratio.high:.1f}]",
        reached=ratio.median >= target,
        checked=checked,
        ratio=ratio,
        **numbers,
    )


def _from_root(arguments: list[str]) -> list[str]:
    return [f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]]
