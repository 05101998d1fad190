"""Folders of photos -> an index: new photos added, changed ones read again, moved ones known, deleted ones dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from vsrn.data.exclusion import lasting_glob
from vsrn.data.kinds import parts_of_photos
from vsrn.encoders.base import Encoder
from vsrn.errors import SearchError
from vsrn.extractors.batches import BatchMaker, cut, local_batches
from vsrn.extractors.extract import check_settings
from vsrn.search.create import Model, create_index
from vsrn.search.database import Records
from vsrn.search.folders import Choice, Listing, choose_folders, list_folders
from vsrn.search.layout import EngineName
from vsrn.search.mend import is_index, mend_index
from vsrn.search.reading import File, Reading, doubtful, make_plan
from vsrn.search.records import SkippedRecord, View
from vsrn.search.roots import Roots, Settings
from vsrn.search.where import Where
from vsrn.search.writer import Changes, IndexWriter

# Called with how many files are finished, of how many.
ProgressCallback = Callable[[int, int], None]


@dataclass
class IndexReport:
    """What became of the folders of an index.

    num_photos   that can be found now
    num_added, num_changed, num_removed  new since last time, read again, and gone
    skipped      files that could not be read, and why
    num_moved    known by their content under other names
    missing      ids of photos whose files are not there and that stay in the index; `prune` removes them
    num_mended   of those read again, photos whose vector, regions or thumbnail in the index were damaged
    num_folders_left_out  folders that were not searched: hidden, of the system, or excluded
    num_files_left_out    files that were excluded or are part of a photo, beside those in such folders
    folders      that the index is of
    away         those of them that are not there, cannot be listed or hold no files; their photos stay, and are not
                  among the missing
    exclude      globs of what is left out, now and at the next run
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
    folders: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)


def update_index(
    photos: Path | str | Sequence[Path | str] | None,
    folder: Path | str,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
    follow_links: bool | None = None,
    exclude: Sequence[str] | None = None,
    remove: Sequence[Path | str] = (),
    prune: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | None = None,
    thumbnail_side: int | None = None,
    batches: BatchMaker = local_batches,
    progress: ProgressCallback = lambda _done, _total: None,
) -> IndexReport:
    """Bring the index in `folder` in step with the folders of its photos, making it where there is none.

    Photos whose files have another name and the same content keep what the index has of them; what is damaged is read
    again. After a kill at any moment, a call goes on after the last batch.

    photos      folders of photos to add to those that the index is of, or None; all of them are gone over
    model       what encodes them; left out, the index's own or, for a new index, the packaged one
    explain     whether to keep each photo's regions, which explanations need; for a new index True
    engine      what searches the vectors; for a new index "faiss"
    uri         for Milvus: a server or a Lite file, to be given each time; empty for a file in the index
    follow_links  whether to read files and folders outside of `photos` that links in it lead to; kept in the index
    exclude     globs of files and folders to leave out (`Exclusion`), also of the index; None for those that it has
    remove      folders to take out of it; photos that lie in another one by now are kept
    prune       whether to remove photos whose files are gone even where more than a fifth of a folder are, or all that
                lie in one that is empty or not there; without it they stay and are reported
    batch_size  photos at a time; what a kill costs at most
    workers     threads or processes that decode ahead of the extractor; None for one for each processor
    device      where photos are extracted: `cpu`, `cuda`, `mps`, `auto`; None for a loaded model's, or else `auto`
    thumbnail_side  pixels of the longer side of thumbnails, 64 to 1,024; for a new index 512
    batches     who reads photos: this process, or others (`process_batches`), or a Ray cluster (`vsrn.extractors.ray`)
    progress    called before the first batch and after each; what it raises stops the run, and what was done is kept

    Photos that cannot be read are skipped and reported. Raises `SearchError` where the index was made by another model
    or with other settings, or is being written, or a folder lies in another one; `DataError` where there are no photos,
    or the extractor here is not the model's.
    """
    check_settings(batch_size, workers)
    folder = Path(folder)
    device = device or (model.device if isinstance(model, Encoder) else "auto")
    mend_index(folder, model)
    before, choice = _choose(folder, _paths(photos), _paths(remove))
    settings = _settings(before[1], choice, exclude, follow_links)
    listing = list_folders(choice, settings, folder)
    create_index(folder, model, explain=explain, engine=engine, uri=uri, device=device, thumbnail_side=thumbnail_side)
    with IndexWriter(folder, uri, device) as writer:
        with writer.records.read() as view:
            if _seen(view) != before:
                raise SearchError(f"{folder} was just changed by another vsrn index; run the same command again.")
        if before != (choice.all.first, settings):
            writer.settle(choice.all.first, settings)
        return _Update(writer, choice, settings, listing, prune=prune).run(batch_size, workers, batches, progress)


def _paths(named: Path | str | Sequence[Path | str] | None) -> list[Path]:
    if named is None:
        return []
    return [Path(named)] if isinstance(named, Path | str) else list(map(Path, named))


def _choose(folder: Path, given: list[Path], remove: list[Path]) -> tuple[tuple[bytes, Settings], Choice]:
    """`State.root` and settings of an index, where there is one, and the folders that it is to be of."""
    if not is_index(folder):
        if not given:
            raise SearchError(f"{folder} is no index yet; name the photos too: `vsrn index PHOTOS -o {folder}`.")
        return (b"", Settings()), choose_folders(None, given, remove)
    with Records(folder) as records, records.read() as view:
        return _seen(view), choose_folders(view, given, remove)


def _seen(view: View) -> tuple[bytes, Settings]:
    """What an index is of, which another process may have changed since."""
    return view.state().root, view.settings()


def _settings(kept: Settings, choice: Choice, exclude: Sequence[str] | None, follow_links: bool | None) -> Settings:
    """What an index keeps from now on."""
    globs = kept.exclude
    if exclude is not None:
        globs = list(dict.fromkeys(lasting_glob([root.path for root in choice.roots], glob) for glob in exclude))
    for old, new in choice.moved:
        globs = [f"{new}{glob.removeprefix(str(old))}" if glob.startswith(f"{old}/") else glob for glob in globs]
    follow_links = kept.follow_links if follow_links is None else follow_links
    return msgspec.structs.replace(kept, labelled=choice.all.labelled, exclude=globs, follow_links=follow_links)


class _Update:
    """One pass over the folders of an index."""

    def __init__(
        self, writer: IndexWriter, choice: Choice, settings: Settings, listing: Listing, *, prune: bool
    ) -> None:
        self.writer, self.choice, self.settings, self.listing, self.prune = writer, choice, settings, listing, prune
        self.report = IndexReport(
            num_mended=len(writer.damaged),
            num_folders_left_out=sum(one.num_folders for one in listing.exclusions.values()),
            num_files_left_out=sum(one.num_files for one in listing.exclusions.values()),
            exclude=settings.exclude,
        )

    def run(self, batch_size: int, workers: int | None, batches: BatchMaker, progress: ProgressCallback) -> IndexReport:
        """Read what changed and commit it batch by batch; then remove photos whose files are gone."""
        damaged, report, found = self.writer.damaged, self.report, self.listing.found
        plan = make_plan(found, self.choice.all, self.writer.records, damaged)
        done = len(found) - len(plan.files)
        progress(done, len(found))
        away = [] if self.prune else self.listing.away  # what lies in a folder that is not there stays
        gone = [name for name in plan.changes.gone if self.choice.all.of(name) not in away]
        self._write(replace(plan.changes, gone=gone))
        claimed: set[str] = set()
        if plan.files:
            work = Reading(self.writer.encoder, plan.moved, self.writer.info)
            results = batches(work, plan.files, batch_size, workers)
            for batch, result in zip(cut(plan.files, batch_size), results, strict=True):
                for changes in _settled(batch, result, claimed, work):
                    self._write(changes)
                done += len(batch)
                progress(done, len(found))
        missing = [name for name in plan.missing if name not in claimed]
        parts = parts_of_photos([*missing, *(photo.id for photo in found)])
        self._write(Changes(gone=self._gone(missing, parts, plan.num_known)))
        self._finish(plan.num_known)
        with self.writer.records.read() as view:
            report.num_photos, report.skipped = view.num_photos(), [*view.skipped(), *report.skipped]
        return report

    def _gone(self, missing: Sequence[str], parts: set[str], num_known: Mapping[str, int]) -> list[str]:
        """Of photos whose files are neither there nor elsewhere, those to remove; notes the others in the report.

        `parts` are ids that have become part of another photo.
        """
        if self.prune:
            return list(missing)
        stays: set[str] = set()
        # Of a damaged photo nothing can be kept.
        whole = [name for name in missing if name not in parts and name not in self.writer.damaged]
        for root in self.choice.roots:
            inside = (name for name in whole if self.choice.all.of(name) == root)
            excluded = self.listing.exclusions[root.label]
            unseen = [name for name in inside if not excluded.has_photo(root.below(name))]
            if root not in self.listing.away:
                unseen = doubtful(unseen, num_known[root.label], root)
                self.report.missing += unseen
            stays.update(unseen)
        return sorted(set(missing) - stays)

    def _finish(self, num_known: Mapping[str, int]) -> None:
        """Forget folders that were removed, and those that are not there and whose last photos left in this run."""
        with self.writer.records.read() as view:
            away = [root for root in self.listing.away if self.prune or num_known[root.label]]
            empty = [root for root in away if not len(view.rows(Where(root.label)))]
        roots = Roots(root for root in self.choice.roots if root not in empty)
        self.report.folders = [str(root.path) for root in roots]
        self.report.away = [str(root.path) for root in self.listing.away if root not in empty]
        settings = msgspec.structs.replace(self.settings, labelled=roots.labelled)
        if empty or self.choice.removed:
            self.writer.settle(roots.first, settings)
        now = datetime.now(UTC).replace(microsecond=0)
        self.writer.finish(msgspec.structs.replace(settings, last_run=now))

    def _write(self, changes: Changes) -> None:
        self.report.skipped += changes.told
        changed, removed = self.writer.write(changes)
        self.report.num_changed += changed
        self.report.num_added += len(changes.added) - changed
        self.report.num_removed += removed
        self.report.num_moved += sum(photo.old_id != photo.id for photo in changes.moved)


def _settled(batch: Sequence[File], changes: Changes, claimed: set[str], work: Reading) -> list[Changes]:
    """A batch in which no file takes the place of a photo that another file has taken; adds to `claimed`.

    Workers that know nothing of each other may give one photo to several files of the same content. Those that come
    too late are read here, as new photos.
    """
    moved, late = [], set[str]()
    for photo in changes.moved:
        if photo.old_id in claimed:
            late.add(photo.id)
        else:
            claimed.add(photo.old_id)
            moved.append(photo)
    if not late:
        return [changes]
    files = [file for file in batch if file.photo.id in late]
    alone = replace(work, missing={})
    return [replace(changes, moved=moved), alone.finish(files, list(map(alone.prepare, files)))]
