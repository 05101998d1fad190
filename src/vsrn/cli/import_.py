"""`vsrn import`: features that somebody published, in whatever form -> a region store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import tyro

from vsrn.cli.extract import check_splits, show
from vsrn.cli.options import BatchSize, Float32, Json, Output, Restval, Splits
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import ConfigError


def main(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES", help_behavior_hint="")],
    *,
    output: Output,
    captions: Path | None = None,
    splits: Splits = (),
    restval: Restval = False,
    classes: Path | None = None,
    attributes: Path | None = None,
    float32: Float32 = False,
    batch_size: BatchSize = 32,
    workers: int = 2,
    json: Json = False,
) -> None:
    """Turn published features into a region store, without photos: .npz, HDF5, safetensors, a file an image, or TSV.

    $ vsrn import trainval_36.tsv -o data/coco --captions dataset_coco.json --restval
    $ vsrn import old/test_ims.npz -o data/f30k

    Stopped or killed at any moment, the same command goes on where it was. `vsrn import-tsv` is the same command.

    Args:
        files: Files of features, plain or gzipped tables among them, or a folder with a file an image. Of test_ims.npz
            and its like the split's name, its captions and ids beside it go along.
        captions: Captions in any form that `vsrn extract` reads; they and their splits go into the store. Images are
            found by file name, COCO's number, or an id_mapping.json beside the features.
        classes: A file that names the classes whose numbers the features come with, one a line.
        attributes: A file that names the attributes, one a line.
        workers: Threads that read and decode ahead.
    """
    if not files:
        raise ConfigError("no files are named; write vsrn import FILES -o STORE.")
    check_splits(captions, splits, restval=restval)
    from vsrn.data.image_ids import read_id_mapping
    from vsrn.extractors.bottom_up.extractor import read_region_names
    from vsrn.extractors.published import import_images
    from vsrn.extractors.published_arrays import files_of, open_published_arrays
    from vsrn.extractors.published_tsv import find_lines

    reports = []
    with ProgressBar("importing") as bar:
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "float32": float32}
        settings["names"] = read_region_names(classes, attributes)
        settings["progress"] = lambda split, done, total: bar.start(f"importing {split}").at(done, total)
        for together in files_of(files):
            with contextlib.ExitStack() as opened:
                published = open_published_arrays(together[0], output, opened) if len(together) == 1 else None
                if published is None:
                    bar.start("looking through the files", "MB")
                    lines = find_lines(together, output, lambda done, total: bar.at(done >> 20, total >> 20))
                    published = opened.enter_context(lines)
                for note in published.notes:
                    say(note)
                settings["mapping"] = read_id_mapping(together[0] if together[0].is_dir() else together[0].parent)
                reports += import_images(
                    published, output, dataset=captions, splits=splits, restval=restval, **settings
                )
    show(reports, output, json=json)
