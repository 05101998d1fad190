"""A folder of photos -> an index: new photos added, changed ones read again, moved ones known, deleted ones dropped.

update_index("photos/", "idx/", "flickr8k-small")

Killed at any moment and called again, it goes on after the last batch that it had changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vsrn.data.listing import Exclusion, PhotoFile, find_photos
from vsrn.data.photo_splits import made_ready
from vsrn.data.photos import FileContent, read_file, read_photo
from vsrn.data.regions import Regions, pad_regions
from vsrn.encoders.base import Encoder
from vsrn.errors import PhotoError, SearchError
from vsrn.extractors.base import Prepared, RegionExtractor, prepare_pixels
from vsrn.extractors.extract import check_settings, cut
from vsrn.files import printable
from vsrn.metrics import FloatArray
from vsrn.search.create import Model, create_index
from vsrn.search.layout import EngineName
from vsrn.search.mend import mend_index
from vsrn.search.plan import File, doubtful, make_plan, skipped_for, stamp_of
from vsrn.search.records import MovedPhoto, PhotoRecord, SkippedRecord, local_time
from vsrn.search.writer import Changes, IndexWriter, NewPhoto

THUMBNAIL_SIDE = 256
JPEG_QUALITY = 82

# Called as progress(done, total): once before the first batch, and after each batch that has reached the disk.
ProgressCallback = Callable[[int, int], None]


@dataclass
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
    num_folders_left_out  folders that were not searched: hidden, of the system, or excluded
    num_files_left_out    files that were excluded, beside those in such folders
    """

    num_photos: int = 0
    num_added: int = 0
    num_changed: int = 0
    num_removed: int = 0
    skipped: list[SkippedRecord] = field(default_factory=list)
    num_moved: int = 0
    missing: list[str] = field(default_factory=list)
    num_mended: int = 0
    num_folders_left_out: int = 0
    num_files_left_out: int = 0


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


def update_index(
    photos: Path | str,
    folder: Path | str,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
    follow_links: bool = False,
    exclude: Sequence[str] = (),
    prune: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | None = None,
    progress: ProgressCallback = lambda _done, _total: None,
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
    exclude     globs of files and folders to leave out (`Exclusion`), to be given at every update; photos of the index
                that are left out are removed from it
    prune       whether to remove photos whose files are gone even where more than a fifth are, or all of a folder that
                is still there, empty; without it they stay and are reported as missing
    batch_size  photos changes at a time; what a kill costs at most
    workers     threads that decode ahead of the extractor; None for one for each processor
    device      where photos are extracted: `cpu`, `cuda`, `mps` or `auto`; left out, where the model that is given
                computes, or `auto`

    Photos that cannot be read are skipped and reported. Raises `SearchError` where the index was made by another
    model, of another folder, with other settings, or is being written; `DataError` where there are no photos, or the
    extractor here is not the model's.
    """
    check_settings(batch_size, workers)
    photos, folder = Path(photos), Path(folder)
    exclusion = Exclusion(photos, exclude)
    found = find_photos(photos, leave_out=folder, follow_links=follow_links, exclusion=exclusion)
    if device is None:
        device = model.device if isinstance(model, Encoder) else "auto"
    mend_index(folder, photos, model)
    create_index(folder, photos, model, explain=explain, engine=engine, uri=uri, device=device)
    with IndexWriter(folder, uri, device) as writer:
        update = _Update(writer, photos, exclusion)
        return update.run(found, batch_size, workers, prune=prune, progress=progress)


class _Update:
    """One pass over a folder of photos."""

    def __init__(self, writer: IndexWriter, root: Path, exclusion: Exclusion) -> None:
        self.writer, self.encoder, self.root, self.exclusion = writer, writer.encoder, root, exclusion
        self.report = IndexReport(
            num_mended=len(writer.damaged),
            num_folders_left_out=exclusion.num_folders,
            num_files_left_out=exclusion.num_files,
        )

    def run(
        self,
        found: Sequence[PhotoFile],
        batch_size: int,
        workers: int | None,
        *,
        prune: bool,
        progress: ProgressCallback,
    ) -> IndexReport:
        """Read what changed and commit it batch by batch; then remove photos whose files are gone."""
        with self.writer.records.read() as view:
            num_known, root = view.num_photos(), Path(os.fsdecode(view.state().root))
        self._follow(root)
        damaged, report = self.writer.damaged, self.report
        plan = make_plan(found, self.writer.records, damaged)
        report.skipped += plan.told
        done = plan.num_same + len(plan.refused) + len(plan.told)
        progress(done, len(found))
        if plan.refused or plan.gone:
            self._write(Changes(skipped=plan.refused, gone=plan.gone))
        claimed: set[str] = set()
        if plan.files:
            look = partial(_look, self.encoder.extractor, plan.moved, self.root)
            for batch, looked in made_ready(cut(plan.files, batch_size), look, workers):
                claimed |= {photo.old_id for photo in looked if isinstance(photo, MovedPhoto)}
                self._write(self._encode(looked))
                done += len(batch)
                progress(done, len(found))
        missing = [name for name in plan.missing if name not in claimed]
        unseen = [name for name in missing if not self.exclusion.has_photo(name)]
        report.missing = [] if prune else doubtful(unseen, num_known, self.root, damaged)
        gone = set(missing) - set(report.missing)
        if gone:
            self._write(Changes(gone=sorted(gone)))
        self.writer.finish()
        with self.writer.records.read() as view:
            report.num_photos, report.skipped = view.num_photos(), [*view.skipped(), *report.skipped]
        return report

    def _follow(self, before: Path) -> None:
        """Photos may move as a whole from the folder `before`; an index of other photos is refused."""
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
        changed, removed = self.writer.write(changes)
        self.report.num_changed += changed
        self.report.num_added += len(changes.added) - changed
        self.report.num_removed += removed
        self.report.num_moved += sum(photo.old_id != photo.id for photo in changes.moved)

    def _encode(self, looked: Sequence[_Looked]) -> Changes:
        """The expensive half: regions and vectors of those photos of a batch that could be read."""
        ready = [photo for photo in looked if isinstance(photo, _Ready)]
        skipped = [file for file in looked if isinstance(file, SkippedRecord)]
        self.report.skipped += [file.record for file in looked if isinstance(file, _Told)]
        regions = [_rounded(found) for found in self.encoder.extract([photo.prepared for photo in ready])]
        added = []
        for photo, found, vector in zip(ready, regions, _vectors(self.encoder, regions), strict=True):
            if np.isfinite(vector).all():
                added.append(NewPhoto(photo.record, vector, found, photo.thumbnail))
            else:
                error = PhotoError(f"{photo.photo.id} has an embedding that is not finite; leave it out.")
                skipped.append(skipped_for(photo.photo, error))
        return Changes(added, skipped, [file for file in looked if isinstance(file, MovedPhoto)])


def _look(extractor: RegionExtractor, moved: dict[tuple[int, str], list[str]], root: Path, file: File) -> _Looked:
    """The cheap half, in worker threads: what the extractor reads, or what else the file is, or why it is skipped."""
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
                return MovedPhoto(moved[content.size, sha256].pop(), file.photo.id, below, stamp)
        name = printable(file.photo.path)
        decoded = read_photo(content.content, target_size=extractor.photo_size, name=name)
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
        return _Ready(file.photo, record, prepared, _thumbnail(decoded.pixels))
    except PhotoError as error:
        skipped = skipped_for(file.photo, error, content)
    except Exception as error:
        # Whatever one file makes its readers stumble over, MemoryError included, is no reason to stop.
        said = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        skipped = skipped_for(file.photo, PhotoError(f"{printable(file.photo.path)} cannot be read ({said})."))
    stays = file.known is not None and not file.damaged and skipped.kind == "unreadable"
    return _Told(skipped) if stays else skipped


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
