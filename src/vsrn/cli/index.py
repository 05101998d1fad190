"""`vsrn index`: a folder of photos -> an index of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vsrn.cli.options import Json, call, print_json
from vsrn.cli.progress import ProgressBar, progress_bar, say

if TYPE_CHECKING:
    from vsrn.search.build import IndexReport

SKIPPED_SHOWN = 20


def main(
    photos: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="INDEX")],
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    no_explain: bool = False,
    engine: Literal["faiss", "milvus"] | None = None,
    uri: str = "",
    batch_size: int = 32,
    workers: int = 2,
    json: Json = False,
) -> int:
    """Index a folder of photos, so that `vsrn search` finds them by a sentence.

    $ vsrn index photos/ -o idx

    Run again, it adds new photos, drops deleted ones and reads changed ones again. Killed or stopped at any moment,
    the same command goes on where it was. Photos that cannot be read are skipped and listed.

    Args:
        photos: Folder of photos, searched to the bottom.
        output: Folder of the index, made where there is none.
        model: A run, an exported folder, or a packaged model [default: the index's own; for a new one flickr8k-small].
        no_explain: Do not keep the regions of each photo (about 92 KB), which explanations need.
        engine: What searches the vectors: faiss in this process, or milvus [default: the index's own; else faiss].
        uri: With --engine milvus, a server or a Milvus Lite file [default: a file in the index].
        batch_size: Photos that are finished, and safe on disk, at a time.
        workers: Threads that decode photos ahead of the network.
        json: Print the result as JSON.
    """
    say(f"Opening {output}...")
    from vsrn.search.build import update_index

    try:
        with _Bar() as bar:
            report = update_index(
                photos,
                output,
                model,
                explain=False if no_explain else None,
                engine=engine,
                uri=uri,
                batch_size=batch_size,
                workers=workers,
                progress=bar.at,
            )
    except KeyboardInterrupt:
        say("Stopped; every finished batch is kept and can be searched. The same command goes on from there.")
        return 130
    if json:
        print_json(_as_json(report, output))
    else:
        print("\n".join(_summary(report, output)))
        say(f'Next: vsrn search {output} "two dogs play on a beach"')
    return 0


class _Bar:
    """A bar that appears when it is known how long it is."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._bar: ProgressBar | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def at(self, settled: int, total: int) -> None:
        """So many of the photos are settled."""
        if self._bar is None:
            self._bar = self._open.enter_context(progress_bar("indexing", unit="photos").of(total))
        self._bar.at(settled)


def _summary(report: IndexReport, index: Path) -> list[str]:
    changes = f"{report.num_added:,} new, {report.num_changed:,} read again, {report.num_removed:,} gone"
    lines = [f"{index}: {report.num_photos:,} photos ({changes})"]
    if report.skipped:
        lines.append(f"  {len(report.skipped):,} skipped:")
        lines += [f"    {file.reason}" for file in report.skipped[:SKIPPED_SHOWN]]
    if len(report.skipped) > SKIPPED_SHOWN:
        lines.append(f"    and {len(report.skipped) - SKIPPED_SHOWN:,} more; --json lists them all")
    return lines


def _as_json(report: IndexReport, index: Path) -> dict[str, object]:
    return {
        "index": str(index),
        "num_photos": report.num_photos,
        "num_added": report.num_added,
        "num_changed": report.num_changed,
        "num_removed": report.num_removed,
        "skipped": [{"id": file.id, "reason": file.reason} for file in report.skipped],
    }


def run(arguments: Sequence[str]) -> int:
    """Parse and run."""
    return call(main, "index", arguments)
