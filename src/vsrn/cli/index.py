"""`vsrn index`: a folder of photos -> an index of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vsrn.cli.options import Device, Json, print_json, printable, skipped_lines
from vsrn.cli.progress import progress_bar, say
from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from vsrn.search.build import IndexReport

PHOTOS_SHOWN = 20
DAMAGED = 1


def main(
    photos: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PHOTOS]")] = None,
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="INDEX")],
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    no_explain: bool = False,
    engine: Literal["faiss", "milvus"] | None = None,
    uri: str = "",
    follow_links: bool = False,
    prune: bool = False,
    check: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Index a folder of photos, so that `vsrn search` finds them by a sentence.

    $ vsrn index photos/ -o idx

    Run again, it adds new photos, drops deleted ones, reads changed ones again and knows moved ones by their content.
    What is damaged in the index it mends. Killed or stopped at any moment, the same command goes on where it was.
    Photos that cannot be read are skipped and listed.

    $ vsrn index --check -o idx

    says what of an index is damaged, and changes nothing; exit status 0 where nothing is, 1 where something is.

    Args:
        photos: Folder of photos, searched to the bottom.
        output: Folder of the index, made where there is none.
        model: A run, an exported folder, or a packaged model [default: the index's own; for a new one flickr8k-small].
        no_explain: Do not keep the regions of each photo (about 92 KB), which explanations need.
        engine: What searches the vectors: faiss in this process, or milvus [default: the index's own; else faiss].
        uri: With --engine milvus, a server or a Milvus Lite file, to be given each time [default: a file in the index].
        follow_links: Read what links in the folder lead to outside of it.
        prune: Remove photos whose files are gone, though they are more than a fifth, or all of a folder that is empty.
        check: Compare everything in the index with its checksums.
        batch_size: Photos that are finished, and safe on disk, at a time.
        workers: Threads that decode photos ahead of the network.
        json: Print the result as JSON.
    """
    if check:
        return _check(output, json=json)
    if photos is None:
        raise ConfigError("no photos are named; write vsrn index PHOTOS -o INDEX.")
    say(f"Opening {printable(output)}...")
    from vsrn.search.build import update_index

    try:
        with progress_bar("indexing", unit="photos") as bar:
            report = update_index(
                photos,
                output,
                model,
                explain=False if no_explain else None,
                engine=engine,
                uri=uri,
                follow_links=follow_links,
                prune=prune,
                batch_size=batch_size,
                workers=workers,
                device=device,
                progress=bar.at,
            )
    except KeyboardInterrupt:
        say("Stopped; every finished batch is kept and can be searched. The same command goes on from there.")
        return 130
    if json:
        print_json(_as_json(report, output))
    else:
        print("\n".join(_summary(report, output)))
        _say_missing(report)
        say(f'Next: vsrn search {printable(output)} "two dogs play on a beach"')
    return 0


def _check(index: Path, *, json: bool) -> int:
    """Say what of an index is damaged."""
    from vsrn.search.mend import check_index

    found = check_index(index)
    if json:
        damage = [{"what": one.what, "ids": one.ids} for one in found]
        print_json({"index": str(index), "damage": damage})
        return DAMAGED if found else 0
    for one in found:
        print(f"{printable(index)}: {printable(one.what)}")
        for photo_id in one.ids[:PHOTOS_SHOWN]:
            print(f"  {printable(photo_id)}")
        if len(one.ids) > PHOTOS_SHOWN:
            print(f"  and {len(one.ids) - PHOTOS_SHOWN:,} more; --json lists them all")
    if found:
        say(f"`vsrn index PHOTOS -o {printable(index)}` mends it, reading again only the photos concerned.")
        return DAMAGED
    print(f"{printable(index)}: everything is as it was written")
    return 0


def _summary(report: IndexReport, index: Path) -> list[str]:
    changes = [
        f"{report.num_added:,} new",
        f"{report.num_changed:,} read again",
        *([f"{report.num_moved:,} moved"] if report.num_moved else []),
        f"{report.num_removed:,} gone",
    ]
    lines = [f"{printable(index)}: {report.num_photos:,} photos ({', '.join(changes)})"]
    if report.num_mended:
        lines.append(f"  of {report.num_mended:,} photos the index was damaged; they were read again")
    skipped = skipped_lines([(file.id, file.kind, file.reason) for file in report.skipped])
    return lines + [f"  {line}" for line in skipped]


def _say_missing(report: IndexReport) -> None:
    """Ask what is to become of photos that are not there."""
    if report.missing:
        first = printable(report.missing[0])
        say(
            f"{len(report.missing):,} photos are not where they were, such as {first}, and stay in the index: their"
            " disk may be away. If they are deleted, run the same command with --prune."
        )


def _as_json(report: IndexReport, index: Path) -> dict[str, object]:
    return {
        "index": str(index),
        "num_photos": report.num_photos,
        "num_added": report.num_added,
        "num_changed": report.num_changed,
        "num_removed": report.num_removed,
        "num_moved": report.num_moved,
        "num_mended": report.num_mended,
        "missing": report.missing,
        "skipped": [{"id": file.id, "kind": file.kind, "reason": file.reason} for file in report.skipped],
    }
