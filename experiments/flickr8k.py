"""Train and evaluate every row of the Flickr8K comparison, several at once, and write the tables of docs/results.md.

    python experiments/flickr8k.py extract --photos PHOTOS --annotations CAPTIONS.json --out data/flickr8k-regions
    python experiments/flickr8k.py --features data/flickr8k-regions --device cuda --lanes 4 --minutes 60
    python experiments/flickr8k.py --features data/flickr8k-regions --only mean vsrn     # some rows
    python experiments/flickr8k.py table                                                 # only the tables

The folder of features has one region store a kind: `windows`, and `objects` where a detector is at hand. Each result is
a line of results.jsonl as soon as it is there. The same command goes on: what finished with the same settings is not
made again, and a run that was stopped is resumed.
"""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from jobs import Order
from lanes import Lanes, limit_threads
from regions import extract
from results import Result, Results
from rows import BEST, BOTH, BY_NAME, COMBINATIONS, COMBINED, ROWS, Combination, Job, jobs
from table import write_tables

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs/results/flickr8k"
# Seconds of the time that combinations get in the end.
FOR_COMBINATIONS = 25


@dataclass
class Plan:
    """What is left to do, and what may begin now.

    features  folder with a region store a kind
    work      folder of runs and similarities
    settings  fields of the config that are changed in every job
    cut_at    time.time() at which training ends
    """

    features: Path
    work: Path
    results: Results
    pending: list[Job]
    settings: dict[str, Any]
    device: str
    cut_at: float
    combinations: list[tuple[Combination, str]]
    given: dict[str, tuple[Job | Combination, str]] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    combining: bool = False

    def next(self) -> Order | None:
        """The next order that can begin; None where there is none at present."""
        if self.combining:
            return self._next_combination()
        while time.time() < self.cut_at:
            job = next((job for job in self.pending if self._is_ready(job)), None)
            if job is None:
                return None
            self.pending.remove(job)
            order = self._order(job)
            if order is not None:
                return order
        return None

    def is_over(self) -> bool:
        """Whether nothing may begin any more, asked when nothing is under way; after training come combinations."""
        if self.combining:
            return not self.combinations
        waits = any(not self._has_store(job.regions) for job in self.pending) and self.cut_at < float("inf")
        self.combining = time.time() >= self.cut_at or not waits
        return False

    def _has_store(self, regions: str) -> bool:
        # Features get their name last, so that a split that has them is complete.
        return all((self.features / regions / f"{split}_ims.npy").exists() for split in ("train", "val"))

    def _is_ready(self, job: Job) -> bool:
        """Whether its regions are there, and, where a trial was to be chosen, no trial of its row is left."""
        if not self._has_store(job.regions):
            return False
        if job.trial != BEST:
            return True
        under_way = [*self.pending, *(given for given, _ in self.given.values() if isinstance(given, Job))]
        same = [other for other in under_way if (other.row, other.regions, other.seed) == (job.row, job.regions, 0)]
        return not same

    def _order(self, job: Job) -> Order | None:
        """What a lane is told; None where that is done, or no trial of the row ended."""
        if job.trial == BEST:
            chosen = self.results.chosen(job.regions, job.row.name)
            if chosen is None:
                return None
            job = Job(job.row, chosen["trial"], job.seed, job.regions)
        settings = job.settings() | self.settings
        if self.results.is_done(job.key, settings) or job.key in self.tried:
            return None
        self.tried.add(job.key)
        self.given[job.key] = job, ""
        here = {"data.path": str(self.features / job.regions), "train.device": self.device}
        keep = self.work / "similarities" / job.key if job.row.name in COMBINED else None
        return Order(job.key, settings | here, self.work / "runs" / job.key, keep, cut_at=self.cut_at)

    def _next_combination(self) -> Order | None:
        while self.combinations:
            combination, regions = self.combinations.pop(0)
            if not self._has_store(regions):
                continue
            found = [self._part(regions, *part) for part in combination.parts]
            parts = [line for line in found if line is not None]
            folders = tuple(self.work / "similarities" / line["key"] for line in parts)
            key = f"{regions}/{combination.name}"
            settings = {"parts": [line["key"] for line in parts], "rsums": [line["val"]["rsum"] for line in parts]}
            lacks = len(parts) < len(found) or not all((folder / "held_out.npy").exists() for folder in folders)
            if lacks or self.results.is_done(key, settings):
                continue
            self.given[key] = combination, regions
            here = {"data.path": str(self.features / regions), "data.held_out": self._held_out()}
            return Order(key, settings | here, self.work, parts=folders, reranked=combination.reranked)
        return None

    def _part(self, regions: str, row: str, seed: int) -> Result | None:
        seeds = self.results.seeds(regions, row)
        return next((line for line in seeds if line["seed"] == seed), None)

    def _held_out(self) -> str:
        return str(self.settings.get("data.held_out", "configs/flickr8k-held-out.txt"))

    def take(self, order: Order, result: Result) -> None:
        """Write down what became of an order."""
        given, regions = self.given.pop(order.key)
        if isinstance(given, Job):
            about = {"regions": given.regions, "row": given.row.name, "trial": given.trial, "seed": given.seed}
            left = ("data.path", "train.device")
        else:
            about = {"regions": regions, "row": given.name, "seed": 0}
            left = ("data.path", "data.held_out")
        settings = {name: value for name, value in order.settings.items() if name not in left}
        if not result.get("error") and not result["finished"] and not result["cut"]:
            # It was stopped from outside, and goes on another time.
            return
        ranks = result.pop("ranks", None)
        self.results.add({"key": order.key, **about, "settings": settings, **result}, ranks)
        what = result.get("error") or f"held-out {result['held_out']['rsum']:.1f}, val {result['val']['rsum']:.1f}"
        print(f"{time.strftime('%H:%M:%S')} {order.key}: {what} ({result.get('wall_seconds', 0):.1f} s)", flush=True)


def main(
    *,
    features: Path,
    out: Path = KEPT,
    work: Path = Path("runs/flickr8k-rows"),
    device: str = "auto",
    lanes: int = 1,
    minutes: float = 0,
    only: tuple[str, ...] = (),
    regions: tuple[str, ...] = BOTH,
    settings: tuple[str, ...] = (),
) -> None:
    """Train and evaluate what is missing.

    Args:
        features: Folder with a region store a kind: windows, objects.
        out: Folder of results.jsonl and ranks.bin.
        work: Folder for runs and similarities, 100 MB a run of some rows; a disk in memory is best.
        device: Where models are trained.
        lanes: Runs at a time.
        minutes: Time for all of it; a run that does not fit is cut at its epoch. 0 for as long as it takes.
        only: Rows and combinations, by name.
        regions: Kinds of regions.
        settings: Fields of the config to change in every job, as train.epochs=2.
    """
    began = time.time()
    cut_at = began + 60 * minutes - FOR_COMBINATIONS if minutes else float("inf")
    unknown = set(only) - set(BY_NAME) - {combination.name for combination in COMBINATIONS}
    if unknown:
        sys.exit(f"there is no row {', '.join(sorted(unknown))}.")
    changed = {name: tomllib.loads(f"x = {value}")["x"] for name, _, value in (one.partition("=") for one in settings)}
    rows = [row for row in ROWS if not only or row.name in only]
    results = Results(out)
    made = [(one, kind) for one in COMBINATIONS if not only or one.name in only for kind in regions]
    plan = Plan(features, work, results, jobs(rows, regions), changed, device, cut_at, made)
    stopped = Lanes(lanes, limit_threads(lanes), device, plan.next, plan.take, cut_at).run(plan.is_over)
    failed = sorted(results.failed)
    print(f"{len(results.lines)} results, {len(failed)} failed, {time.time() - began:.0f} s", flush=True)
    if stopped:
        sys.exit("stopped; the same command goes on.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; results.jsonl says why.")


def table(*, out: Path = KEPT, page: Path = ROOT / "docs/results.md") -> None:
    """Write the tables into the page.

    Args:
        out: Folder of results.jsonl and ranks.bin.
        page: The page, with its markers.
    """
    write_tables(Results(out), page)


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"extract": extract, "table": table}
    command = commands.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        tyro.cli(main)
    else:
        tyro.cli(command, args=sys.argv[2:], prog=f"flickr8k.py {sys.argv[1]}")
