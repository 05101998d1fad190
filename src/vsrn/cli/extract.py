"""`vsrn extract`: photos -> a region store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from vsrn.cli.options import Json, Output, call, print_json
from vsrn.cli.progress import ProgressBar, progress_bar, say
from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from vsrn.regions.extract import ExtractionReport

SKIPPED_SHOWN = 20


def run(arguments: Sequence[str]) -> int:
    """Parse and run."""
    return call(main, "extract", arguments)


def main(
    photos: tyro.conf.Positional[Path],
    *,
    output: Output,
    captions: Path | None = None,
    splits: tuple[str, ...] = (),
    restval: bool = False,
    split: str = "photos",
    extractor: str = "grid",
    batch_size: int = 32,
    workers: int = 2,
    json: Json = False,
) -> int:
    """Turn a folder of photos into a region store: features, boxes and ids of each photo's regions.

    vsrn extract photos/ -o data/mine
    vsrn extract flickr8k/images -o data/flickr8k --captions dataset_flickr8k.json

    Killed or stopped at any moment, the same command goes on where it was. Photos that cannot be read are
    skipped and listed at the end.

    Args:
        photos: Folder of photos, searched to the bottom.
        output: Folder of the region store, made where there is none.
        captions: Karpathy JSON; its splits and captions go into the store, and only its photos are read.
        splits: With --captions, the splits to extract [default: all].
        restval: With --captions, count COCO's `restval` images as `train`.
        split: Without --captions, the name of the one split that holds every photo.
        extractor: What makes the regions; `grid` is 36 windows of a small network, offline.
        batch_size: Photos that are finished, and safe on disk, at a time.
        workers: Threads that decode photos ahead of the network.
        json: Print the result as JSON.
    """
    _refuse_contradictions(captions, splits, split, restval=restval)
    say(f"Loading the extractor '{extractor}'...")
    from vsrn.regions.extract import extract, extract_karpathy
    from vsrn.regions.extractor import make_extractor
    from vsrn.regions.photos import find_photos

    make = make_extractor(extractor)
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    try:
        with _Bars() as bars:
            if captions is None:
                found = find_photos(photos, leave_out=output)
                reports = [extract(found, make, output, split, progress=bars.at, **settings)]
            else:
                settings |= {"splits": splits, "restval": restval, "progress": bars.at}
                reports = extract_karpathy(captions, photos, make, output, **settings)
    except KeyboardInterrupt:
        say("Stopped; every finished batch is kept. The same command goes on from there.")
        return 130
    if json:
        print_json({"store": str(output), "splits": [_as_json(report) for report in reports]})
    else:
        print("\n".join(_summary(reports, output)))
    return 0


class _Bars:
    """One bar on the screen, for the split that is being extracted."""

    def __init__(self) -> None:
        self.shown = contextlib.ExitStack()
        self.split: str | None = None
        self.bar: ProgressBar | None = None

    def at(self, split: str, settled: int, total: int) -> None:
        """A split has settled this many of its photos."""
        if self.bar is None or split != self.split:
            self.shown.close()
            self.split, self.bar = split, progress_bar(f"extracting {split}", unit="photos")
            self.shown.enter_context(self.bar.of(total))
        self.bar.at(settled)

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shown.close()


def _refuse_contradictions(captions: Path | None, splits: tuple[str, ...], split: str, *, restval: bool) -> None:
    if captions is None and (splits or restval):
        option = "--splits" if splits else "--restval"
        raise ConfigError(f"{option} chooses among the splits of a JSON; name it with --captions.")
    if captions is not None and split != "photos":
        raise ConfigError(f"--split names photos without captions; with --captions say --splits {split}.")


def _summary(reports: Sequence[ExtractionReport], store: Path) -> list[str]:
    lines = []
    for report in reports:
        was = " (finished before)" if report.already_done else ""
        lines.append(f"{store}, split '{report.split}': {report.num_done:,} photos{was}")
        if report.skipped:
            lines.append(f"  {len(report.skipped):,} skipped:")
            lines += [f"    {photo.reason}" for photo in report.skipped[:SKIPPED_SHOWN]]
        if len(report.skipped) > SKIPPED_SHOWN:
            more = len(report.skipped) - SKIPPED_SHOWN
            lines.append(f"    and {more:,} more, see {store / f'{report.split}_skipped.json'}")
    return lines


def _as_json(report: ExtractionReport) -> dict[str, Any]:
    return {
        "split": report.split,
        "num_done": report.num_done,
        "num_resumed": report.num_resumed,
        "already_done": report.already_done,
        "skipped": [{"id": photo.id, "reason": photo.reason} for photo in report.skipped],
    }
