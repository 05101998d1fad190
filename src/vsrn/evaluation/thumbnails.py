"""Photos as small pictures inside an HTML page; a photo that cannot be shown says why."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from vsrn.data.photos import PhotoNames, decode_photo
from vsrn.errors import PhotoError
from vsrn.evaluation.wording import escaped

THUMBNAIL_SIZE = 256
JPEG_QUALITY = 82


class Thumbnails:
    """Turns image ids into `<img>` elements that hold their pixels.

    photos  the folder that ids are paths in; nothing outside it is ever read.
            None: every picture is replaced by its id
    """

    def __init__(self, photos: Path | None) -> None:
        self.folder = None if photos is None else photos.resolve()
        self._names = PhotoNames(self.folder or Path())
        self._seen: dict[str, str | None] = {}

    def element(self, image_id: str, description: str) -> str:
        """An `<img>` of at most 256 pixels a side, or a labelled placeholder.

        description  what the picture is there for; becomes its alternative text
        """
        if image_id not in self._seen:
            self._seen[image_id] = self._jpeg(image_id)
        jpeg = self._seen[image_id]
        alt = escaped(f"{description}: {image_id}")
        if jpeg is None:
            label = escaped(image_id) + ("<small>photo not available</small>" if self.folder else "")
            return f'<div class="photo missing" role="img" aria-label="{alt}">{label}</div>'
        return f'<img class="photo" src="data:image/jpeg;base64,{jpeg}" alt="{alt}">'

    def _jpeg(self, image_id: str) -> str | None:
        """The thumbnail in base64, or None where the photo is missing, damaged or not in the folder."""
        path = self._inside(image_id)
        if path is None:
            return None
        try:
            photo = decode_photo(path, target_size=THUMBNAIL_SIZE)
        except PhotoError:
            return None
        photo.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        # Comments and positions that a camera wrote stay out of a page that is passed on.
        photo.info = {}
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def _inside(self, image_id: str) -> Path | None:
        """The file that an id names, unless it leads out of the folder: absolute, by `..` or by a link."""
        if self.folder is None:
            return None
        try:
            path = self._names.path(image_id).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a circle of links
            return None
        return path if ".." not in Path(image_id).parts and path.is_relative_to(self.folder) else None
