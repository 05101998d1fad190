"""What the Flickr8K comparison keeps: a JSON line a job, and the ranks of val's queries.

    results.jsonl  one line a job that ended; of several lines with one key, the last that finished counts
    ranks.bin      ranks of all jobs end to end, int16 of the lowest byte first: those of images, then of captions

Lines are appended after their ranks, so a kill at any time keeps every line that is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rows import BY_NAME

from vsrn.metrics import Ranks

Result = dict[str, Any]
RESULTS, RANKS = "results.jsonl", "ranks.bin"


class Results:
    """The results of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: dict[str, Result] = {}
        self.failed: dict[str, str] = {}
        path = folder / RESULTS
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                self._count(json.loads(line))
            except ValueError:
                # A kill cut it short.
                continue

    def _count(self, line: Result) -> None:
        key = line["key"]
        if "error" in line:
            self.failed[key] = line["error"]
        elif line["finished"] or not self.lines.get(key, {"finished": False})["finished"]:
            self.lines[key] = line
            self.failed.pop(key, None)

    def is_done(self, key: str, settings: dict[str, Any]) -> bool:
        """Whether a job finished with these very settings."""
        line = self.lines.get(key)
        return line is not None and line["finished"] and line["settings"] == json.loads(json.dumps(settings))

    def add(self, line: Result, ranks: Ranks | None) -> None:
        """Append a line, and before it its ranks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if ranks is not None:
            line = line | {"ranks": self._append(ranks)}
        path = self.folder / RESULTS
        cut = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(line) + "\n")
        self._count(line)

    def _append(self, ranks: Ranks) -> list[int]:
        """Where ranks begin, and how many are of images and of captions."""
        sides = [np.asarray(side, dtype="<i2") for side in (ranks.image_to_text, ranks.text_to_image)]
        with (self.folder / RANKS).open("ab") as file:
            if file.tell() % 2:
                file.write(b"\0")
            start = file.tell() // 2
            file.write(b"".join(side.tobytes() for side in sides))
        return [start, *(len(side) for side in sides)]

    def ranks(self, line: Result) -> Ranks:
        """The ranks of a line."""
        start, images, captions = line["ranks"]
        found = np.fromfile(self.folder / RANKS, dtype="<i2", count=images + captions, offset=2 * start).astype(
            np.int64
        )
        return Ranks(found[:images], found[images:])

    def trials(self, regions: str, row: str) -> list[Result]:
        """The lines of a row's trials, those of seed 0, in the order of its recipes.

        Runs end in any order, and recipes that are equal on the held-out photos must not be chosen by that.
        """
        lines = [
            line
            for line in self.lines.values()
            if (line["regions"], line["row"], line["seed"]) == (regions, row, 0) and "trial" in line
        ]
        return sorted(lines, key=lambda line: list(BY_NAME[row].trials).index(line["trial"]))

    def chosen(self, regions: str, row: str) -> Result | None:
        """The trial of a row that the held-out photos choose, of those that finished, or else of those that were cut.

        Of equal ones the first; None where none has ended. A trial that was cut is not the recipe whose name it has.
        """
        return max(
            finished_or_all(self.trials(regions, row)),
            key=lambda line: float(line["held_out"]["rsum"]),
            default=None,
        )

    def seeds(self, regions: str, row: str) -> list[Result]:
        """The runs of a row's chosen trial, one a seed, seed 0 first; or its one line, where it is a combination.

        Runs that were cut are left out where one finished: a mean of an early epoch and of a last one says nothing.
        """
        chosen = self.chosen(regions, row)
        if chosen is None:
            alone = self.lines.get(f"{regions}/{row}")
            return [] if alone is None else [alone]
        lines = [
            line
            for line in self.lines.values()
            if (line["regions"], line["row"], line.get("trial")) == (regions, row, chosen["trial"])
        ]
        return sorted(finished_or_all(lines), key=lambda line: int(line["seed"]))


def finished_or_all(lines: list[Result]) -> list[Result]:
    """The lines of runs that finished, or all of them where none did."""
    return [line for line in lines if line["finished"]] or lines
