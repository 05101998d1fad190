"""What becomes of the files that an index has to look at: photos read, extracted and encoded, batch by batch.

It is the `Work` of `update_index`, in its own process or on the machines of a cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vsrn.data.listing import PhotoFile
from vsrn.data.photos import FileContent, read_file, read_photo
from vsrn.data.regions import Regions, pad_regions
from vsrn.encoders.base import Encoder
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import PhotoError
from vsrn.extractors.base import Prepared, RegionExtractor, prepare_pixels
from vsrn.files import printable, read_plain
from vsrn.metrics import FloatArray
from vsrn.search.create import model_files
from vsrn.search.plan import File, skipped_for, stamp_of
from vsrn.search.records import MovedPhoto, PhotoRecord, SkippedRecord, local_time
from vsrn.search.writer import Changes, NewPhoto

# A photo's thin side keeps this share of a thumbnail's side, and its long one has at most so many times the side.
LEAST_THIN, MOST_LONG = 3 / 8, 2
JPEG_QUALITY = 82
# Ids of photos whose files are missing, by the size and the SHA-256 of their content (`Plan.moved`).
Missing = dict[tuple[int, str], list[str]]


class _Ready(NamedTuple):
    """A photo that the extractor can take.

    record  of the bytes that it was decoded from
    """

    photo: PhotoFile
    record: PhotoRecord
    prepared: Prepared
    thumbnail: bytes


class _Told(NamedTuple):
    """A photo of the index whose file cannot be read at the moment: it stays, and the reason is told."""

    record: SkippedRecord


_Looked = _Ready | _Told | MovedPhoto | SkippedRecord


class Read(NamedTuple):
    """What became of a batch of files.

    changes  to be made to the index
    told     photos of the index whose files cannot be read at the moment
    """

    changes: Changes
    told: list[SkippedRecord]


class Reading:
    """The `Work` that turns files into changes of an index."""

    def __init__(
        self, encoder: OnnxEncoder, missing: Missing, root: Path, *, explain: bool, thumbnail_side: int
    ) -> None:
        """
        encoder  the model of the index
        missing  photos that a file of the same content takes the place of; those taken are removed from it
        root     the folder of the photos
        explain  whether the index keeps regions
        thumbnail_side  as in `IndexInfo`
        """
        self.encoder, self.missing, self.root, self.explain = encoder, missing, root, explain
        self.thumbnail_side = thumbnail_side

    @property
    def device(self) -> str:
        """Where photos are extracted, as it was asked for."""
        return self.encoder.device

    def path_of(self, file: File) -> Path:
        """Where a file is."""
        return file.photo.path

    def elsewhere(self) -> Callable[[str, bool], Reading]:
        """What makes the same work on another machine, which gets a copy of the model."""
        encoder = self.encoder
        files = {file.relative_to(encoder.folder).as_posix(): read_plain(file) for file in model_files(encoder.folder)}
        return partial(
            _same_reading, files, encoder.checksums, self.missing, self.root, self.explain, self.thumbnail_side
        )

    def prepare(self, file: File) -> _Looked:
        """The cheap half: what the extractor reads, or what else the file is, or why it is skipped."""
        return _look(self.encoder.extractor, self.missing, self.root, file, self.thumbnail_side)

    def finish(self, _files: Sequence[File], looked: Sequence[_Looked]) -> Read:
        """The expensive half: regions and vectors of those photos of a batch that could be read."""
        ready = [photo for photo in looked if isinstance(photo, _Ready)]
        skipped = [file for file in looked if isinstance(file, SkippedRecord)]
        found = self.encoder.extract([photo.prepared for photo in ready])
        # As the index keeps them, so that a vector is exactly what they encode to.
        regions = [one.in_half_precision() for one in found]
        added = []
        for photo, one, vector in zip(ready, regions, _vectors(self.encoder, regions), strict=True):
            if np.isfinite(vector).all():
                # Of regions that are not kept only their number is, and 92 kB need not travel.
                kept = one if self.explain else replace(one, features=one.features[:, :0])
                added.append(NewPhoto(photo.record, vector, kept, photo.thumbnail))
            else:
                error = PhotoError(f"{photo.photo.id} has an embedding that is not finite; leave it out.")
                skipped.append(skipped_for(photo.photo, error))
        moved = [file for file in looked if isinstance(file, MovedPhoto)]
        return Read(Changes(added, skipped, moved), [file.record for file in looked if isinstance(file, _Told)])


def _same_reading(
    files: Mapping[str, bytes],
    checksums: Mapping[str, str] | None,
    missing: Missing,
    root: Path,
    explain: bool,
    thumbnail_side: int,
    device: str,
    finishes: bool,
) -> Reading:
    """Make the work again from the files of its model. Raises what `OnnxEncoder` and its extractor raise."""
    import torch  # noqa: PLC0415 - the other process needs it for its extractor only

    # All that is needed is loaded while the files are there: a killed process would leave them behind for ever.
    with tempfile.TemporaryDirectory(prefix="vsrn-") as folder:
        for name, content in files.items():
            place = Path(folder, name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        encoder = OnnxEncoder(folder, torch.get_num_threads(), checksums, device)
        _ = encoder.extractor
        if finishes:
            encoder.encode_regions(np.ones((1, 1, encoder.info.feature_dim), np.float32))
    return Reading(encoder, missing, root, explain=explain, thumbnail_side=thumbnail_side)


def _look(extractor: RegionExtractor, missing: Missing, root: Path, file: File, thumbnail_side: int) -> _Looked:
    content: FileContent | None = None
    try:
        content = read_file(file.photo.path)
        sha256 = hashlib.sha256(content.content).hexdigest()
        # In the file system's own bytes.
        below, stamp = os.fsencode(file.photo.path.relative_to(root)), stamp_of(content)
        if file.known is not None and not file.damaged and file.known.sha256 == sha256:
            return MovedPhoto(file.photo.id, file.photo.id, below, stamp)
        if file.known is None:
            with contextlib.suppress(LookupError):  # another thread may take the last one
                return MovedPhoto(missing[content.size, sha256].pop(), file.photo.id, below, stamp)
        name = printable(file.photo.path)
        # Decoded pixels are at least twice as many a side as asked for: enough for the thumbnail too.
        size = extractor.photo_size and max(extractor.photo_size, thumbnail_side // 2)
        decoded = read_photo(content.content, target_size=size, name=name)
        prepared = prepare_pixels(extractor, decoded.pixels, name)
        taken = decoded.taken or local_time(content.modified_ns)
        record = PhotoRecord(
            id=file.photo.id,
            path=below,
            **stamp._asdict(),
            sha256=sha256,
            width=decoded.width,
            height=decoded.height,
            taken=taken.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds"),
        )
        return _Ready(file.photo, record, prepared, thumbnail(decoded.pixels, thumbnail_side))
    except PhotoError as error:
        skipped = skipped_for(file.photo, error, content)
    except Exception as error:
        # Whatever one file makes its readers stumble over, MemoryError included, is no reason to stop.
        said = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        skipped = skipped_for(file.photo, PhotoError(f"{printable(file.photo.path)} cannot be read ({said})."))
    stays = file.known is not None and not file.damaged and skipped.kind == "unreadable"
    return _Told(skipped) if stays else skipped


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
