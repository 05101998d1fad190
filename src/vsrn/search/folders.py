"""Which folders an index is of after a run, what is found in them, and which of them a person means."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vsrn.data.exclusion import Exclusion
from vsrn.data.listing import PhotoFile, find_photos, photo_id
from vsrn.errors import DataError, PhotoError, SearchError, UnknownFolderError, did_you_mean
from vsrn.files import printable
from vsrn.search.records import View
from vsrn.search.roots import Root, Roots, Settings, is_inside, is_same_folder
from vsrn.search.where import Where

# A folder that was moved as a whole is known by so many of its photos, of which so many must be in it.
ASKED, SAME = 200, 0.5
# What the ids of a folder without a name, "/", begin with.
NAMELESS = "photos"


@dataclass(frozen=True)
class Choice:
    """The folders that an index is of after a run, those of them that are new, and those that it was of before.

    moved  where a folder was, and where it is
    """

    roots: Roots
    added: list[Root]
    removed: list[Root]
    moved: list[tuple[Path, Path]]

    @cached_property
    def all(self) -> Roots:
        """Those that it is of during this run: a folder that is to be removed stays until its photos are gone."""
        return Roots([*self.removed, *self.roots])


def choose_folders(view: View | None, given: Sequence[Path], remove: Sequence[Path]) -> Choice:
    """The folders of an index once those `given` are added and others removed; `view` is None of a new one.

    A folder that is there already by whatever name is not added again. One that holds the photos of a folder that is
    not there any more takes its place.

    Raises `DataError` where a folder to add is not there, and `SearchError` where one lies in another, one to remove
    is none of the index's, or none is left.
    """
    known = Roots([]) if view is None else view.roots()
    removed = [root for root in known if any(is_same_folder(root.path, path) for path in remove)]
    for path in remove:
        if not any(is_same_folder(root.path, path) for root in removed):
            named = ", ".join(printable(root.path) for root in known) or "none"
            raise SearchError(f"{printable(path)} is no folder of the index, which is of {named}.")
    kept = {root.label: root for root in known if root not in removed}
    moved: list[tuple[Path, Path]] = []
    new: list[Path] = []
    for path in given:
        if any(is_same_folder(path, other) for other in [*(root.path for root in kept.values()), *new]):
            continue
        if not path.is_dir():
            raise DataError(f"there is no folder {path}; name the folder that holds the photos.")
        before = next((root for root in kept.values() if view is not None and _has_moved(view, root, path)), None)
        if before is None:
            new.append(path.absolute())
        else:
            kept[before.label] = Root(before.label, path.absolute())
            moved.append((before.path, path.absolute()))
    _check_apart([root.path for root in kept.values()], [*new, *(path for _, path in moved)])
    added: list[Root] = []
    for path in new:
        label = "" if len(known) + len(new) == 1 else _free_label(path, view, [*known, *added])
        added.append(Root(label, path))
    if not kept and not added:
        raise SearchError("the index would be of no folder; name a folder of photos to add, or delete the index.")
    return Choice(Roots([*kept.values(), *added]), added, removed, moved)


def _has_moved(view: View, root: Root, path: Path) -> bool:
    """Whether a folder is not there, and another holds its photos, by their names and sizes."""
    if root.path.is_dir():
        return False
    roots = view.roots()
    asked = list(itertools.islice((photo for photo in view.photos() if roots.of(photo.id) == root), ASKED))
    there = 0
    for photo in asked:
        with contextlib.suppress(OSError):
            there += (path / os.fsdecode(photo.path)).stat().st_size == photo.size
    return there > SAME * len(asked)


def _check_apart(kept: Sequence[Path], new: Sequence[Path]) -> None:
    """Raise `SearchError` where a new folder lies in another one, or another one in it."""
    for path, other in itertools.product(new, [*kept, *new]):
        if is_same_folder(path, other):
            continue
        added, there = printable(path), printable(other)
        if is_inside(path, other):
            raise SearchError(f"{added} lies in {there}, which is searched with all its folders.")
        if is_inside(other, path) and other not in new:
            raise SearchError(
                f"{added} holds {there}, a folder of the index; add --remove {there}, and what is known of its photos"
                " is kept."
            )


def _free_label(path: Path, view: View | None, roots: Iterable[Root]) -> str:
    """What no id begins with: a folder's name, with a number where that is taken."""
    name = photo_id(Path(os.path.basename(os.path.abspath(path)) or NAMELESS))  # noqa: PTH100, PTH119
    for number in itertools.count(1):
        label = name if number == 1 else f"{name} {number}"
        taken = any(root.label == label or (not root.label and os.path.lexists(root.path / label)) for root in roots)
        if not taken and not (view is not None and view.has_folder(label)):
            return label
    raise AssertionError("numbers have no end")


@dataclass
class Listing:
    """What was found in the folders of an index.

    found       files and refusals, each with an id of its own
    away        folders that are not there, cannot be listed or hold no files
    exclusions  what is left out of each folder, by its label
    """

    found: list[PhotoFile] = field(default_factory=list)
    away: list[Root] = field(default_factory=list)
    exclusions: dict[str, Exclusion] = field(default_factory=dict)


def list_folders(choice: Choice, settings: Settings, index: Path) -> Listing:
    """Every file in the folders of an index, which lies in the folder `index` and is left out.

    Raises `DataError` where a folder that is added cannot be listed or holds no files, and where no folder does.
    """
    listing = Listing()
    labels = {root.label: root for root in choice.roots if root.label}
    failed: DataError | None = None
    for root in choice.roots:
        listing.exclusions[root.label] = exclusion = Exclusion(root.path, settings.exclude)
        try:
            found = find_photos(root.path, leave_out=index, follow_links=settings.follow_links, exclusion=exclusion)
        except DataError as error:
            if root in choice.added:
                raise
            failed = error
            listing.away.append(root)
            continue
        listing.found += _with_labels(root, found, labels)
    if failed is not None and not listing.found and not choice.removed:
        raise failed
    return listing


def _with_labels(root: Root, found: Iterable[PhotoFile], labels: dict[str, Root]) -> Iterator[PhotoFile]:
    """Files with the ids that they have in an index. A folder whose name is the label of another one is refused."""
    refused: set[str] = set()
    for photo in found:
        first, slash, _ = photo.id.partition("/")
        if root.label or not slash or first not in labels:
            yield replace(photo, id=root.id_of(photo.id))
        elif first not in refused:
            refused.add(first)
            reason = f"{printable(root.path / first)} has the name that photos of {printable(labels[first].path)} go by"
            refusal = PhotoError(f"{reason}; rename it.", "unreadable")
            yield PhotoFile(f"{first} (2)/", root.path / first, refusal)


def resolved(view: View, where: Where) -> Where:
    """The filter with its folder as ids begin, of the folder that a person means; without it for the whole index.

    Raises `UnknownFolderError` where no photo and no skipped file of the index lies in it.
    """
    return where if where.folder is None else replace(where, folder=_folder_named(view, where.folder, where.paths))


def _folder_named(view: View, name: Path | str, paths: bool) -> str | None:
    """The same folder as ids begin; None for the whole index, and "" for what has no label."""
    typed, roots = str(name).replace(os.sep, "/"), view.roots()
    asked = ""
    with contextlib.suppress(ValueError):  # characters that no path has
        asked = photo_id(Path(os.path.normpath(typed.strip("/"))))
    if asked == ".":
        return None
    if view.has_folder(asked):
        return asked
    for root, below in roots.places(typed) if paths else ():
        asked = root.id_of("" if below == Path() else photo_id(below))
        if not asked:
            return "" if len(roots) > 1 else None
        if view.has_folder(asked):
            return asked
    known = view.folders()
    # What people forget is the case of its letters, or the folders above it.
    near = [folder for folder in known if asked and f"/{folder}".casefold().endswith(f"/{asked}".casefold())]
    hint = f" Did you mean '{near[0]}'?" if near else did_you_mean(asked, known)
    raise UnknownFolderError(f"the index has no folder '{printable(typed)}'.{printable(hint)}")
