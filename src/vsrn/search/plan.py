"""What there is to do: the files in the folders of an index compared with what it knows of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import vsrn
from vsrn.data.listing import PhotoFile
from vsrn.data.photos import FORMATS, FileContent
from vsrn.errors import PhotoError
from vsrn.search.database import Records
from vsrn.search.records import Known, SkippedRecord, Stamp
from vsrn.search.roots import Root, Roots, is_empty

# Files that were refused are opened again by a version that reads other formats.
READER = f"vsrn {vsrn.__version__}: {', '.join(FORMATS)}"
# Where more of the photos than this are missing, a disk is more likely away than so much deleted.
MOST_MISSING = 0.2


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
    refused    files and folders that are not to be opened, and why
    told       the same of those whose ids belong to photos of the index, which stay what they are
    missing    ids of photos whose files are not there
    moved      the same by the size and the SHA-256 of their content; new files of the same content take them from here
    gone       ids of skipped files that are there no more
    num_known  photos that the index has of each folder, by its label
    """

    files: list[File]
    refused: list[SkippedRecord]
    told: list[SkippedRecord]
    moved: dict[tuple[int, str], list[str]]
    missing: list[str]
    gone: list[str]
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
    moved: dict[tuple[int, str], list[str]] = defaultdict(list)
    for name in missing:
        if name not in damaged:
            moved[known[name].stamp.size, known[name].sha256].append(name)
    there = seen | {file.id for file in refused}
    gone = [name for name in skipped if name not in there]
    num_known = Counter(roots.of(name).label for name in known)
    return Plan(files, refused, told, moved, missing, gone, num_known)


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
