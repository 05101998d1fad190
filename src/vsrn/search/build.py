"""A folder of photos -> an index: new photos added, changed ones read again, moved ones known, deleted ones dropped.

update_index("photos/", "idx/", "flickr8k-small")

Killed at any moment and called again, it goes on after the last batch that it had written.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vsrn.data.listing import PhotoFile, find_photos
from vsrn.data.photo_splits import made_ready
from vsrn.data.photos import DecodedPhoto, FileContent, read_file, read_photo
from vsrn.data.regions import Regions, pad_regions
from vsrn.encoders.base import Encoder
from vsrn.errors import ConfigError, PhotoError, SearchError
from vsrn.extractors.base import Prepared, RegionExtractor, prepare_pixels
from vsrn.extractors.extract import cut
from vsrn.files import printable
from vsrn.metrics import FloatArray
from vsrn.search.create import Model, create_index
from vsrn.search.layout import EngineName
from vsrn.search.mend import mend_index
from vsrn.search.plan import File, Moved, doubtful, make_plan, skipped_for, stamp_of
from vsrn.search.records import SkippedRecord, Stamp, local_time
from vsrn.search.writer import Changes, IndexWriter, MovedPhoto, NewPhoto

THUMBNAIL_SIDE = 256
JPEG_QUALITY = 82

# Called as progress(done, total): once before the first batch, and after each batch that has reached the disk.
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class IndexReport:
    """What became of a folder of photos.

    num_photos   that can be found now
    num_added    new since last time
    num_changed  read again
    num_removed  gone since last time
    skipped      files that could not be read, and why
    num_moved    known by their content under other names
    missing      ids of photos whose files are not there and that stay in the index; `prune` removes them
    num_mended   of those read again, photos whose vector, regions or thumbnail in the index were damaged
    """

    num_photos: int
    num_added: int
    num_changed: int
    num_removed: int
    skipped: list[SkippedRecord] = field(default_factory=list)
    num_moved: int = 0
    missing: list[str] = field(default_factory=list)
    num_mended: int = 0


@dataclass(frozen=True)
class _Ready:
    """A photo that the extractor can take.

    stamp, sha256  of the bytes that it was decoded from
    taken          by the camera's clock, or else when the file last changed
    """

    photo: PhotoFile
    stamp: Stamp
    sha256: str
    taken: datetime
    decoded: DecodedPhoto
    prepared: Prepared
    thumbnail: bytes


@dataclass(frozen=True)
class _Touched:
    """A photo whose file has another stamp and its old content."""

    id: str
    stamp: Stamp


@dataclass(frozen=True)
class _Told:
    """A photo of the index whose file cannot be read at the moment: it stays, and the reason is told."""

    record: SkippedRecord


_Looked = _Ready | _Touched | _Told | MovedPhoto | SkippedRecord


def update_index(
    photos: Path | str,
    folder: Path | str,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
    follow_links: bool = False,
    prune: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    device: str | None = None,
    progress: ProgressCallback | None = None,
) -> IndexReport:
    """Bring the index in `folder` in step with the photos below `photos`, making it where there is none.

    Photos whose files have another name and the same content keep what the index has of them. What is damaged in the
    index is read again from the photos concerned.

    model       what encodes them; left out, the index's own or, for a new index, the packaged one
    explain     whether to keep each photo's regions, which explanations need; for a new index True
    engine      what searches the vectors; for a new index "faiss"
    uri         for Milvus: a server, or a Lite file; empty for a file in the index. Where an index has one outside of
                its folder it must be given each time: nothing is contacted because a folder says so
    follow_links  whether to read files and folders outside of `photos` that links in it lead to
    prune       whether to remove photos whose files are gone even where more than a fifth are, or all of a folder that
                is still there, empty; without it they stay and are reported as missing
    batch_size  photos written at a time; what a kill costs at most
    workers     threads that decode ahead of the extractor
    device      where photos are extracted: `cpu`, `cuda`, `mps` or `auto`; left out, where the model that is given
                computes, or `auto`

    Photos that cannot be read are skipped and reported. Raises `SearchError` where the index was made by another
    model, of another folder, with other settings, or is being written; `DataError` where there are no photos, or the
    extractor here is not the model's.
    """
    for name, value in (("batch-size", batch_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be 1 or more.")
    photos, folder = Path(photos), Path(folder)
    found = find_photos(photos, leave_out=folder, follow_links=follow_links)
    if device is None:
        device = model.device if isinstance(model, Encoder) else "auto"
    mend_index(folder, photos, model)
    create_index(folder, photos, model, explain=explain, engine=engine, uri=uri, device=device)
    with IndexWriter(folder, uri, device) as writer:
        return _Update(writer, photos, found).run(batch_size, workers, prune=prune, progress=progress or _no_progress)


class _Update:
    """One pass over a folder of photos."""

    def __init__(self, writer: IndexWriter, root: Path, found: Sequence[PhotoFile]) -> None:
        self.writer, self.encoder, self.root, self.found = writer, writer.encoder, root, found
        self.num_added = self.num_changed = self.num_removed = self.num_moved = 0
        self.told: list[SkippedRecord] = []
        self.missing: list[str] = []

    def run(self, batch_size: int, workers: int, *, prune: bool, progress: ProgressCallback) -> IndexReport:
        """Read what changed and commit it batch by batch; then remove photos whose files are gone."""
        self._follow_root()
        with self.writer.records.read() as view:
            num_known = view.num_photos()
        damaged = self.writer.damaged
        plan = make_plan(self.found, self.writer.records, damaged)
        self.told += plan.told
        done, total = plan.num_same + len(plan.refused) + len(plan.told), len(self.found)
        progress(done, total)
        if plan.refused or plan.gone:
            self._write(Changes(skipped=plan.refused, gone=plan.gone))
        claimed: set[str] = set()
        if plan.files:
            extractor = self.encoder.extractor
            look = partial(_look, extractor, plan.moved, self.root)
            for batch, looked in made_ready(cut(plan.files, batch_size), look, workers):
                claimed |= {photo.old_id for photo in looked if isinstance(photo, MovedPhoto)}
                self._write(self._encode(looked))
                done += len(batch)
                progress(done, total)
        missing = [name for name in plan.missing if name not in claimed]
        self.missing = [] if prune else doubtful(missing, num_known, self.root, damaged)
        kept = set(self.missing)
        if len(missing) > len(kept):
            self._write(Changes(gone=[name for name in missing if name not in kept]))
        self.writer.finish()
        return self._report(num_mended=len(damaged))

    def _report(self, num_mended: int) -> IndexReport:
        with self.writer.records.read() as view:
            return IndexReport(
                num_photos=view.num_photos(),
                num_added=self.num_added,
                num_changed=self.num_changed,
                num_removed=self.num_removed,
                skipped=[*view.skipped(), *self.told],
                num_moved=self.num_moved,
                missing=self.missing,
                num_mended=num_mended,
            )

    def _follow_root(self) -> None:
        """Photos may move as a whole; an index of other photos is refused."""
        with self.writer.records.read() as view:
            before = Path(os.fsdecode(view.state().root))
        now = self.root.absolute()
        if now == before:
            return
        if before.is_dir() and not before.samefile(now):
            raise SearchError(
                f"{self.writer.folder} is the index of {before}, not of {self.root}; choose another -o, or index the"
                " folder that holds both."
            )
        self.writer.move_root(os.fsencode(now))

    def _write(self, changes: Changes) -> None:
        with self.writer.records.read() as view:
            old = {photo.id for photo in changes.added if view.photo(photo.id) is not None}
            gone = [name for name in (*changes.gone, *(file.id for file in changes.skipped)) if view.photo(name)]
        self.writer.write(changes)
        self.num_changed += len(old)
        self.num_added += len(changes.added) - len(old)
        self.num_removed += len(gone)
        self.num_moved += len(changes.moved)

    def _encode(self, looked: Sequence[_Looked]) -> Changes:
        """The expensive half: regions and vectors of those photos of a batch that could be read."""
        ready = [photo for photo in looked if isinstance(photo, _Ready)]
        skipped = [file for file in looked if isinstance(file, SkippedRecord)]
        self.told += [file.record for file in looked if isinstance(file, _Told)]
        regions = [_rounded(found) for found in self.encoder.extract([photo.prepared for photo in ready])]
        added = []
        for photo, found, vector in zip(ready, regions, _vectors(self.encoder, regions), strict=True):
            if np.isfinite(vector).all():
                added.append(_new_photo(photo, found, vector, self.root))
            else:
                error = PhotoError(f"{photo.photo.id} has an embedding that is not finite; leave it out.")
                skipped.append(skipped_for(photo.photo, error))
        touched = [(file.id, file.stamp) for file in looked if isinstance(file, _Touched)]
        return Changes(added, skipped, touched, [file for file in looked if isinstance(file, MovedPhoto)])


def _look(extractor: RegionExtractor, moved: Moved, root: Path, file: File) -> _Looked:
    """The cheap half, in worker threads: what the extractor reads, or what else the file is, or why it is skipped."""
    content: FileContent | None = None
    try:
        content = read_file(file.photo.path)
        sha256 = hashlib.sha256(content.content).hexdigest()
        stamp = stamp_of(content)
        if file.known is not None and not file.damaged and file.known.sha256 == sha256:
            return _Touched(file.photo.id, stamp)
        if file.known is None:
            old_id = moved.claim(content.size, sha256)
            if old_id is not None:
                return MovedPhoto(old_id, file.photo.id, _below(file.photo, root), stamp)
        name = printable(file.photo.path)
        decoded = read_photo(content.content, target_size=extractor.photo_size, name=name)
        prepared = prepare_pixels(extractor, decoded.pixels, name)
        taken = decoded.taken or local_time(content.modified_ns)
        return _Ready(file.photo, stamp, sha256, taken, decoded, prepared, _thumbnail(decoded.pixels))
    except PhotoError as error:
        record = skipped_for(file.photo, error, content)
    except Exception as error:
        # Whatever one file makes its readers stumble over, MemoryError included, is no reason to stop.
        said = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        record = skipped_for(file.photo, PhotoError(f"{printable(file.photo.path)} cannot be read ({said})."))
    stays = file.known is not None and not file.damaged and record.kind == "unreadable"
    return _Told(record) if stays else record


def _below(photo: PhotoFile, root: Path) -> bytes:
    """The path of a photo below the root, in the file system's own bytes."""
    return os.fsencode(photo.path.relative_to(root))


def _thumbnail(photo: Image.Image) -> bytes:
    small = photo.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _rounded(regions: Regions) -> Regions:
    """Regions as the index keeps them, so that a vector is exactly what they encode to."""
    with np.errstate(over="ignore"):
        return replace(regions, features=regions.features.astype(np.float16).astype(np.float32))


def _vectors(encoder: Encoder, regions: Sequence[Regions]) -> FloatArray:
    """Regions of B photos, of any number each -> (B, D); NaN for a photo whose features are not finite."""
    finite = [place for place, found in enumerate(regions) if np.isfinite(found.features).all()]
    vectors = np.full((len(regions), encoder.config.model.joint_dim), np.nan, dtype=np.float32)
    if finite:
        vectors[finite] = encoder.encode_regions(*pad_regions([regions[place] for place in finite]))
    return vectors


def _new_photo(ready: _Ready, regions: Regions, vector: FloatArray, root: Path) -> NewPhoto:
    decoded = ready.decoded
    return NewPhoto(
        id=ready.photo.id,
        path=_below(ready.photo, root),
        stamp=ready.stamp,
        sha256=ready.sha256,
        width=decoded.width,
        height=decoded.height,
        taken=ready.taken.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds"),
        vector=vector,
        regions=regions,
        thumbnail=ready.thumbnail,
    )


def _no_progress(done: int, total: int) -> None:
    """Nobody is watching."""
