"""`vsrn index`: folders of photos -> an index of them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

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
    imported_plugins,
    left_out_lines,
    print_json,
    skipped_json,
    skipped_lines,
)
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import ConfigError, VsrnError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.search.build import IndexReport

DAMAGED = 1
# After a run of --watch that failed, for instance because another process wrote to the index.
SECONDS_TO_WAIT = 60.0


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
    thumbnail_side: int | None = None,
    check: bool = False,
    watch: bool = False,
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
        no_follow_links: Follow links out of the folders no more.
        remove: Folders that the index is to be of no more.
        prune: Remove photos whose files are gone even where that is more than a fifth of a folder, or all of it.
        thumbnail_side: Pixels of the longer side of the thumbnails that the page shows, for a new index [default: 512].
        watch: Then go on, and index again whenever something in the folders has changed, until Ctrl-C.
        check: Only compare everything in the index with its checksums; exit code 1 where something is damaged.
    """
    output = _index_of(photos, output)
    if check:
        return _check(output, json=json)
    if follow_links and no_follow_links:
        raise ConfigError("--follow-links and --no-follow-links contradict each other; give one of them.")
    asked: dict[str, Any] = {
        "model": model,
        "explain": False if no_explain else None,
        "engine": engine,
        "uri": uri,
        "follow_links": follow_links if follow_links or no_follow_links else None,
        "exclude": [glob for globs in exclude for glob in globs] if exclude else None,
        "remove": remove,
        "prune": prune,
        "thumbnail_side": thumbnail_side,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
    }
    say(f"Opening {printable(output)}...")
    if watch:
        if ray is not None:
            raise ConfigError("--watch and --ray contradict each other; leave one of them out.")
        return _watch(photos, output, asked, json=json)
    from vsrn.search.build import update_index

    with ProgressBar("indexing") as bar, contextlib.ExitStack() as cluster:
        report = update_index(photos, output, progress=bar.at, **asked, **batches_of(ray, cluster))
    _show(report, output, json=json)
    return 0


def _watch(photos: Sequence[Path], index: Path, asked: dict[str, Any], *, json: bool) -> NoReturn:
    """Index, and again after every change, until Ctrl-C: each time in another process, so that this one stays small."""
    from vsrn.search.child import Child
    from vsrn.search.overview import read_overview
    from vsrn.search.watch import changes, check_installed, on_network

    check_installed()
    with ProgressBar("indexing") as bar:
        report = Child(index, imported_plugins, niceness=0, photos=photos, **asked).report(bar.at)
    _show(report, index, json=json)
    sys.stdout.flush()  # which a journal reads now, not when this ends
    seen = read_overview(index)
    folders = [folder.path for folder in seen.folders]
    how = "every half minute: a network drive" if any(map(on_network, folders)) else "Ctrl-C ends it"
    say(f"Watching {', '.join(map(str, folders))} ({how})")
    again = {name: asked[name] for name in ("uri", "batch_size", "workers", "device")}
    for _ in changes(folders, index, seen.settings.exclude):
        while (said := _update(index, again)) is None:
            time.sleep(SECONDS_TO_WAIT)
        if said:
            print(said, flush=True)
    raise AssertionError("it is watched until it is interrupted")


def _update(index: Path, asked: dict[str, Any]) -> str | None:
    """Bring a watched index up to date; a line about what changed, if anything. None where it failed, which is said."""
    from vsrn.search.child import Child

    try:
        report = Child(index, imported_plugins, niceness=0, photos=None, **asked).report(lambda _done, _total: None)
    except VsrnError as error:
        say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {error}")
        return None
    changed = report.num_added + report.num_changed + report.num_moved + report.num_removed
    return f"{datetime.now():%Y-%m-%d %H:%M:%S} {_summary(report, index)}" if changed else ""


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
    print(_summary(report, index))
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


def _summary(report: IndexReport, index: Path) -> str:
    """One line: how many photos there are, and what changed."""
    moved = f"{report.num_moved:,} moved, " if report.num_moved else ""
    changes = f"{report.num_added:,} new, {report.num_changed:,} read again, {moved}{report.num_removed:,} gone"
    return f"{printable(index)}: {report.num_photos:,} photos ({changes})"
