"""Which files of a folder ought to be photos: each once, with an id; what cannot be listed has its reason."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsrn.data.exclusion import Exclusion
from vsrn.data.image_ids import ImageNames, as_image_id
from vsrn.data.kinds import PHOTO_ENDINGS, parts_of_photos
from vsrn.errors import DataError, PhotoError
from vsrn.files import normal_name, printable

_NOT_ONE_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$")
# A folder that holds both is an index of ours: its files are no photos of anybody's.
_INDEX_FILES = {"index.json", "records.sqlite"}
# A file of such a name, beside no photo, is part of a region store: gigabytes that need not be opened.
_STORE_ENDINGS = ("_ims.npy", "_ims.npy.partial")
# An empty file of such a name is how phones and indexers are told to leave a folder alone.
_NO_MEDIA = {".nomedia", ".noindex"}


@dataclass(frozen=True)
class PhotoFile:
    """A file that ought to be a photo, or a folder or link that cannot be looked into.

    id       its path below the folder that was searched, as `photo_id` writes it; of a folder with a slash at its end
    path     where to open it
    refusal  why it is not to be opened, for instance a link that leads out of the folder; None where it may be
    """

    id: str
    path: Path
    refusal: PhotoError | None = None


def find_photos(
    folder: Path | str,
    *,
    leave_out: Path | None = None,
    follow_links: bool = False,
    exclusion: Exclusion | None = None,
) -> list[PhotoFile]:
    """Every file under `folder`, sorted by id, each with an id of its own.

    leave_out     a folder that is not searched
    follow_links  whether links may lead out of `folder`; else such a link is listed with a refusal
    exclusion     what else is left out; None for what always is

    Passed over are hidden files and folders, those of systems, folders below `folder` that hold `.nomedia` or
    `.noindex`, an index or a region store, and files that are part of a photo (`parts_of_photos`). What is not a photo
    is listed too. Each file is listed once, whatever links lead to it: real folders and files go first, of hard links
    the first by id. A folder that cannot be listed and a link that leads nowhere are listed with a refusal.

    Raises `DataError` where `folder` is missing, cannot be listed, or holds nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name the folder that holds the photos.")
    exclusion = exclusion or Exclusion(folder)
    walk = _Walk(folder, follow_links, exclusion)
    if leave_out is not None and leave_out.is_dir():
        walk.searched.add(_identity(leave_out.stat(), leave_out))
    found = walk.run()
    if not found:
        but = " beside those that are left out" if exclusion.num_folders or exclusion.num_files else ""
        raise DataError(f"{folder} holds no files{but}; name the folder that holds the photos.")
    parts = parts_of_photos(photo.id for photo in found)
    exclusion.num_files += len(parts)
    return _with_own_ids([photo for photo in found if photo.id not in parts])


def photo_id(relative: Path) -> str:
    """The path as one line of UTF-8 in NFC: what would break the line or the encoding is written as an escape."""
    text = normal_name(os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace"))
    return _NOT_ONE_LINE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class PhotoNames:
    """Files below a folder by any of their names; it is listed, once, where it does not hold a name as asked for."""

    def __init__(self, folder: Path | str, mapping: Mapping[str, str] | None = None) -> None:
        """Take the folder, and file names of ids (`read_id_mapping`)."""
        self.folder, self.mapping = Path(folder), mapping or {}
        self._all: ImageNames[Path] | None = None

    def find(self, image_id: str, cocoid: int | None = None) -> Path | None:
        """The file that an id means (`ImageNames`), or None where there is none, or several may be meant.

        cocoid  COCO's number of the image, where a data set says it

        Raises what `find_photos` raises.
        """
        plain = self.folder / self.mapping.get(as_image_id(image_id), image_id)
        if plain.is_file():
            return plain
        if self._all is None:
            # A link out of the folder counts where it leads to one file: photos may lie on another disk.
            found = (one for one in find_photos(self.folder) if one.refusal is None or one.path.is_file())
            self._all = ImageNames(((photo.id, photo.path) for photo in found), self.mapping)
        return self._all.find(image_id, cocoid)


@dataclass
class _Walk:
    """One search of a folder.

    searched  identities of folders that need not be searched (again)
    links     that are still to be looked at
    files     identities of files with several hard links, and of files that a link led to
    """

    root: Path
    follow_links: bool
    exclusion: Exclusion
    searched: set[Hashable] = field(default_factory=set)
    found: list[PhotoFile] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    files: set[Hashable] = field(default_factory=set)

    def run(self) -> list[PhotoFile]:
        """Every file, real folders first, then what links lead to."""
        self.real_root = Path(os.path.realpath(self.root))
        self._search(self.root)
        while self.links:
            # Folders first: what lies in them is listed there, and not by further links to it.
            links = {link for link in self.links if os.path.isdir(link)} or set(self.links)  # noqa: PTH112
            self.links = [link for link in self.links if link not in links]
            for link in sorted(links):
                self._follow(link)
        return self.found

    def _search(self, top: Path) -> None:
        """List the real files below a folder, and put aside its links."""
        folders, files = [top], list[tuple[PhotoFile, Hashable]]()
        while folders:
            current = folders.pop()
            try:
                identity = _identity(current.stat(), current)
                if identity in self.searched:
                    continue
                self.searched.add(identity)
                entries = sorted(os.scandir(current), key=lambda entry: entry.name)
            except OSError as error:
                reason = f"{printable(current)} cannot be listed ({error.strerror}); check its permissions."
                if current == self.root:
                    raise DataError(reason) from error
                refusal = PhotoError(reason, "unreadable")
                self.found.append(PhotoFile(f"{self._id(current)}/", current, refusal))
                continue
            if current != self.root and _holds_no_photos({entry.name for entry in entries}):
                self.exclusion.leave_out(self._id(current))
                continue
            for entry in entries:
                path, kind = current / entry.name, _kind(entry)
                if self.exclusion.passes_over(self._id(path), kind):
                    continue
                if kind == "link":
                    self.links.append(path)
                elif kind == "folder":
                    folders.append(path)
                else:
                    files.append((PhotoFile(self._id(path), path), _hard_link(entry)))
        # Sorted, so that of several hard links the first by id stays.
        for photo, identity in sorted(files, key=lambda file: _order(file[0])):
            if identity is None or identity not in self.files:
                self.files.add(identity)
                self.found.append(photo)

    def _follow(self, link: Path) -> None:
        """List what a link leads to, unless it is listed anyway, or say why not."""
        try:
            status = link.stat()
        except OSError as error:
            self._skip(link, f"is a link that leads nowhere ({error.strerror}); delete it or mend it.")
            return
        target = Path(os.path.realpath(link))
        inside = target.is_relative_to(self.real_root)
        if not inside and not self.follow_links:
            self._skip(link, f"is a link that leads out of {printable(self.root)}; say --follow-links to follow it.")
        elif stat.S_ISDIR(status.st_mode):
            self._search(link)
        elif not self._is_listed(target, status):
            self.files.add(_identity(status, target))
            self.found.append(PhotoFile(self._id(link), link))

    def _is_listed(self, target: Path, status: os.stat_result) -> bool:
        """Whether the file that a link leads to has an entry of its own."""
        if _identity(status, target) in self.files:
            return True
        try:
            parent = _identity(target.parent.stat(), target.parent)
        except OSError:
            return False
        return parent in self.searched and not target.name.startswith(".")

    def _id(self, path: Path) -> str:
        return photo_id(path.relative_to(self.root))

    def _skip(self, link: Path, reason: str) -> None:
        refusal = PhotoError(f"{printable(link)} {reason}", "link")
        self.found.append(PhotoFile(self._id(link), link, refusal))


def _holds_no_photos(names: set[str]) -> bool:
    """Whether a folder of such files is an index or a region store, or is not meant to be searched."""
    if names >= _INDEX_FILES or names & _NO_MEDIA:
        return True
    store = any(name.endswith(_STORE_ENDINGS) for name in names)
    return store and not any(os.path.splitext(name)[1].lower() in PHOTO_ENDINGS for name in names)  # noqa: PTH122


def _identity(status: os.stat_result, path: Path) -> Hashable:
    """What is the same for all names of one file or folder. Some file systems do not number their files."""
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _kind(entry: os.DirEntry[str]) -> Literal["link", "folder", "file"]:
    try:
        if entry.is_symlink():
            return "link"
        return "folder" if entry.is_dir(follow_symlinks=False) else "file"
    except OSError:  # opening it will say what is wrong
        return "file"


def _hard_link(entry: os.DirEntry[str]) -> Hashable:
    """The identity of a file that has several names; None of any other file."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # opening it will say what is wrong
        return None
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 and status.st_ino else None


def _order(photo: PhotoFile) -> tuple[str, bytes]:
    return photo.id, os.fsencode(photo.path)


def _with_own_ids(found: list[PhotoFile]) -> list[PhotoFile]:
    """Sorted by id. Of files whose names make one id, the later ones get another id and a refusal."""
    taken: dict[str, PhotoFile] = {}
    later: list[PhotoFile] = []
    for photo in sorted(found, key=_order):
        if taken.setdefault(photo.id, photo) is not photo:
            later.append(photo)
    for photo in later:
        reason = f"two files read as {printable(photo.id)}; rename one of them."
        free = next(name for number in itertools.count(2) if (name := f"{photo.id} ({number})") not in taken)
        taken[free] = PhotoFile(free, photo.path, PhotoError(reason, "unreadable"))
    return sorted(taken.values(), key=_order)
