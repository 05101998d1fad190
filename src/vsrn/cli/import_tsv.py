"""`vsrn import-tsv`: features published as bottom-up attention's TSV -> a region store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from vsrn.cli.extract import Bars, Splits, check_splits, show, stopped
from vsrn.cli.options import Json, Output
from vsrn.errors import ConfigError

Files = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES", help_behavior_hint="")]


def main(
    files: Files,
    *,
    output: Output,
    captions: Path | None = None,
    splits: Splits = (),
    restval: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    json: Json = False,
) -> int:
    """Turn features published as bottom-up attention's TSV into a region store with their boxes, without photos.

    $ vsrn import-tsv trainval_36.tsv -o data/coco --captions dataset_coco.json --restval

    Killed or stopped at any moment, the same command goes on where it was.

    Args:
        files: Files in bottom-up attention's TSV layout, plain or gzipped.
        output: Folder of the region store, made where there is none.
        captions: Karpathy JSON; its splits and captions go into the store. Images are found by COCO's number or their
            file name.
        splits: With --captions, the splits to write [default: those that the files have photos of]; without, the name
            of the one split that holds every photo [default: photos].
        restval: With --captions, count COCO's `restval` images as `train`.
        batch_size: Photos that are finished, and safe on disk, at a time.
        workers: Threads that read ahead.
        json: Print the result as JSON.
    """
    from vsrn.extractors.published_tsv import find_lines, import_tsv

    if not files:
        raise ConfigError("no files are named; write vsrn import-tsv FILES -o STORE.")
    check_splits(captions, splits, restval=restval)
    try:
        with Bars() as bars, find_lines(files, output, bars.looked_through) as lines:
            settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": bars.at}
            reports = import_tsv(lines, output, dataset=captions, splits=splits, restval=restval, **settings)
    except KeyboardInterrupt:
        return stopped()
    show(reports, output, json=json)
    return 0
