"""Results -> the tables of docs/results.md, between their markers."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
from results import Result, Results
from rows import BOTH, BY_NAME, COMBINATIONS, COMPARED, OBJECTS, ROWS, SHOWN, WINDOWS

from vsrn.files import write_atomically
from vsrn.metrics import IntArray, Interval, Ranks, draw_images, percentile_interval, resampled_recalls, rsum_difference

BEGIN, END = "<!-- flickr8k -->", "<!-- /flickr8k -->"
TITLES = {row.name: row.title for row in (*ROWS, *COMBINATIONS)}
HEADINGS = {WINDOWS: "Windows of the photo", OBJECTS: "Objects of a detector"}
HEADER = (
    "| model | recipe | seeds | image-to-text R@1 | R@5 | R@10 | text-to-image R@1 | R@5 | R@10 | rsum | held-out rsum"
    " | best epoch | parameters | training, s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def write_tables(results: Results, page: Path) -> None:
    """Write rows and paired differences of both kinds of regions into the page."""
    lines: list[str] = []
    for regions in BOTH:
        found = {name: lines_of for name in SHOWN if (lines_of := results.seeds(regions, name))}
        if not found:
            continue
        lines += [f"### {HEADINGS[regions]}", "", HEADER]
        lines += [table_row(results, regions, name, seeds) for name, seeds in found.items()]
        lines += ["", "| difference in rsum | | 95 % over images |", "|---|---|---|"]
        lines += [*differences(results, found), ""]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(page, f"{before}{BEGIN}\n{chr(10).join(lines)}{END}{after}".encode())


def table_row(results: Results, regions: str, name: str, seeds: list[Result]) -> str:
    """One line: means over seeds, and the means' intervals."""
    cells = [TITLES[name], recipe(results, regions, name, seeds[0]), str(len(seeds))]
    intervals = intervals_of_mean([results.ranks(seed) for seed in seeds])
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            point = mean(seed["val"][direction][f"recall_at_{k}"] for seed in seeds)
            interval = intervals[f"{direction}.recall_at_{k}"]
            cells.append(f"{point:.1f} [{interval.low:.1f}, {interval.high:.1f}]")
    cells += [with_each([seed[split]["rsum"] for seed in seeds]) for split in ("val", "held_out")]
    trained = "parameters" in seeds[0]
    cells.append("/".join(str(seed["best_epoch"]) for seed in seeds) if trained else "")
    cells.append(f"{seeds[0]['parameters'] / 1e6:.1f} M" if trained else "")
    cells.append(f"{mean(seed['seconds'] for seed in seeds):.0f}" if trained else "")
    return f"| {' | '.join(cells)} |"


def recipe(results: Results, regions: str, name: str, line: Result) -> str:
    """The trial that was chosen, of how many that ended, and whether it was cut short."""
    if "trial" not in line:
        return ""
    tried, all_trials = len(results.trials(regions, name)), len(BY_NAME[name].trials)
    cut = "" if line["finished"] else f", cut after {line['epochs']} epochs"
    return line["trial"] + (f", of {tried}" if all_trials > 1 else "") + cut


def with_each(values: list[float]) -> str:
    """The mean, and the values where there are several."""
    return f"{mean(values):.1f}" + (f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else "")


def intervals_of_mean(seeds: list[Ranks]) -> dict[str, Interval]:
    """95% intervals over images of each recall's mean over seeds: every sample draws the same images for all seeds."""
    draws = draw_images(len(seeds[0].image_to_text), 2000, np.random.default_rng(0))
    drawn = [resampled_recalls(ranks, five_each(ranks), draws) for ranks in seeds]
    return {name: percentile_interval(np.mean([each[name] for each in drawn], axis=0)) for name in drawn[0]}


def differences(results: Results, found: dict[str, list[Result]]) -> list[str]:
    """Paired bootstraps of the pairs that are there, over as many seeds as both sides have."""
    lines = []
    for ours, theirs in COMPARED:
        if ours not in found or theirs not in found:
            continue
        number = min(len(found[ours]), len(found[theirs]))
        sides = [[results.ranks(line) for line in found[name][:number]] for name in (ours, theirs)]
        difference, interval = rsum_difference(*sides, five_each(sides[0][0]), samples=10_000)
        title = f"{TITLES[ours]} − {TITLES[theirs]}"
        lines.append(f"| {title} | {difference:+.1f} | [{interval.low:+.1f}, {interval.high:+.1f}] |")
    return lines


def five_each(ranks: Ranks) -> IntArray:
    """Flickr8K has five captions an image, in the images' order."""
    assert len(ranks.text_to_image) == 5 * len(ranks.image_to_text)
    return np.repeat(np.arange(len(ranks.image_to_text)), 5)
