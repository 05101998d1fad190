"""What other people's files call a photo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from vsrn.files import normal_name

_COCO_NAME = re.compile(r"COCO_[a-z]+20[0-9]{2}_([0-9]{12})")


def as_image_id(name: str) -> str:
    """A number without leading zeros, anything else in the Unicode form in which names are compared.

    >>> as_image_id("000000391895"), as_image_id("a.jpg")
    ('391895', 'a.jpg')
    """
    return name.lstrip("0") or "0" if name.isascii() and name.isdigit() else normal_name(name)


def names_of(photo_id: str, cocoid: int | None = None) -> Iterator[str]:
    """A photo's possible names, the surest first: COCO's number, its path, its file name, that without ending.

    All but numbers in the Unicode form in which names are compared.

    >>> list(names_of("val2014/COCO_val2014_000000391895.jpg"))[1:]
    ['COCO_val2014_000000391895.jpg', 'COCO_val2014_000000391895', '391895']
    """
    path = PurePosixPath(normal_name(photo_id))
    if cocoid is not None:
        yield str(cocoid)
    yield normal_name(photo_id)
    yield path.name
    yield as_image_id(path.stem)
    if (number := coco_number(photo_id)) is not None:
        yield str(number)


def coco_number(photo_id: str) -> int | None:
    """COCO's number of an image, where its file is named as COCO names files.

    >>> coco_number("val2014/COCO_val2014_000000391895.jpg"), coco_number("391895.jpg")
    (391895, None)
    """
    match = _COCO_NAME.fullmatch(PurePosixPath(photo_id).stem)
    return int(match[1]) if match else None
