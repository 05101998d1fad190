"""Finished rows -> the tables of docs/results.md, between their markers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rows import COMBINATIONS, COMPARED, ORDER_SHOWN, ROWS

from vsrn.files import write_atomically
from vsrn.metrics import IntArray, Interval, Ranks, draw_images, percentile_interval, resampled_recalls, rsum_difference

BEGIN, END = "<!-- flickr8k -->", "<!-- /flickr8k -->"
TITLES = {row.name: row.title for row in (*ROWS, *COMBINATIONS)}
HEADER = (
    "| model | seeds | image-to-text R@1 | R@5 | R@10 | text-to-image R@1 | R@5 | R@10 | rsum | held-out rsum"
    " | parameters | training, CPU min | evaluation, CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def write_tables(results: Path, page: Path) -> None:
    """Write the rows and the paired differences into the page; each row's JSON keeps its command."""
    found = {name: seeds for name in ORDER_SHOWN if (seeds := read_seeds(results, name))}
    lines = [HEADER, *(table_row(name, seeds, read_ranks(results, name)) for name, seeds in found.items()), ""]
    lines += ["| difference in rsum | | 95 % over images |", "|---|---|---|", *differences(results, found), ""]
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(page, f"{before}{BEGIN}\n{chr(10).join(lines)}{END}{after}".encode())


def read_seeds(results: Path, name: str) -> list[dict[str, Any]]:
    """What is finished of a row, by seed."""
    paths = sorted(results.glob(f"{name}-[0-9].json"))
    return [json.loads(path.read_text()) for path in paths]


def table_row(name: str, seeds: list[dict[str, Any]], ranks: list[Ranks]) -> str:
    """One line: means over seeds, and the means' intervals over images."""
    cells = [TITLES[name], str(len(seeds))]
    intervals = intervals_of_mean(ranks)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            point = mean(seed["evaluation"][direction][f"recall_at_{k}"] for seed in seeds)
            interval = intervals[f"{direction}.recall_at_{k}"]
            cells.append(f"{point:.1f} [{interval.low:.1f}, {interval.high:.1f}]")
    rsums = [seed["evaluation"]["rsum"] for seed in seeds]
    cells.append(f"{mean(rsums):.1f}" + (f" ({', '.join(f'{rsum:.1f}' for rsum in rsums)})" if len(rsums) > 1 else ""))
    single = [max(rsum for _, rsum in seed["validation"][0]) for seed in seeds if len(seed["validation"]) == 1]
    cells.append(f"{mean(single):.1f}" if single and "train_cpu_seconds" in seeds[0] else "")
    cells.append(f"{seeds[0]['parameters'] / 1e6:.1f} M")
    training = [seed["train_cpu_seconds"] for seed in seeds if "train_cpu_seconds" in seed]
    cells.append(f"{mean(training) / 60:.0f}" if training else "")
    cells.append(f"{mean(seed['evaluation_cpu_seconds'] for seed in seeds):.0f}")
    return f"| {' | '.join(cells)} |"


def intervals_of_mean(seeds: list[Ranks]) -> dict[str, Interval]:
    """95% intervals over images of each recall's mean over seeds: every sample draws the same images for all seeds."""
    draws = draw_images(len(seeds[0].image_to_text), 2000, np.random.default_rng(0))
    drawn = [resampled_recalls(ranks, five_each(ranks), draws) for ranks in seeds]
    return {name: percentile_interval(np.mean([each[name] for each in drawn], axis=0)) for name in drawn[0]}


def differences(results: Path, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Paired bootstraps of the pairs that are finished."""
    lines = []
    for ours, theirs in COMPARED:
        if ours in found and theirs in found:
            sides = [read_ranks(results, name) for name in (ours, theirs)]
            owners = five_each(sides[0][0])
            difference, interval = rsum_difference(*sides, owners, samples=10_000)
            title = f"{TITLES[ours]} − {TITLES[theirs]}"
            lines.append(f"| {title} | {difference:+.1f} | [{interval.low:+.1f}, {interval.high:+.1f}] |")
    return lines


def read_ranks(results: Path, name: str) -> list[Ranks]:
    """Ranks of every seed of a row."""
    ranks = []
    for path in sorted(results.glob(f"{name}-[0-9].npz")):
        with np.load(path) as arrays:
            ranks.append(Ranks(arrays["image_to_text"], arrays["text_to_image"]))
    return ranks


def five_each(ranks: Ranks) -> IntArray:
    """Flickr8K has five captions an image, in the images' order."""
    assert len(ranks.text_to_image) == 5 * len(ranks.image_to_text)
    return np.repeat(np.arange(len(ranks.image_to_text)), 5)
