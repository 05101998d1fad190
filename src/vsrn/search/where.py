"""Which photos a search looks at, and the same as SQL over the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from vsrn.files import normal_name

# `is_named` as connections know it: SQLite folds the case of ASCII alone.
NAMED = "is_named"


@dataclass(frozen=True)
class Where:
    """Which photos a search looks at.

    folder        as ids begin, such as `2024/Trip`, or a path to it; its subfolders count too. Empty for the folder
                  whose ids begin with no label
    since, until  the days, both included, that photos were taken between
    name          part of the file's name, in letters of any case
    paths         whether the folder may be a path of this machine; a service must not tell others what lies where
    """

    folder: Path | str | None = None
    since: date | None = None
    until: date | None = None
    paths: bool = True
    name: str | None = None

    def __bool__(self) -> bool:
        return any(asked is not None for asked in (self.folder, self.since, self.until, self.name))


EVERYWHERE = Where()


def between(folder: str) -> list[str]:
    """What ids in a folder are not below, and are below: "folder/", and that with the character after the slash."""
    return [f"{folder}/", f"{folder}0"]


def condition(where: Where, labels: Sequence[str]) -> tuple[str, list[str | int]]:
    """A filter as SQL, with the values of its marks; its folder is as ids begin, and "" for none of `labels`."""
    terms: list[str] = ["1"]
    values: list[str | int] = []
    if where.folder is not None:
        inside = "id >= ? AND id < ?"
        terms += [inside] if where.folder else [f"NOT ({inside})"] * len(labels)
        values += [edge for folder in ([str(where.folder)] if where.folder else labels) for edge in between(folder)]
    if where.since is not None:
        terms.append("taken >= ?")
        values.append(where.since.isoformat()[:10])
    if where.until is not None:
        # Any time of that day sorts after the day itself and before the day followed by "~".
        terms.append("taken < ?")
        values.append(where.until.isoformat()[:10] + "~")
    if where.name is not None:
        terms.append(f"{NAMED}(id, ?)")
        values.append(where.name)
    return " AND ".join(terms), values


def is_named(photo_id: str, part: str) -> bool:
    """Whether the file name of a photo has a part, in letters of any case; what `NAMED` means in a statement."""
    return normal_name(part).casefold() in photo_id.rpartition("/")[2].casefold()
