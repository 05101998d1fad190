"""`vsrn info`: an index -> what it holds, what it was made of, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vsrn.cli.options import Index, Json, print_json, skipped_json, skipped_lines
from vsrn.files import printable

if TYPE_CHECKING:
    from pathlib import Path

    from vsrn.search.overview import IndexOverview


def main(index: Index, *, json: Json = False) -> None:
    """Say what an index holds: photos, folders, model, engine, size, what is left out, and what could not be read.

    $ vsrn info idx

    Only sizes and the model's checksums are compared with what was written; `vsrn index --check -o INDEX` compares
    everything. Nothing is written.
    """
    from vsrn.search.overview import read_overview

    seen = read_overview(index)
    if json:
        print_json({"index": str(index)} | _for_machines(seen))
    else:
        print("\n".join(_lines(index, seen)))


def _for_machines(seen: IndexOverview) -> dict[str, Any]:
    info, settings = seen.info, seen.settings
    return {
        "num_photos": seen.num_photos,
        "folders": [vars(folder) | {"path": printable(folder.path)} for folder in seen.folders],
        "model": {"name": seen.model_name, "fingerprint": info.model, "extractor": seen.extractor},
        "engine": {"name": info.engine, "uri": info.uri},
        "explain": info.explain,
        "size": seen.size,
        "last_run": None if settings.last_run is None else settings.last_run.isoformat(),
        "exclude": settings.exclude,
        "follow_links": settings.follow_links,
        "skipped": skipped_json(seen.skipped),
        "damage": seen.damage,
        "format": info.format,
    }


def _lines(index: Path, seen: IndexOverview) -> list[str]:
    """What a person reads."""
    info, settings = seen.info, seen.settings
    ended = "unknown" if settings.last_run is None else f"{settings.last_run.astimezone():%Y-%m-%d %H:%M}"
    model, extractor = printable(seen.model_name or info.model[:12]), printable(seen.extractor or "unknown")
    engine = info.engine + (f" at {printable(info.uri)}" if info.uri else "")
    parts = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in seen.size.items())
    explain = "explains its answers" if info.explain else "made with --no-explain"
    lines = [f"{printable(index)}: {seen.num_photos:,} photos, last run {ended}"]
    for folder in seen.folders:
        ids = f", as {printable(folder.label)}/" if folder.label else ""
        away = "" if folder.there else "; not there at the moment"
        lines.append(f"  {printable(folder.path)}{ids}: {folder.num_photos:,} photos{away}")
    lines += [
        f"  model: {model}, of regions by {extractor}",
        f"  engine: {engine}; {explain}; format {info.format}",
        f"  size: {sum(seen.size.values()) / 1e6:,.1f} MB ({parts})",
        "  left out: what is hidden, of the system, or beside a file .nomedia"
        + (f"; --exclude {' '.join(map(printable, settings.exclude))}" if settings.exclude else ""),
    ]
    lines += ["  links out of the folders are followed"] if settings.follow_links else []
    lines += skipped_lines(seen.skipped)
    lines += [f"  damaged: {printable(what)}" for what in seen.damage]
    if not seen.damage:
        lines.append(f"  no damage by a quick look; `vsrn index --check -o {printable(index)}` looks at everything")
    return lines
