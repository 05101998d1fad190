"""`vsrn index`: folders of photos -> an index of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PHOTOS...]")] = (),
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="INDEX")] = None,
    model: Model = None,
    no_explain: bool = False,
    engine: Literal["faiss", "milvus"] | None = None,
    uri: str = "",
    follow_links: FollowLinks = False,
    no_follow_links: bool = False,
    exclude: Exclude = (),
    remove: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER...")] = (),
    prune: bool = False,
    check: bool = False,
    batch_size: BatchSize = 32,
    workers: Decoders = None,
    ray: Ray = None,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Index folders of photos, so that `vsrn search` finds them by a sentence.

    $ vsrn index photos/ -o idx
    $ vsrn index /mnt/nas/photos -o idx
    $ vsrn index -o idx

    The first makes the index, the second adds a folder to it, the third goes over all its folders again. Each run adds
    new photos, drops deleted ones, reads changed ones again, recognises moved ones, and mends what is damaged in the
    index. Stopped or killed at any moment, the same command goes on where it was.

    Args:
        photos: Folders of photos, searched with all their folders; those that the index is of need not be named again.
        output: Folder of the index, made where there is none.
        no_explain: Do not keep the regions of each photo (about 92 KB), which explanations need.
        engine: What searches the vectors: faiss in this process, or milvus [default: the index's own; else faiss].
        uri: With --engine milvus, a server or a Milvus Lite file, to be given each time [default: a file in the index].
        follow_links: Read photos also where links lead out of the folders, at the next runs too.
        no_follow_links: Do so no more.
        remove: Folders that the index is to be of no more.
        prune: Remove photos whose files are gone, though they are more than a fifth of a folder, or all of one that is
            empty or not there.
        check: Only compare everything in the index with its checksums; exit code 1 where something is damaged.
    """
    output = _index_of(photos, output)
    if check:
        return _check(output, json=json)
    if follow_links and no_follow_links:
        raise ConfigError("--follow-links and --no-follow-links contradict each other; give one of them.")
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
            follow_links=follow_links if follow_links or no_follow_links else None,
            exclude=[glob for globs in exclude for glob in globs] if exclude else None,
            remove=remove,
            prune=prune,
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=bar.at,
            **batches_of(ray, cluster),
        )
    _show(report, output, json=json)
    return 0


def _index_of(photos: Sequence[Path], index: Path | None) -> Path:
    """The folder of the index. Raises `ConfigError` where none is named."""
    if index is not None:
        return index
    if not photos:
        raise ConfigError(
            "name a folder of photos and one for the index, as in `vsrn index photos/ -o idx`; later `vsrn index -o"
            " idx` goes over the same photos again."
        )
    named = " ".join(printable(path) for path in photos)
    if len(photos) == 1 and (photos[0] / "index.json").is_file():
        raise ConfigError(f"{named} is an index; `vsrn index -o {named}` goes over its photos again.")
    raise ConfigError(f"name a folder for the index too, as in `vsrn index {named} -o idx`.")


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
        say(f"`vsrn index -o {printable(index)}` mends it, reading again only the photos concerned.")
        return DAMAGED
    print(f"{printable(index)}: everything is as it was written")
    return 0


def _show(report: IndexReport, index: Path, *, json: bool) -> None:
    """Print what became of an index, and what to do about photos that are not there."""
    if json:
        print_json({"index": str(index), **vars(report), "skipped": skipped_json(report.skipped)})
        return
    moved = f"{report.num_moved:,} moved, " if report.num_moved else ""
    changes = f"{report.num_added:,} new, {report.num_changed:,} read again, {moved}{report.num_removed:,} gone"
    print(f"{printable(index)}: {report.num_photos:,} photos ({changes})")
    if report.num_mended:
        print(f"  of {report.num_mended:,} photos the index was damaged; they were read again")
    if len(report.folders) > 1:
        print(f"  of {len(report.folders):,} folders: {', '.join(map(printable, report.folders))}")
    left_out = left_out_lines(report.num_folders_left_out, report.num_files_left_out, report.exclude)
    for line in [*skipped_lines(report.skipped), *left_out]:
        print(line)
    for folder in report.away:
        say(
            f"warning: {printable(folder)} is not there or holds no photos; what the index has of it stays. If they are"
            f" deleted, run the same command with --prune, or with --remove {printable(folder)}."
        )
    if report.missing:
        say(
            f"{len(report.missing):,} photos are not where they were, such as {printable(report.missing[0])}, and stay"
            " in the index: their disk may be away. If they are deleted, run the same command with --prune."
        )
    say(f'Next: vsrn search {printable(index)} "two dogs play on a beach"')
