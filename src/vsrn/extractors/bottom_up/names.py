"""What Visual Genome's 1,600 classes and 400 attributes are called: files that the user has, one name a line."""

from __future__ import annotations

from pathlib import Path

from vsrn.data.region_store import read_lines
from vsrn.data.regions import RegionNames
from vsrn.errors import DataError
from vsrn.extractors.bottom_up.network import NUM_ATTRIBUTES, NUM_CLASSES

_BACKGROUND = ("__background__", "__no_attribute__")


def read_region_names(classes: Path | str | None = None, attributes: Path | str | None = None) -> RegionNames:
    """Read `objects_vocab.txt` and `attributes_vocab.txt` as they are published with the detector, or one of them.

    Of several names on a line, with commas between, the first counts. A first line for the background, or for no
    attribute, is passed over. Raises `DataError` where a file is missing or has another number of names.
    """
    return RegionNames(
        classes=[] if classes is None else _read(Path(classes), NUM_CLASSES, "classes"),
        attributes=[] if attributes is None else _read(Path(attributes), NUM_ATTRIBUTES, "attributes"),
    )


def _read(path: Path, number: int, what: str) -> list[str]:
    try:
        lines = read_lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name the file of the detector's {what}.") from error
    if lines and lines[0] in _BACKGROUND:
        del lines[0]
    names = [line.split(",")[0].strip() for line in lines]
    if len(names) != number or not all(name.isprintable() and name for name in names):
        raise DataError(
            f"{path} has {len(names):,} lines, {sum(map(bool, names)):,} of them names; the detector's {what} are"
            f" {number:,}, one a line."
        )
    return names
