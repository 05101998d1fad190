"""The `Work` of `update_index`: files read, extracted and encoded, in its own process or on a cluster's machines."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vsrn.data.photos import FileContent, read_file, read_photo
from vsrn.data.regions import Regions, pad_regions
from vsrn.encoders.base import Encoder
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import PhotoError
from vsrn.extractors.base import Prepared, prepare_pixels
from vsrn.files import printable, read_plain
from vsrn.metrics import FloatArray
from vsrn.search.create import model_files
from vsrn.search.layout import IndexInfo
from vsrn.search.plan import File, skipped_for, stamp_of
from vsrn.search.records import MovedPhoto, PhotoRecord, SkippedRecord
from vsrn.search.writer import Changes, NewPhoto

# A photo's thin side keeps this share of a thumbnail's side, and its long one has at most so many times the side.
LEAST_THIN, MOST_LONG = 3 / 8, 2
JPEG_QUALITY = 82
# The days that `datetime` can tell on every system, in seconds since 1970: years 2 to 9998.
_EARLIEST, _LATEST = -62_100_000_000, 253_300_000_000
# Ids of photos whose files are missing, by the size and the SHA-256 of their content (`Plan.moved`).
Missing = dict[tuple[int, str], list[str]]


class _Ready(NamedTuple):
    """A photo that the extractor can take, and the record of the bytes that it was decoded from."""

    record: PhotoRecord
    prepared: Prepared
    thumbnail: bytes


_Looked = _Ready | MovedPhoto | SkippedRecord


@dataclass(frozen=True)
class Reading:
    """The `Work` that turns files into changes of an index.

    encoder  the model of the index
    missing  photos that a file of the same content takes the place of; those taken are removed from it
    info     the index's: whether it keeps regions, and the size of its thumbnails
    """

    encoder: OnnxEncoder
    missing: Missing
    info: IndexInfo

    @property
    def device(self) -> str:
        """Where photos are extracted, as it was asked for."""
        return self.encoder.device

    def path_of(self, file: File) -> Path:
        """Where a file is."""
        return file.photo.path

    def elsewhere(self) -> Callable[[str, bool], Reading]:
        """What makes the same work on another machine, which gets a copy of the model."""
        folder = self.encoder.folder
        files = {file.relative_to(folder).as_posix(): read_plain(file) for file in model_files(folder)}
        return partial(_same_reading, files, self.missing, self.info)

    def prepare(self, file: File) -> _Looked:
        """The cheap half: what the extractor reads, or what else the file is, or why it is skipped."""
        content: FileContent | None = None
        try:
            content = read_file(file.photo.path)
            return self._look(file, content)
        except PhotoError as error:
            return skipped_for(file.photo, error, content)
        except Exception as error:
            # Whatever one file makes its readers stumble over, MemoryError included, is no reason to stop.
            said = printable(" ".join(str(error).split())[:200]) or type(error).__name__
            return skipped_for(file.photo, PhotoError(f"{printable(file.photo.path)} cannot be read ({said})."))

    def finish(self, files: Sequence[File], looked: Sequence[_Looked]) -> Changes:
        """The expensive half: regions and vectors of those photos of a batch that could be read."""
        ready, moved = list[tuple[File, _Ready]](), list[MovedPhoto]()
        skipped, told = list[SkippedRecord](), list[SkippedRecord]()
        for file, seen in zip(files, looked, strict=True):
            if isinstance(seen, _Ready):
                ready.append((file, seen))
            elif isinstance(seen, MovedPhoto):
                moved.append(seen)
            else:
                away = seen.kind == "unreadable" or seen.kind.startswith("needs-")
                (told if away and file.known is not None and not file.damaged else skipped).append(seen)
        # Rounded as the index keeps them, so that a vector is exactly what they encode to.
        regions = [one.in_half_precision() for one in self.encoder.extract([photo.prepared for _, photo in ready])]
        added = []
        for (file, photo), one, vector in zip(ready, regions, _vectors(self.encoder, regions), strict=True):
            if np.isfinite(vector).all():
                # Of regions that are not kept only their number is, and 92 kB need not travel.
                kept = one if self.info.explain else replace(one, features=one.features[:, :0])
                added.append(NewPhoto(photo.record, vector, kept, photo.thumbnail))
            else:
                error = PhotoError(f"{file.photo.id} has an embedding that is not finite; leave it out.")
                skipped.append(skipped_for(file.photo, error))
        return Changes(added, skipped, moved, told=told)

    def _look(self, file: File, content: FileContent) -> _Ready | MovedPhoto:
        sha256, stamp = hashlib.sha256(content.content).hexdigest(), stamp_of(content)
        # In the file system's own bytes.
        below = os.fsencode(file.photo.path.relative_to(file.root))
        if file.known is not None and not file.damaged and file.known.sha256 == sha256:
            return MovedPhoto(file.photo.id, file.photo.id, below, stamp)
        if file.known is None:
            with contextlib.suppress(LookupError):  # another thread may take the last one
                return MovedPhoto(self.missing[content.size, sha256].pop(), file.photo.id, below, stamp)
        name, extractor, side = printable(file.photo.path), self.encoder.extractor, self.info.thumbnail_side
        # The short side gets about this many pixels at least, and with 3:4 the long one enough for the thumbnail.
        size = extractor.photo_size and max(extractor.photo_size, 3 * side // 4)
        decoded = read_photo(content, target_size=size, name=name)
        # Where the camera says nothing, the file's time by this machine's clock.
        modified = min(max(content.modified_ns / 1e9, _EARLIEST), _LATEST)
        taken = decoded.taken or datetime.fromtimestamp(modified)
        record = PhotoRecord(
            id=file.photo.id,
            path=below,
            **stamp._asdict(),
            sha256=sha256,
            width=decoded.width,
            height=decoded.height,
            taken=taken.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds"),
        )
        return _Ready(record, prepare_pixels(extractor, decoded.pixels, name), thumbnail(decoded.pixels, side))


def _same_reading(
    files: Mapping[str, bytes], missing: Missing, info: IndexInfo, device: str, finishes: bool
) -> Reading:
    """Make the work again from the files of its model. Raises what `OnnxEncoder` and its extractor raise."""
    import torch  # noqa: PLC0415 - the other process needs it for its extractor only

    # All that is needed is loaded while the files are there: a killed process would leave them behind for ever.
    with tempfile.TemporaryDirectory(prefix="vsrn-") as folder:
        for name, content in files.items():
            place = Path(folder, name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        encoder = OnnxEncoder(folder, torch.get_num_threads(), info.files, device)
        _ = encoder.extractor
        if finishes:
            encoder.encode_regions(np.ones((1, 1, encoder.info.feature_dim), np.float32))
    return Reading(encoder, missing, info)


def thumbnail(photo: Image.Image, side: int) -> bytes:
    """A JPEG of a photo whose longer side is at most `side` pixels.

    A panorama is larger, so that something can be seen: its thin side keeps `LEAST_THIN` of `side`. What makes it
    longer than `MOST_LONG` times the side is cut off at both ends.
    """
    long, thin = max(photo.size), min(photo.size)
    scale = min(1.0, max(side / long, LEAST_THIN * side / thin))
    kept = min(long, round(MOST_LONG * side / scale))
    cut = (long - kept) // 2
    box = (cut, 0, cut + kept, thin) if photo.width >= photo.height else (0, cut, thin, cut + kept)
    size = [max(1, round(scale * (box[2 + axis] - box[axis]))) for axis in (0, 1)]
    small = photo.resize((size[0], size[1]), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _vectors(encoder: Encoder, regions: Sequence[Regions]) -> FloatArray:
    """Regions of B photos, of any number each -> (B, D); NaN for a photo whose features are not finite."""
    finite = [place for place, found in enumerate(regions) if np.isfinite(found.features).all()]
    vectors = np.full((len(regions), encoder.config.model.joint_dim), np.nan, dtype=np.float32)
    if finite:
        vectors[finite] = encoder.encode_regions(*pad_regions([regions[place] for place in finite]))
    return vectors
