"""`vsrn index`: a folder of photos -> an index of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vsrn.cli.options import (
    SKIPPED_SHOWN,
    BatchSize,
    Decoders,
    Device,
    Exclude,
    FollowLinks,
    Json,
    Model,
    Ray,
    batches_of,
    left_out_lines,
    print_json,
    skipped_json,
    skipped_lines,
)
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import ConfigError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.search.build import IndexReport

DAMAGED = 1


def main(
    photos: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PHOTOS]")] = None,
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="INDEX")],
    model: Model = None,
    no_explain: bool = False,
    engine: Literal["faiss", "milvus"] | None = None,
    uri: str = "",
    follow_links: FollowLinks = False,
    exclude: Exclude = (),
    prune: bool = False,
    thumbnail_side: int | None = None,
    check: bool = False,
    batch_size: BatchSize = 32,
    workers: Decoders = None,
    ray: Ray = None,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Index a folder of photos, so that `vsrn search` finds them by a sentence.

    $ vsrn index photos/ -o idx
    $ vsrn index --check -o idx

    Run again, it adds new photos, drops deleted ones, reads changed ones again, recognises moved ones, and mends what
    is damaged in the index. Stopped or killed at any moment, the same command goes on where it was.

    Args:
        photos: Folder of photos, searched with all its folders.
        output: Folder of the index, made where there is none.
        no_explain: Do not keep the regions of each photo (about 92 KB), which explanations need.
        engine: What searches the vectors: faiss in this process, or milvus [default: the index's own; else faiss].
        uri: With --engine milvus, a server or a Milvus Lite file, to be given each time [default: a file in the index].
        prune: Remove photos whose files are gone, though they are more than a fifth, or all of a folder that is empty.
        thumbnail_side: Pixels of the longer side of the thumbnails that the page shows, for a new index [default: 512].
        check: Only compare everything in the index with its checksums; exit code 1 where something is damaged.
    """
    if check:
        return _check(output, json=json)
    if photos is None:
        raise ConfigError("no photos are named; write vsrn index PHOTOS -o INDEX.")
    say(f"Opening {printable(output)}...")
    from vsrn.search.build import update_index

    with ProgressBar("indexing") as bar, contextlib.ExitStack() as cluster:
        report = update_index(
            photos,
            output,
            model,
            explain=False if no_explain else None,
            engine=engine,
            uri=uri,
            follow_links=follow_links,
            exclude=exclude,
            prune=prune,
            thumbnail_side=thumbnail_side,
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=bar.at,
            **batches_of(ray, cluster),
        )
    _show(report, output, json=json)
    return 0


def _check(index: Path, *, json: bool) -> int:
    """Print what of an index is damaged, and return the exit code."""
    from vsrn.search.mend import check_index

    found = check_index(index)
    if json:
        print_json({"index": str(index), "damage": [{"what": one.what, "ids": one.ids} for one in found]})
        return DAMAGED if found else 0
    for one in found:
        print(f"{printable(index)}: {printable(one.what)}", *map(printable, one.ids[:SKIPPED_SHOWN]), sep="\n  ")
        if len(one.ids) > SKIPPED_SHOWN:
            print(f"  and {len(one.ids) - SKIPPED_SHOWN:,} more; --json lists them all")
    if found:
        say(f"`vsrn index PHOTOS -o {printable(index)}` mends it, reading again only the photos concerned.")
        return DAMAGED
    print(f"{printable(index)}: everything is as it was written")
    return 0


def _show(report: IndexReport, index: Path, *, json: bool) -> None:
    """Print what became of a folder, and what to do about photos that are not there."""
    if json:
        print_json({"index": str(index), **vars(report), "skipped": skipped_json(report.skipped)})
        return
    moved = f"{report.num_moved:,} moved, " if report.num_moved else ""
    changes = f"{report.num_added:,} new, {report.num_changed:,} read again, {moved}{report.num_removed:,} gone"
    print(f"{printable(index)}: {report.num_photos:,} photos ({changes})")
    if report.num_mended:
        print(f"  of {report.num_mended:,} photos the index was damaged; they were read again")
    left_out = left_out_lines(report.num_folders_left_out, report.num_files_left_out)
    for line in [*skipped_lines(report.skipped), *left_out]:
        print(line)
    if report.missing:
        say(
            f"{len(report.missing):,} photos are not where they were, such as {printable(report.missing[0])}, and stay"
            " in the index: their disk may be away. If they are deleted, run the same command with --prune."
        )
    say(f'Next: vsrn search {printable(index)} "two dogs play on a beach"')
