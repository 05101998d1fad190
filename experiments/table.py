"""Results -> the tables of docs/results.md, between their markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from results import Result, Results, finished_or_all
from rows import (
    ANSWERS,
    BOTH,
    BY_NAME,
    COMBINATIONS,
    COMPARED,
    COMPARED_BY_TRIAL,
    OBJECTS,
    ROWS,
    SHOWN,
    TRIALS,
    WINDOWS,
)

from vsrn.files import write_atomically
from vsrn.metrics import FloatArray, IntArray, Interval, Ranks, draw_images, percentile_interval, resampled_recalls

BEGIN, END = "<!-- flickr8k -->", "<!-- /flickr8k -->"
TITLES = {row.name: row.title for row in ROWS} | {row.name: row.title for row in COMBINATIONS}
HEADINGS = {WINDOWS: "Windows of the photo", OBJECTS: "Objects of a detector"}
HEADER = (
    "| model | recipe | seeds | image-to-text R@1 | R@5 | R@10 | text-to-image R@1 | R@5 | R@10 | rsum | held-out rsum"
    " | best epoch | parameters | training, s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def write_tables(results: Results, page: Path) -> None:
    """Write rows and paired differences of both kinds of regions into the page."""
    rows = {
        regions: {name: seeds for name in SHOWN if (seeds := results.seeds(regions, name))}
        for regions in BOTH
        if any(results.seeds(regions, name) for name in SHOWN)
    }
    lines = [*answers(results, rows), ""]
    for regions, found in rows.items():
        lines += [f"### {HEADINGS[regions]}", "", HEADER]
        lines += [table_row(results, regions, name, seeds) for name, seeds in found.items()]
        lines += ["", "| difference in rsum | seeds | | 95 % over images |", "|---|---|---|---|"]
        lines += [*differences(results, found), "", *by_trial(results, regions), ""]
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(page, f"{before}{BEGIN}\n{chr(10).join(lines)}{END}{after}".encode())


def answers(results: Results, rows: dict[str, dict[str, list[Result]]]) -> list[str]:
    """What each kind of regions says of each claim, by the interval of its pair."""
    lines = [f"| claim, by difference in rsum | {' | '.join(rows)} |", f"|---|{'---|' * len(rows)}"]
    for claim, ours, theirs in ANSWERS:
        cells = [answer(results, found.get(ours, []), found.get(theirs, [])) for found in rows.values()]
        if any(cells):
            lines.append(f"| {claim} | {' | '.join(cells)} |")
    return lines


def answer(results: Results, ours: list[Result], theirs: list[Result]) -> str:
    """Yes, the reverse, or no difference where the interval spans 0; empty where a side is lacking or was cut."""
    number = comparable(ours, theirs)
    if number == 0:
        return ""
    apart, interval = difference(results, ours, theirs)
    verdict = "yes" if interval.low > 0 else "**the reverse**" if interval.high < 0 else "no difference found"
    return f"{verdict}: {apart:+.1f} {bounds(interval)}, {number} seed{'s' if number > 1 else ''}"


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
    cells.append("/".join(str(seed["best_epoch"] or "?") for seed in seeds) if trained else "")
    cells.append(f"{seeds[0]['parameters'] / 1e6:.1f} M" if trained else "")
    seconds = [seed["seconds"] for seed in seeds if seed.get("seconds") is not None]
    cells.append(f"{mean(seconds):.0f}" if seconds else "?" if trained else "")
    return f"| {' | '.join(cells)} |"


def recipe(results: Results, regions: str, name: str, line: Result) -> str:
    """The trial that was chosen, of how many, and whether it was cut short; of a combination, its parts' trials."""
    if "trial" not in line:
        parts = [results.lines[key] for key in line["settings"]["parts"]]
        return "; ".join(part["trial"] + cut_short(part) for part in parts)
    tried, all_trials = len(finished_or_all(results.trials(regions, name))), len(BY_NAME[name].trials)
    return line["trial"] + (f", of {tried}" if all_trials > 1 else "") + cut_short(line)


def cut_short(line: Result) -> str:
    """After how many epochs a run was cut; nothing where it finished."""
    return "" if line["finished"] else f", cut after {line['epochs']} epochs"


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
        sides = found.get(ours, []), found.get(theirs, [])
        number = comparable(*sides)
        if number:
            apart, interval = difference(results, *sides)
            title = f"{TITLES[ours]} − {TITLES[theirs]}"
            lines.append(f"| {title} | {number} | {apart:+.1f} | {bounds(interval)} |")
    return lines


def comparable(ours: list[Result], theirs: list[Result]) -> int:
    """How many seeds both sides have; 0 where a run was cut, since the difference would be that of the epochs."""
    number = min(len(ours), len(theirs))
    return number if all(line["finished"] for line in (*ours[:number], *theirs[:number])) else 0


def difference(results: Results, ours: list[Result], theirs: list[Result]) -> tuple[float, Interval]:
    """How much rsum is apart between the first runs of two rows, as many of each, and the interval."""
    number = comparable(ours, theirs)
    first, second = ([results.ranks(line) for line in side[:number]] for side in (ours, theirs))
    return rsum_difference(first, second, five_each(first[0]), samples=10_000)


def rsum_difference(
    ours: Sequence[Ranks], theirs: Sequence[Ranks], image_of_caption: IntArray, *, samples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """How far one kind of model's rsum is ahead of another's on the same split: the difference, and its 95% interval.

    ours, theirs  ranks of one or more runs (seeds) of each kind; a kind's rsum is the mean of its runs'

    The bootstrap is paired: every sample draws the same images, with their captions, for both sides. It
    speaks of other images, not of other seeds.
    """

    def rsums(runs: Sequence[Ranks], draws: IntArray) -> FloatArray:
        recalls = [resampled_recalls(ranks, image_of_caption, draws) for ranks in runs]
        return np.mean([np.sum(list(run.values()), axis=0) for run in recalls], axis=0)

    num_images = len(ours[0].image_to_text)
    as_it_is = np.ones((1, num_images), dtype=np.int64)
    draws = draw_images(num_images, samples, np.random.default_rng(seed))
    difference = rsums(ours, as_it_is) - rsums(theirs, as_it_is)
    return float(difference[0]), percentile_interval(rsums(ours, draws) - rsums(theirs, draws))


def bounds(interval: Interval) -> str:
    """Both ends, with their signs."""
    return f"[{interval.low:+.1f}, {interval.high:+.1f}]"


def by_trial(results: Results, regions: str) -> list[str]:
    """Tables of rsum on val by recipe, of the rows that more than one was tried on, and of pairs of them."""
    trials = {
        row.name: found
        for row in ROWS
        if len(found := {line["trial"]: line for line in results.trials(regions, row.name)}) > 1
    }
    names = [name for name in SHOWN if name in trials]
    heading = f"{' | '.join(TRIALS)} |\n|---|{'---|' * len(TRIALS)}"
    lines = [f"| rsum by recipe, seed 0 | {heading}"] if names else []
    for name in names:
        cells = [f"{line['val']['rsum']:.1f}{cut_short(line)}" if line else "" for line in of_each(trials[name])]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    pairs = [pair for pair in COMPARED_BY_TRIAL if all(name in trials for name in pair)]
    lines += ["", f"| difference in rsum by recipe, seed 0 | {heading}"] if pairs else []
    for ours, theirs in pairs:
        cells = []
        for sides in zip(of_each(trials[ours]), of_each(trials[theirs]), strict=True):
            one, other = ([line] if line else [] for line in sides)
            apart = difference(results, one, other) if comparable(one, other) else None
            cells.append(f"{apart[0]:+.1f} {bounds(apart[1])}" if apart else "")
        lines.append(f"| {TITLES[ours]} − {TITLES[theirs]} | {' | '.join(cells)} |")
    return lines


def of_each(lines: dict[str, Result]) -> list[Result | None]:
    """The line of each trial, None where there is none."""
    return [lines.get(trial) for trial in TRIALS]


def five_each(ranks: Ranks) -> IntArray:
    """Flickr8K has five captions an image, in the images' order."""
    assert len(ranks.text_to_image) == 5 * len(ranks.image_to_text)
    return np.repeat(np.arange(len(ranks.image_to_text)), 5)
