"""`vsrn compare`: does an extractor make the features that somebody already has?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.extract import Photos
from vsrn.cli.options import Device, Json, print_json
from vsrn.cli.progress import progress_bar, say
from vsrn.errors import ConfigError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.extractors.compare import Comparison

Features = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES.npy")]
DIFFERENT = 1


def main(
    photos: Photos,
    features: Features,
    *,
    captions: Path | None = None,
    split: str | None = None,
    restval: bool = False,
    extractor: str = "grid",
    weights: Path | None = None,
    follow_links: bool = False,
    first: int = 20,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Extract a few photos and compare their regions with features that you have; nothing is written.

    $ vsrn compare photos/ data/mine/photos_ims.npy
    $ vsrn compare photos/ test_ims.npy --captions dataset_coco.json --split test --extractor bottom-up --weights W.bin

    Exit status 0 where the extractor, with the weights you have, makes these features, 1 where not. Rows are found by
    the ids beside the file; else they are the photos, or the captions' split, in order.

    Args:
        photos: Folder of photos.
        features: (images, regions, numbers) or (images, numbers), float16 or float32.
        captions: Karpathy JSON, whose photos are compared.
        split: With --captions, the split that the features are of; needed where the JSON has several.
        restval: With --captions, count COCO's `restval` images as `train`.
        extractor: As in `vsrn extract`.
        weights: As in `vsrn extract`.
        follow_links: Read photos also where links lead out of the folder.
        first: How many photos.
        json: Print the result as JSON.
    """
    if first < 1:
        raise ConfigError(f"--first is {first}; it must be 1 or more.")
    say(f"Loading the extractor '{extractor}'...")
    from vsrn.extractors.base import make_extractor
    from vsrn.extractors.compare import compare, find_rows, open_existing, photos_to_compare

    # A person typed the name, so what it stands for may be downloaded.
    made = make_extractor(extractor, weights, download=True, device=device)
    existing = open_existing(features)
    files, captioned = photos_to_compare(photos, captions, split, restval=restval, follow_links=follow_links)
    pairs, by_ids = find_rows(files, existing, captioned)
    with (bar := progress_bar("comparing", unit="photos")).of(len(pairs[:first])):
        comparison = compare(pairs[:first], existing, made, by_ids=by_ids, advance=bar.advance)
    if json:
        print_json(_as_json(comparison, features, made.name, made.fingerprint))
    else:
        print("\n".join([*_lines(comparison), verdict(comparison, features, made.name)]))
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


def _lines(comparison: Comparison) -> list[str]:
    """One line a photo, numbers first."""
    lines = ["     row   regions  agree in place  cosine   least most apart  photo"]
    for photo in comparison.photos:
        regions = f"{photo.num_ours}" + ("" if photo.num_ours == photo.num_theirs else f", {photo.num_theirs}")
        lines.append(
            f"{photo.row:>8} {regions:>9} {photo.num_agreeing:>6} {photo.num_in_place:>8} {photo.mean_cosine:>7.4f}"
            f" {photo.smallest_cosine:>7.4f} {photo.largest_difference:>10.1%}  {printable(photo.id)}"
        )
    return lines


def _as_json(comparison: Comparison, existing: Path, extractor: str, fingerprint: str) -> dict[str, object]:
    return {
        "existing": str(existing),
        "extractor": extractor,
        "fingerprint": fingerprint,
        "same": comparison.same,
        "agreeing": comparison.agreeing,
        "in_place": comparison.in_place,
        "rows_by": "ids" if comparison.by_ids else "order",
        "photos": [dataclasses.asdict(photo) for photo in comparison.photos],
    }
