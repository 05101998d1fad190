"""`vsrn import-tsv`: features published as bottom-up attention's TSV -> a region store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from vsrn.cli.extract import check_splits, show
from vsrn.cli.options import BatchSize, Json, Output, Restval, Splits, Workers
from vsrn.cli.progress import ProgressBar
from vsrn.errors import ConfigError


def main(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES", help_behavior_hint="")],
    *,
    output: Output,
    captions: Path | None = None,
    splits: Splits = (),
    restval: Restval = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    json: Json = False,
) -> int:
    """Turn features published as bottom-up attention's TSV into a region store with their boxes, without photos.

    $ vsrn import-tsv trainval_36.tsv -o data/coco --captions dataset_coco.json --restval

    Stopped or killed at any moment, the same command goes on where it was.

    Args:
        files: Files in bottom-up attention's TSV layout, plain or gzipped.
        captions: Captions: Karpathy's JSON, COCO's captions_*.json or their folder, Flickr's .token, CSV or TSV
            (docs/data-formats.md). Their splits and captions go into the store. Images are found by COCO's number or
            their file name.
    """
    from vsrn.extractors.published_tsv import find_lines, import_tsv

    if not files:
        raise ConfigError("no files are named; write vsrn import-tsv FILES -o STORE.")
    check_splits(captions, splits, restval=restval)
    with ProgressBar("importing") as bar:
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
        settings["progress"] = lambda split, done, total: bar.start(f"importing {split}").at(done, total)

        def scanned(done: int, total: int) -> None:
            bar.start("looking through the files", "MB").at(done >> 20, total >> 20)

        with find_lines(files, output, scanned) as lines:
            reports = import_tsv(lines, output, dataset=captions, splits=splits, restval=restval, **settings)
    show(reports, output, json=json)
    return 0
