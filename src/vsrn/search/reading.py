"""Which files an index has to look at, and the `Work` that reads, extracts and encodes them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import vsrn
from vsrn.data.listing import PhotoFile
from vsrn.data.photos import FORMATS, FileContent, read_file, read_photo
from vsrn.data.regions import pad_regions
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import PhotoError, one_line
from vsrn.extractors.base import Prepared, prepare_pixels
from vsrn.files import printable, read_plain
from vsrn.search.create import model_files
from vsrn.search.database import Records
from vsrn.search.layout import IndexInfo
from vsrn.search.records import Known, MovedPhoto, PhotoRecord, SkippedRecord, Stamp
from vsrn.search.roots import Root, Roots, is_empty
from vsrn.search.writer import Changes, NewPhoto

# Files that were refused are opened again by a version that reads other formats.
READER = f"vsrn {vsrn.__version__}: {', '.join(FORMATS)}"
# Where more of the photos than this are missing, a disk is more likely away than so much deleted.
MOST_MISSING = 0.2
# A photo's thin side keeps this share of a thumbnail's side, and its long one has at most so many times the side.
LEAST_THIN, MOST_LONG = 3 / 8, 2
JPEG_QUALITY = 82
# The days that `datetime` can tell on every system, in seconds since 1970: years 2 to 9998.
_EARLIEST, _LATEST = -62_100_000_000, 253_300_000_000
# Ids of photos whose files are missing, by the size and the SHA-256 of their content.
Missing = dict[tuple[int, str], list[str]]


@dataclass(frozen=True)
class File:
    """A file to look at.

    root     the folder of the index that it lies in
    known    what the index knows of it; None for a new one
    damaged  whether its vector, regions or thumbnail are damaged, so that it must be read again
    """

    photo: PhotoFile
    root: Path
    known: Known | None
    damaged: bool


@dataclass(frozen=True)
class Plan:
    """What is to do.

    files      to look at
    changes    what is known without opening a file: those that are not to be opened, and skipped ones that are gone
    missing    ids of photos whose files are not there
    moved      the same by their content; new files of the same content take them from here
    num_known  photos that the index has of each folder, by its label
    """

    files: list[File]
    changes: Changes
    missing: list[str]
    moved: Missing
    num_known: Mapping[str, int]


def make_plan(found: Sequence[PhotoFile], roots: Roots, records: Records, damaged: Collection[str]) -> Plan:
    """Compare what is in the folders with what is known of it; `damaged` are ids of photos to read again anyway."""
    with records.read() as view:
        known, skipped = view.known(), {file.id: file for file in view.skipped()}
    files: list[File] = []
    refused: list[SkippedRecord] = []
    told: list[SkippedRecord] = []
    seen: set[str] = set()
    for photo in found:
        if photo.refusal is not None:
            # A name that was a photo once, or is one beside this: neither may be lost by a refusal.
            (told if photo.id in known or photo.id in seen else refused).append(skipped_for(photo, photo.refusal))
            continue
        seen.add(photo.id)
        file = File(photo, roots.of(photo.id).path, known.get(photo.id), photo.id in damaged)
        if file.damaged or not _is_same(photo.path, file.known, skipped.get(photo.id)):
            files.append(file)
    unlisted = tuple(file.id for file in refused if file.id.endswith("/"))
    # What lies in a folder that cannot be listed is not gone.
    missing = [name for name in known if name not in seen and not (unlisted and name.startswith(unlisted))]
    moved: Missing = defaultdict(list)
    for name in missing:
        if name not in damaged:
            moved[known[name].stamp.size, known[name].sha256].append(name)
    there = seen | {file.id for file in refused}
    gone = [name for name in skipped if name not in there]
    num_known = Counter(roots.of(name).label for name in known)
    return Plan(files, Changes(skipped=refused, told=told, gone=gone), missing, moved, num_known)


def doubtful(missing: Collection[str], num_known: int, root: Root) -> list[str]:
    """Missing photos of a folder that are more likely away than deleted: too many, or all of an empty folder below it.

    num_known  photos that the index had of the folder
    """
    if len(missing) > MOST_MISSING * num_known:
        return list(missing)
    parents = {name: (root.path / root.below(name)).parent for name in missing}
    empty = {parent: _is_suddenly_empty(parent, root.path) for parent in set(parents.values())}
    return [name for name, parent in parents.items() if empty[parent]]


def skipped_for(photo: PhotoFile, error: PhotoError, content: FileContent | None = None) -> SkippedRecord:
    """The record of a file that has no photo; what its content decides is remembered with the file's stamp."""
    lasts = error.kind == "no-photo" or error.kind.startswith("needs-")
    stamp = stamp_of(content) if content is not None and lasts else None
    return SkippedRecord(photo.id, str(error), error.kind, stamp, READER)


def stamp_of(content: FileContent) -> Stamp:
    """The stamp that a file had when it was read."""
    return Stamp.of(content.size, content.modified_ns, content.changed_ns, content.inode)


def _is_same(path: Path, known: Known | None, refused: SkippedRecord | None) -> bool:
    """Whether a file is as it was when it was indexed, or found to be no photo."""
    try:
        stamp = Stamp.of_status(path.stat())
    except (OSError, ValueError):  # reading it will say why
        return False
    if known is not None:
        return known.stamp.is_of(stamp)
    return refused is not None and refused.reader == READER and refused.stamp is not None and refused.stamp.is_of(stamp)


def _is_suddenly_empty(folder: Path, root: Path) -> bool:
    """Whether the nearest folder above missing photos that is still there, below the root, holds nothing to see."""
    while folder != root and not folder.is_dir():
        folder = folder.parent
    return folder != root and is_empty(folder)


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
        """The first half: what the extractor reads, or what else the file is, or why it is skipped."""
        content: FileContent | None = None
        try:
            content = read_file(file.photo.path)
            return self._look(file, content)
        except PhotoError as error:
            return skipped_for(file.photo, error, content)
        except Exception as error:
            # Whatever one file makes its readers stumble over, MemoryError included, is no reason to stop.
            said = printable(f"{file.photo.path} cannot be read ({one_line(error)}).")
            return skipped_for(file.photo, PhotoError(said))

    def finish(self, files: Sequence[File], looked: Sequence[_Looked]) -> Changes:
        """The second half: regions and vectors of those photos of a batch that could be read."""
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
        # NaN for a photo whose features are not finite.
        vectors = np.full((len(regions), self.info.joint_dim), np.nan, dtype=np.float32)
        finite = [place for place, one in enumerate(regions) if np.isfinite(one.features).all()]
        if finite:
            vectors[finite] = self.encoder.encode_regions(*pad_regions([regions[place] for place in finite]))
        added = []
        for (file, photo), one, vector in zip(ready, regions, vectors, strict=True):
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
