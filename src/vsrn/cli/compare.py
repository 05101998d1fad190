"""`vsrn extract --compare`: an extractor against features that somebody already has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vsrn.cli.options import print_json, printable
from vsrn.cli.progress import progress_bar
from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from vsrn.data.annotations import CaptionedPhoto
    from vsrn.data.photos import PhotoFile
    from vsrn.extractors.base import RegionExtractor
    from vsrn.extractors.compare import Comparison

DIFFERENT = 1


def compare_with(
    existing: Path,
    photos: Path,
    extractor: RegionExtractor,
    *,
    captions: Path | None,
    splits: tuple[str, ...],
    restval: bool,
    follow_links: bool,
    first: int,
    json: bool,
) -> int:
    """Extract the first photos that the file has a row for, compare, and print; 0 where they are the same, else 1."""
    from rich.console import Console

    from vsrn.extractors.compare import compare, find_rows, open_existing

    store = open_existing(existing)
    files, captioned = _photos(photos, captions, splits, restval=restval, follow_links=follow_links)
    pairs, by_ids = find_rows(files, store, captioned)
    pairs = pairs[:first]
    with (bar := progress_bar("comparing", unit="photos")).of(len(pairs)):
        comparison = compare(pairs, store, extractor, by_ids=by_ids, advance=bar.advance)
    if json:
        print_json(_as_json(comparison, existing, extractor))
    else:
        Console().print(_table(comparison))
        print(verdict(comparison, existing, extractor.name))
    return 0 if comparison.same else DIFFERENT


def verdict(comparison: Comparison, existing: Path, extractor: str) -> str:
    """One sentence for the person who asked."""
    features = printable(existing)
    share, in_place = f"{comparison.agreeing:.1%}", f"{comparison.in_place:.0%}"
    rows = "rows found by their ids" if comparison.by_ids else "rows taken in the photos' order"
    if comparison.same:
        return (
            f"SAME: {share} of the regions of {len(comparison.photos)} photos agree, {in_place} of them in the same"
            f" place; '{extractor}' makes the features of {features} ({rows})."
        )
    return (
        f"DIFFERENT: only {share} of the regions of {len(comparison.photos)} photos agree; '{extractor}' does not"
        f" make the features of {features}, or its rows are other photos' ({rows})."
    )


def _photos(
    photos: Path, captions: Path | None, splits: tuple[str, ...], *, restval: bool, follow_links: bool
) -> tuple[list[PhotoFile], list[CaptionedPhoto]]:
    from vsrn.data.annotations import read_karpathy
    from vsrn.data.photos import PhotoFile, PhotoNames, find_photos
    from vsrn.extractors.extract import choose_splits

    if captions is None:
        return [photo for photo in find_photos(photos, follow_links=follow_links) if photo.refusal is None], []
    found = read_karpathy(captions, restval=restval)
    wanted = choose_splits(captions, found, splits)
    if len(wanted) > 1:
        raise ConfigError(f"--compare is about one split of {captions}; name it with --splits {wanted[-1]}.")
    captioned = found[wanted[0]]
    names = PhotoNames(photos)
    return [PhotoFile(photo.id, names.path(photo.id)) for photo in captioned], captioned


def _table(comparison: Comparison) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("photo", "row", "regions", "agree", "in place", "mean\ncosine", "smallest\ncosine", "largest\ndiff."):
        table.add_column(head, justify="left" if head == "photo" else "right", overflow="fold")
    for photo in comparison.photos:
        alike = photo.num_ours == photo.num_theirs
        table.add_row(
            Text(printable(photo.id)),
            str(photo.row),
            str(photo.num_ours) if alike else f"{photo.num_ours}, {photo.num_theirs}",
            str(photo.num_agreeing),
            str(photo.num_in_place),
            f"{photo.mean_cosine:.4f}",
            f"{photo.smallest_cosine:.4f}",
            f"{photo.largest_difference:.1%}",
        )
    return table


def _as_json(comparison: Comparison, existing: Path, extractor: RegionExtractor) -> dict[str, object]:
    return {
        "existing": str(existing),
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "same": comparison.same,
        "agreeing": comparison.agreeing,
        "in_place": comparison.in_place,
        "rows_by": "ids" if comparison.by_ids else "order",
        "photos": [dataclasses.asdict(photo) for photo in comparison.photos],
    }
