"""`vsrn compare`: does an extractor make the features that somebody already has?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.options import Device, FollowLinks, Json, Photos, Restval, print_json
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import ConfigError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.extractors.compare import Comparison

DIFFERENT = 1


def main(
    photos: Photos,
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES.npy")],
    *,
    captions: Path | None = None,
    split: str | None = None,
    restval: Restval = False,
    extractor: str = "grid",
    weights: Path | None = None,
    follow_links: FollowLinks = False,
    first: int = 20,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Extract a few photos and compare their regions with features that you have; nothing is written.

    $ vsrn compare photos/ data/mine/photos_ims.npy
    $ vsrn compare photos/ test_ims.npy --captions dataset_coco.json --split test --extractor bottom-up --weights W.bin

    Exit code 0 where the extractor makes these features, 1 where not. Rows are found by the ids beside the file; else
    they are the photos, or the captions' split, in order.

    Args:
        features: (images, regions, numbers) or (images, numbers), float16 or float32.
        captions: Karpathy JSON, whose photos are compared.
        split: With --captions, the split that the features are of; needed where the JSON has several.
        extractor: As in `vsrn extract`.
        weights: As in `vsrn extract`.
        first: How many photos.
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
    with ProgressBar("comparing", total=len(pairs[:first])) as bar:
        comparison = compare(pairs[:first], existing, made, by_ids=by_ids, advance=bar.advance)
    if json:
        print_json(
            {
                "existing": str(features),
                "extractor": made.name,
                "fingerprint": made.fingerprint,
                "same": comparison.same,
                "agreeing": comparison.agreeing,
                "in_place": comparison.in_place,
                "rows_by": "ids" if comparison.by_ids else "order",
                "photos": [vars(photo) for photo in comparison.photos],
            }
        )
    else:
        _show(comparison, printable(features), made.name)
    return 0 if comparison.same else DIFFERENT


def _show(comparison: Comparison, features: str, extractor: str) -> None:
    """Print one line a photo, numbers first, and then the verdict."""
    print("     row   regions  agree in place  cosine   least most apart  photo")
    for photo in comparison.photos:
        regions = f"{photo.num_ours}" + ("" if photo.num_ours == photo.num_theirs else f", {photo.num_theirs}")
        print(
            f"{photo.row:>8} {regions:>9} {photo.num_agreeing:>6} {photo.num_in_place:>8} {photo.mean_cosine:>7.4f}"
            f" {photo.smallest_cosine:>7.4f} {photo.largest_difference:>10.1%}  {printable(photo.id)}"
        )
    share = f"{comparison.agreeing:.1%} of the regions of {len(comparison.photos)} photos agree"
    rows = "rows found by their ids" if comparison.by_ids else "rows taken in the photos' order"
    if comparison.same:
        place = f"{comparison.in_place:.0%} of them in the same place"
        print(f"SAME: {share}, {place}; '{extractor}' makes the features of {features} ({rows}).")
    else:
        print(
            f"DIFFERENT: only {share}; '{extractor}' does not make the features of {features}, or its rows are other"
            f" photos' ({rows})."
        )
