"""Draws the training curves of runs side by side: validation rsum and matching loss against steps.

python docs/plot_runs.py docs/results/vsrn.jsonl docs/results/mean-pooling.jsonl -o docs/images/flickr8k.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import tyro


def main(
    logs: tyro.conf.Positional[tuple[Path, ...]], *, output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
) -> None:
    """Draw the curves of several metrics.jsonl files into one picture.

    Args:
        logs: metrics.jsonl of each run, named after it.
        output: Picture to write; its suffix decides the format.
    """
    plt.rcParams["svg.hashsalt"] = "vsrn"  # the same curves give the same file
    figure, (recalls, losses) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for log in logs:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        draw(recalls, [(row["step"], row["validation"]["rsum"]) for row in rows if "validation" in row], log.stem)
        draw(losses, [(row["step"], row["matching_loss"]) for row in rows if "matching_loss" in row], log.stem)
    recalls.set(xlabel="step", ylabel="rsum on held-out images (of 600)", ylim=(0, None))
    losses.set(xlabel="step", ylabel="matching loss (sum over 128 pairs)", ylim=(0, None))
    for axes in (recalls, losses):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def draw(axes: Any, points: list[tuple[int, float]], name: str) -> None:
    """One curve."""
    axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 50 else None)


if __name__ == "__main__":
    tyro.cli(main)
