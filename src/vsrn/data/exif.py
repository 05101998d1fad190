"""What a photo's EXIF says: which way is up, and when it was taken."""

from __future__ import annotations

import re
from datetime import datetime

from PIL import Image
from PIL.ExifTags import IFD, Base

# As EXIF says it, 2024:05:17 14:03:00, and as programs do; what follows the time is a fraction or a zone.
_DATE = re.compile(
    r"\s*(\d{4})[:/.-]\s?(\d{1,2})[:/.-]\s?(\d{1,2})"
    r"(?:[T\s]\s*(\d{1,2}):\s?(\d{1,2})(?::\s?(\d{1,2})(?:[.,]\d*)?)?\s*(?:Z|[+-]\d{1,2}:?\d{2})?)?\s*"
)
_FIRST_YEAR, _LAST_YEAR = 1800, 2200


def orientation_of(image: Image.Image) -> int:
    """How a photo is to be turned, 1 to 8; 1, which is not at all, where that cannot be read."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:  # damaged EXIF is no reason to lose the photo
        return 1


def date_of(image: Image.Image) -> datetime | None:
    """When the photo was taken, digitized, or else changed, by its EXIF: the first of them that is a real date."""
    try:
        exif = image.getexif()
        camera = exif.get_ifd(IFD.Exif)
        written = [camera.get(Base.DateTimeOriginal), camera.get(Base.DateTimeDigitized), exif.get(Base.DateTime)]
        return next((date for date in map(_as_date, written) if date is not None), None)
    except Exception:  # as above
        return None


def _as_date(written: object) -> datetime | None:
    """A date of EXIF, by the clock that it was written by. Cameras whose clock was never set write zeros."""
    text = written.decode("ascii", "replace") if isinstance(written, bytes) else str(written)
    found = _DATE.fullmatch(text.partition("\0")[0])
    if found is None or not _FIRST_YEAR <= int(found[1]) <= _LAST_YEAR:
        return None
    try:
        year, month, day, hour, minute, second = (int(number or 0) for number in found.groups())
        return datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
