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

from vsrn.cli import options
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
    model: options.Model = None,
    no_explain: bool = False,
    engine: Literal["faiss", "milvus"] | None = None,
    uri: str = "",
    follow_links: options.FollowLinks = False,
    no_follow_links: bool = False,
    exclude: options.Exclude = (),
    remove: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER...")] = (),
    prune: bool = False,
    thumbnail_side: int | None = None,
    check: bool = False,
    watch: bool = False,
    batch_size: options.BatchSize = 32,
    workers: options.Decoders = None,
    ray: options.Ray = None,
    device: options.Device = "auto",
    json: options.Json = False,
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
    if watch and ray is not None:
        raise ConfigError("--watch and --ray contradict each other; leave one of them out.")
    asked: dict[str, Any] = {"model": model, "engine": engine, "uri": uri, "remove": remove, "prune": prune}
    asked |= {"thumbnail_side": thumbnail_side, "batch_size": batch_size, "workers": workers, "device": device}
    # None leaves an index as it is.
    asked["explain"] = False if no_explain else None
    asked["follow_links"] = follow_links if follow_links or no_follow_links else None
    asked["exclude"] = [glob for globs in exclude for glob in globs] if exclude else None
    say(f"Opening {printable(output)}...")
    return _watch(photos, output, asked, json=json) if watch else _update(photos, output, asked, ray, json=json)


def _update(photos: Sequence[Path], index: Path, asked: dict[str, Any], ray: str | None, *, json: bool) -> int:
    """Index once, in this process, and return the exit code; `asked` are arguments of `update_index`."""
    from vsrn.search.build import update_index

    with ProgressBar("indexing") as bar, contextlib.ExitStack() as cluster:
        report = update_index(
            photos, index, progress=bar.at, **asked, batches=options.batches_of(ray, asked["device"], cluster)
        )
    _show(report, index, json=json)
    return 0


def _watch(photos: Sequence[Path], index: Path, asked: dict[str, Any], *, json: bool) -> NoReturn:
    """Index, and again after every change, until Ctrl-C: each time in another process, so that this one stays small."""
    from vsrn.search.child import Child
    from vsrn.search.overview import read_overview
    from vsrn.search.watch import changes, check_installed, on_network

    check_installed()
    with ProgressBar("indexing") as bar:
        report = Child(index, options.imported_plugins, niceness=0, photos=photos, **asked).report(bar.at)
    _show(report, index, json=json)
    sys.stdout.flush()  # which a journal reads now, not when this ends
    seen = read_overview(index)
    folders = [folder.path for folder in seen.folders]
    how = "every half minute: a network drive" if any(map(on_network, folders)) else "Ctrl-C ends it"
    say(f"Watching {', '.join(map(str, folders))} ({how})")
    again = {name: asked[name] for name in ("uri", "batch_size", "workers", "device")}
    for _ in changes(folders, index, seen.settings.exclude):
        while not _update_in_child(index, again):
            time.sleep(SECONDS_TO_WAIT)
    raise AssertionError("it is watched until it is interrupted")


def _update_in_child(index: Path, asked: dict[str, Any]) -> bool:
    """Bring a watched index up to date and print what changed, if anything; False where it failed, which is said."""
    from vsrn.search.child import Child

    try:
        report = Child(index, options.imported_plugins, niceness=0, photos=None, **asked).report(lambda *_: None)
    except VsrnError as error:
        say(f"{datetime.now():%Y-%m-%d %H:%M:%S} {error}")
        return False
    if report.num_added + report.num_changed + report.num_moved + report.num_removed:
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {_summary(report, index)}", flush=True)
    return True


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
        options.print_json({"index": str(index), "damage": [{"what": one.what, "ids": one.ids} for one in found]})
        return DAMAGED if found else 0
    most = options.SKIPPED_SHOWN
    for one in found:
        print(f"{printable(index)}: {printable(one.what)}", *map(printable, one.ids[:most]), sep="\n  ")
        if len(one.ids) > most:
            print(f"  and {len(one.ids) - most:,} more; --json lists them all")
    if found:
        say(f"`vsrn index -o {printable(index)}` mends it, reading again only the photos concerned.")
        return DAMAGED
    print(f"{printable(index)}: everything is as it was written")
    return 0


def _show(report: IndexReport, index: Path, *, json: bool) -> None:
    """Print what became of an index, and what to do about photos that are not there."""
    if json:
        options.print_json({"index": str(index), **vars(report), "skipped": options.skipped_json(report.skipped)})
        return
    print(_summary(report, index))
    if report.num_mended:
        print(f"  of {report.num_mended:,} photos the index was damaged; they were read again")
    if len(report.folders) > 1:
        print(f"  of {len(report.folders):,} folders: {', '.join(map(printable, report.folders))}")
    left_out = options.left_out_lines(report.num_folders_left_out, report.num_files_left_out, report.exclude)
    for line in [*options.skipped_lines(report.skipped), *left_out]:
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
