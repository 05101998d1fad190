"""The folders of photos that an index is of, and which photo lies in which.

An index of one folder has ids that are paths below it. The ids of every other folder begin with its label:

    Root("", Path("/home/ada/photos"))     holiday/beach.jpg       /home/ada/photos/holiday/beach.jpg
    Root("nas", Path("/mnt/nas"))          nas/2024/snow.jpg       /mnt/nas/2024/snow.jpg
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import msgspec

Label = Annotated[str, msgspec.Meta(min_length=1, pattern="^[^/]+$")]


class Settings(msgspec.Struct, frozen=True):
    """What an index keeps for the next run, besides its records of photos.

    labelled      folders whose ids begin with a label, by that label, in the file system's own bytes
    exclude       globs of what is left out (`lasting_glob`)
    follow_links  whether links may lead out of the folders
    last_run      when the last run came to its end, in UTC; None where none is known
    """

    labelled: dict[Label, bytes] = {}
    exclude: list[str] = []
    follow_links: bool = False
    last_run: datetime | None = None


class Root(NamedTuple):
    """A folder of photos.

    label  what ids of its photos begin with, before a slash; empty for the folder whose ids are paths below it
    path   where it is
    """

    label: str
    path: Path

    def id_of(self, below: str) -> str:
        """The id of what lies at a path below it, or of the folder itself where that is empty."""
        return "/".join(filter(None, (self.label, below)))

    def below(self, name: str) -> str:
        """The path below it that an id stands for."""
        return name.removeprefix(f"{self.label}/") if self.label else name


class Roots:
    """The folders of an index."""

    def __init__(self, roots: Iterable[Root]) -> None:
        self._by_label = {root.label: root for root in roots}

    @classmethod
    def kept(cls, first: bytes, settings: Settings) -> Self:
        """The folders of an index with these settings, whose `State.root` is `first`."""
        paths = ({"": first} if first else {}) | settings.labelled
        return cls(Root(label, Path(os.fsdecode(path))) for label, path in paths.items())

    @property
    def first(self) -> bytes:
        """The folder without a label, in the file system's own bytes (`State.root`); empty where there is none."""
        return os.fsencode(self._by_label[""].path) if "" in self._by_label else b""

    @property
    def labelled(self) -> dict[Label, bytes]:
        """The other folders, as in `Settings`."""
        return {label: os.fsencode(root.path) for label, root in self._by_label.items() if label}

    def __iter__(self) -> Iterator[Root]:
        return iter(self._by_label.values())

    def __len__(self) -> int:
        return len(self._by_label)

    def of(self, name: str) -> Root:
        """The folder that a photo or a skipped file of this id lies in."""
        label, slash, _ = name.partition("/")
        return self._by_label.get(label if slash else "") or self._by_label.get("") or Root("", Path())

    def place(self, name: str, path: bytes) -> Path:
        """Where a photo is, by its id and its path below its folder in the file system's own bytes."""
        return self.of(name).path / os.fsdecode(path)

    def places(self, typed: Path | str) -> Iterator[tuple[Root, Path]]:
        """Folders that a path leads into, and the path below each: as it is written, and once links are followed."""
        with contextlib.suppress(ValueError):  # characters that no path has
            for absolute in (os.path.abspath, os.path.realpath):
                path = Path(absolute(typed))
                for root in self:
                    above = absolute(root.path)
                    if path.is_relative_to(above):
                        yield root, path.relative_to(above)


def is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder; of folders that are not there, whether they are the same path."""
    if one.absolute() == other.absolute():
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing to see, is not there, or cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return all(entry.name.startswith(".") for entry in entries)
    except OSError:
        return True


def is_inside(inner: Path, outer: Path) -> bool:
    """Whether a folder lies in another one."""
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))
