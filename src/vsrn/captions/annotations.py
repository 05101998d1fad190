"""Captions of photos, whichever of the two published layouts they come in."""

from __future__ import annotations

from pathlib import Path

from vsrn.captions.coco import joined, read_coco
from vsrn.captions.karpathy import CaptionedPhoto, read_karpathy
from vsrn.errors import DataError

RESTVAL = "restval"


def read_annotations(path: Path | str, *, restval: bool = False) -> dict[str, list[CaptionedPhoto]]:
    """Splits by name, from a Karpathy JSON, or from a folder of COCO's caption annotations.

    restval  whether the images that COCO's `dev` and `test` left over count as `train`

    Raises `DataError` where there is nothing at the path, or what is there is malformed.
    """
    path = Path(path)
    if not path.is_dir():
        return read_karpathy(path, restval=restval)
    splits = read_coco(path)
    if restval:
        splits["train"] = joined([*splits.get("train", []), *splits.pop(RESTVAL, [])])
        if not splits["train"]:
            raise DataError(f"{path} has neither train nor restval; leave out restval.")
    return splits
