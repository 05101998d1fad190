"""A folder of photos -> an index: new photos added, changed ones read again, deleted ones dropped.

update_index("photos/", "idx/", "flickr8k-small")

Killed at any moment and called again, it goes on behind the last batch it had settled.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vsrn.errors import ConfigError, PhotoError, SearchError
from vsrn.inference.exported import ExportedEncoder
from vsrn.inference.photos import learned_extractor
from vsrn.regions.batches import made_ready
from vsrn.regions.extractor import Prepared, RegionExtractor, prepare_pixels
from vsrn.regions.photos import DecodedPhoto, PhotoFile, find_photos, read_photo
from vsrn.regions.store import FloatArray, Regions, pad_regions
from vsrn.search.create import Model, create_index
from vsrn.search.layout import INFO_FILE, MODEL_FOLDER, EngineName
from vsrn.search.records import Known, Records, SkippedRecord, local_time
from vsrn.search.writer import IndexWriter, NewPhoto, Settled

THUMBNAIL_SIDE = 256
JPEG_QUALITY = 82
BYTES_AT_ONCE = 1 << 20

# Called as progress(settled, total), once before the first batch and again after each has reached the disk.
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class IndexReport:
    """What became of a folder of photos.

    num_photos   that can be found now
    num_added    new since last time
    num_changed  read again
    num_removed  gone since last time
    skipped      files that could not be read, and why
    """

    num_photos: int
    num_added: int
    num_changed: int
    num_removed: int
    skipped: list[SkippedRecord] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """A file to look at.

    known  what the index knows of it
    size, modified_ns  as they were before anything of it was read: if it changes meanwhile, it is seen next time
    """

    photo: PhotoFile
    known: Known | None
    size: int
    modified_ns: int


@dataclass(frozen=True)
class _Ready:
    """A photo that the extractor can take."""

    file: _File
    sha256: str
    decoded: DecodedPhoto
    prepared: Prepared
    thumbnail: bytes


@dataclass(frozen=True)
class _Plan:
    """What is to do.

    files  to look at
    gone   ids of what is there no more
    twins  files that cannot be told from others
    """

    files: list[_File]
    gone: list[str]
    twins: list[SkippedRecord]


def update_index(
    photos: Path | str,
    folder: Path | str,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> IndexReport:
    """Bring the index in `folder` in step with the photos below `photos`, making it where there is none.

    model       what encodes them; left out, the index's own or, for a new index, the packaged one
    explain     whether to keep each photo's regions, which explanations need; for a new index True
    engine      what searches the vectors; for a new index "faiss"
    uri         for Milvus: a server, or a Lite file; empty for a file in the index
    batch_size  photos settled at a time; what a kill costs at most
    workers     threads that decode ahead of the extractor

    Photos that cannot be read are skipped and reported. Raises `SearchError` where the index was made by another
    model, of another folder, with other settings, or is being written; `DataError` where there are no photos, or the
    extractor here is not the model's.
    """
    for name, value in (("batch-size", batch_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be 1 or more.")
    photos, folder = Path(photos), Path(folder)
    found = find_photos(photos, leave_out=folder)
    create_index(folder, photos, model, explain=explain, engine=engine, uri=uri)
    with IndexWriter(folder) as writer:
        encoder = ExportedEncoder.load(folder / MODEL_FOLDER)
        if encoder.info.model != writer.info.model:
            raise SearchError(f"{folder / MODEL_FOLDER} is not the model in {INFO_FILE}; delete the index.")
        return _Update(writer, encoder, photos, found).run(batch_size, workers, progress)


class _Update:
    """One pass over a folder of photos."""

    def __init__(self, writer: IndexWriter, encoder: ExportedEncoder, root: Path, found: Sequence[PhotoFile]) -> None:
        self.writer, self.encoder, self.root, self.found = writer, encoder, root, found
        self.num_added = self.num_changed = self.num_removed = 0

    def run(self, batch_size: int, workers: int, progress: ProgressCallback | None) -> IndexReport:
        """Look at what changed, batch by batch, and settle each."""
        self._follow_root()
        plan = _plan(self.found, self.writer.records)
        done, total = len(self.found) - len(plan.files), len(self.found)
        seen = progress or _no_progress
        seen(done, total)
        if plan.gone:
            self._settle(Settled(gone=plan.gone))
        if plan.files:
            extractor = learned_extractor(self.encoder.learned_from, self.encoder.extractor_weights)
            for batch, looked in made_ready(plan.files, partial(_look, extractor), batch_size, workers):
                self._settle(self._encode(extractor, looked))
                done += len(batch)
                seen(done, total)
        self.writer.finish()
        with self.writer.records.read() as view:
            counts = (view.num_photos(), self.num_added, self.num_changed, self.num_removed)
            return IndexReport(*counts, skipped=[*view.skipped(), *plan.twins])

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

    def _settle(self, settled: Settled) -> None:
        with self.writer.records.read() as view:
            old = {photo.id for photo in settled.added if view.photo(photo.id) is not None}
            gone = [name for name in (*settled.gone, *(file.id for file in settled.skipped)) if view.photo(name)]
        self.writer.settle(settled)
        self.num_changed += len(old)
        self.num_added += len(settled.added) - len(old)
        self.num_removed += len(gone)

    def _encode(self, extractor: RegionExtractor, looked: Sequence[_Ready | SkippedRecord | _File]) -> Settled:
        """The dear half: regions and vectors of those photos of a batch that could be read."""
        ready = [photo for photo in looked if isinstance(photo, _Ready)]
        skipped = [file for file in looked if isinstance(file, SkippedRecord)]
        touched = [(file.photo.id, file.size, file.modified_ns) for file in looked if isinstance(file, _File)]
        regions = [_rounded(found) for found in extractor([photo.prepared for photo in ready])]
        added = []
        for photo, found, vector in zip(ready, regions, _vectors(self.encoder, regions), strict=True):
            if np.isfinite(vector).all():
                added.append(_new_photo(photo, found, vector, self.root))
            else:
                reason = f"{photo.file.photo.path} has an embedding that is not finite; leave it out."
                skipped.append(_skipped(photo.file, reason))
        return Settled(added, skipped, touched)


def _plan(found: Sequence[PhotoFile], records: Records) -> _Plan:
    """Compare what is in the folder with what is known of it."""
    with records.read() as view:
        known = view.known()
        refused = {file.id for file in view.skipped()}
    files: list[_File] = []
    twins: list[SkippedRecord] = []
    seen: set[str] = set()
    for photo in found:
        if photo.id in seen:
            # Names that are no text are written with escapes, and may then read alike.
            twins.append(SkippedRecord(photo.id, f"two files read as {photo.id}; rename one of them."))
            continue
        seen.add(photo.id)
        file = _File(photo, known.get(photo.id), *_stat(photo.path))
        # What was refused is read again each time: permissions change without a trace in a file's time.
        if file.known is None or (file.known.size, file.known.modified_ns) != (file.size, file.modified_ns):
            files.append(file)
    return _Plan(files, [name for name in (*known, *refused) if name not in seen], twins)


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of a file; of one that cannot be looked at, zeros: reading it will say why."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _look(extractor: RegionExtractor, file: _File) -> _Ready | SkippedRecord | _File:
    """The cheap half, in worker threads: what the extractor reads, or why it cannot, or the file if it is as known."""
    path = file.photo.path
    try:
        if file.known is not None and file.known.size == file.size and _sha256(path) == file.known.sha256:
            return file
        decoded = read_photo(path, target_size=extractor.photo_size)
        prepared = prepare_pixels(extractor, decoded.pixels, str(path))
        return _Ready(file, _sha256(path), decoded, prepared, _thumbnail(decoded.pixels))
    except PhotoError as error:
        return _skipped(file, str(error))
    except OSError as error:
        return _skipped(file, f"{path} cannot be read ({error.strerror}); check its permissions.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thumbnail(photo: Image.Image) -> bytes:
    small = photo.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _skipped(file: _File, reason: str) -> SkippedRecord:
    return SkippedRecord(file.photo.id, reason)


def _rounded(regions: Regions) -> Regions:
    """Regions as the index keeps them, so that a vector is exactly what they encode to."""
    return replace(regions, features=regions.features.astype(np.float16).astype(np.float32))


def _vectors(encoder: ExportedEncoder, regions: Sequence[Regions]) -> FloatArray:
    """Regions of B photos, of any number each -> (B, D)."""
    if not regions:
        return np.empty((0, encoder.info.joint_dim), dtype=np.float32)
    return encoder.encode_regions(*pad_regions(regions))


def _new_photo(photo: _Ready, regions: Regions, vector: FloatArray, root: Path) -> NewPhoto:
    file, decoded = photo.file, photo.decoded
    taken = decoded.taken or local_time(file.modified_ns)
    return NewPhoto(
        id=file.photo.id,
        path=os.fsencode(file.photo.path.relative_to(root)),
        size=file.size,
        modified_ns=file.modified_ns,
        sha256=photo.sha256,
        width=decoded.width,
        height=decoded.height,
        taken=taken.isoformat(sep=" ", timespec="seconds"),
        vector=vector,
        regions=regions,
        thumbnail=photo.thumbnail,
    )


def _no_progress(settled: int, total: int) -> None:
    """Nobody is watching."""
