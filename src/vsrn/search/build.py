"""A folder of photos -> an index: new photos added, changed ones read again, moved ones known, deleted ones dropped.

update_index("photos/", "idx/", "flickr8k-small")

Killed at any moment and called again, it goes on after the last batch that it had changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsrn.data.listing import Exclusion, PhotoFile, find_photos
from vsrn.encoders.base import Encoder
from vsrn.errors import SearchError
from vsrn.extractors.batches import BatchMaker, cut, local_batches
from vsrn.extractors.extract import check_settings
from vsrn.search.create import Model, check_thumbnail_side, create_index
from vsrn.search.layout import EngineName
from vsrn.search.mend import mend_index
from vsrn.search.plan import File, doubtful, make_plan
from vsrn.search.reading import Read, Reading
from vsrn.search.records import SkippedRecord
from vsrn.search.writer import Changes, IndexWriter

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
    thumbnail_side: int | None = None,
    batches: BatchMaker = local_batches,
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
    thumbnail_side  pixels of the longer side of thumbnails, 64 to 1,024; for a new index 512
    batches     who reads the photos: this process, or a Ray cluster (`vsrn.extractors.ray`)

    Photos that cannot be read are skipped and reported. Raises `SearchError` where the index was made by another
    model, of another folder, with other settings, or is being written; `DataError` where there are no photos, or the
    extractor here is not the model's.
    """
    check_settings(batch_size, workers)
    check_thumbnail_side(thumbnail_side)
    photos, folder = Path(photos), Path(folder)
    exclusion = Exclusion(photos, exclude)
    found = find_photos(photos, leave_out=folder, follow_links=follow_links, exclusion=exclusion)
    if device is None:
        device = model.device if isinstance(model, Encoder) else "auto"
    mend_index(folder, photos, model)
    create_index(
        folder, photos, model, explain=explain, engine=engine, uri=uri, device=device, thumbnail_side=thumbnail_side
    )
    with IndexWriter(folder, uri, device) as writer:
        update = _Update(writer, photos, exclusion)
        return update.run(found, batch_size, workers, batches, prune=prune, progress=progress)


class _Update:
    """One pass over a folder of photos."""

    def __init__(self, writer: IndexWriter, root: Path, exclusion: Exclusion) -> None:
        self.writer, self.root, self.exclusion = writer, root, exclusion
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
        batches: BatchMaker,
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
            work = Reading(
                self.writer.encoder,
                plan.moved,
                self.root,
                explain=self.writer.info.explain,
                thumbnail_side=self.writer.info.thumbnail_side,
            )
            results = batches(work, plan.files, batch_size, workers)
            for batch, result in zip(cut(plan.files, batch_size), results, strict=True):
                read = _settled(batch, result, claimed, work)
                report.skipped += read.told
                self._write(read.changes)
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


def _settled(batch: Sequence[File], read: Read, claimed: set[str], work: Reading) -> Read:
    """A batch in which no file takes the place of a photo that another file has taken; adds to `claimed`.

    Workers that know nothing of each other may give one photo to several files of the same content. Those that come
    too late are read here, as new photos.
    """
    moved, late = [], set[str]()
    for photo in read.changes.moved:
        if photo.old_id in claimed:
            late.add(photo.id)
        else:
            claimed.add(photo.old_id)
            moved.append(photo)
    if not late:
        return read
    files = [file for file in batch if file.photo.id in late]
    alone = Reading(work.encoder, {}, work.root, explain=work.explain, thumbnail_side=work.thumbnail_side)
    again = alone.finish(files, [alone.prepare(file) for file in files])
    changes = Changes(
        [*read.changes.added, *again.changes.added], [*read.changes.skipped, *again.changes.skipped], moved
    )
    return Read(changes, [*read.told, *again.told])
