"""`vsrn compare`: does an extractor make the features that somebody already has?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from vsrn.cli.extract import extractor_of
from vsrn.cli.options import Device, FollowLinks, Json, Photos, Restval, check_from_one, print_json
from vsrn.cli.progress import ProgressBar
from vsrn.files import printable

DIFFERENT = 1
# The features are the same ones when so many regions agree; a few are lost or won at the edge of the selection.
SAME_FROM = 0.9


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
        captions: Captions: Karpathy's JSON, COCO's captions_*.json or their folder, Flickr's .token, CSV or TSV
            (docs/data-formats.md). Their photos are compared.
        split: With --captions, the split that the features are of; needed where the captions have several.
        extractor: As in `vsrn extract`.
        weights: As in `vsrn extract`.
        first: How many photos.
    """
    check_from_one(first=first)
    made = extractor_of(extractor, None, {"weights": weights}, device)
    from vsrn.extractors.compare import compare, find_rows, open_existing, photos_to_compare

    existing = open_existing(features)
    photos_of = photos_to_compare(photos, captions, split, restval=restval, follow_links=follow_links)
    rows, by_ids = find_rows([photo for photo, _ in photos_of], existing)
    chosen = [(*photo, row) for photo, row in zip(photos_of, rows, strict=True) if row is not None][:first]
    with ProgressBar("comparing", total=len(chosen)) as bar:
        compared = compare(chosen, existing, made, bar.advance)
    num_agreeing = sum(photo.num_agreeing for photo in compared)
    # A region without a partner does not agree.
    agreeing = num_agreeing / sum(max(photo.num_ours, photo.num_theirs) for photo in compared)
    result = {
        "existing": str(features),
        "extractor": made.name,
        "fingerprint": made.fingerprint,
        "same": agreeing >= SAME_FROM,
        "agreeing": agreeing,
        "in_place": sum(photo.num_in_place for photo in compared) / num_agreeing if num_agreeing else 0.0,
        "photos": [vars(photo) for photo in compared],
        "rows_by": "ids" if by_ids else "order",
    }
    if json:
        print_json(result)
    else:
        print("\n".join(_lines(result)))
    return 0 if result["same"] else DIFFERENT


def _lines(result: dict[str, Any]) -> list[str]:
    """The result for a person: a line of numbers for each photo, and one sentence."""
    lines = ["     row   regions  agree in place  cosine   least most apart  photo"]
    for photo in result["photos"]:
        ours, theirs = photo["num_ours"], photo["num_theirs"]
        regions = f"{ours}" if ours == theirs else f"{ours}, {theirs}"
        lines.append(
            f"{photo['row']:>8} {regions:>9} {photo['num_agreeing']:>6} {photo['num_in_place']:>8}"
            f" {photo['mean_cosine']:>7.4f} {photo['smallest_cosine']:>7.4f} {photo['largest_difference']:>10.1%}"
            f"  {printable(photo['id'])}"
        )
    agree = f"{result['agreeing']:.1%} of the regions of {len(result['photos'])} photos agree"
    features, how = printable(result["existing"]), "found by their ids" if result["rows_by"] == "ids" else "in order"
    if result["same"]:
        place = f"{result['in_place']:.0%} of them in the same place"
        said = f"SAME: {agree}, {place}; '{result['extractor']}' makes the features of {features}"
    else:
        wrong = f"'{result['extractor']}' does not make the features of {features}, or its rows are other photos'"
        said = f"DIFFERENT: only {agree}; {wrong}"
    return [*lines, f"{said} (rows {how})."]
