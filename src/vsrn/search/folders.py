"""What a filter that a person typed means in one index: its folder, found, and the rows that pass."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from vsrn.data.listing import photo_id
from vsrn.errors import UnknownFolderError, did_you_mean
from vsrn.files import printable
from vsrn.metrics import IntArray
from vsrn.search.records import View
from vsrn.search.where import Where


def rows_of(view: View, where: Where) -> IntArray | None:
    """(n,) rows of the photos that pass a filter; None where all do. Raises `UnknownFolderError`."""
    where = resolved(view, where)
    return view.rows(where) if where else None


def resolved(view: View, where: Where) -> Where:
    """The filter with its folder named as ids begin, or without it where it is the whole index.

    Raises `UnknownFolderError`.
    """
    folder = None if where.folder is None else folder_named(view, where.folder, paths=where.paths)
    return replace(where, folder=folder or None)


def folder_named(view: View, name: Path | str, *, paths: bool) -> str:
    """A folder as ids begin, "" for the whole index, of the folder that a person means.

    paths  whether it may be named by a path, from here or from the top

    Raises `UnknownFolderError` where no photo and no skipped file of the index lies in it.
    """
    typed, root = str(name).replace(os.sep, "/"), root_of(view)
    asked = ""
    with contextlib.suppress(ValueError):  # characters that no path has
        places = [(os.path.normpath(typed.strip("/")), Path())]
        if paths:
            # As it is written, and as it is once links are followed.
            places += [(os.path.abspath(typed), root), (os.path.realpath(typed), root.resolve())]  # noqa: PTH100
        for path, above in places:
            if Path(path).is_relative_to(above):
                asked = photo_id(Path(path).relative_to(above))
                if asked == ".":
                    return ""
                if view.has_folder(asked):
                    return asked
    known = view.folders()
    # What people forget is the case of its letters, or the folders above it.
    near = [folder for folder in known if asked and f"/{folder}".casefold().endswith(f"/{asked}".casefold())]
    hint = f" Did you mean '{near[0]}'?" if near else did_you_mean(asked, known)
    raise UnknownFolderError(f"the index has no folder '{printable(typed)}'.{printable(hint)}")


def root_of(view: View) -> Path:
    """The folder that was indexed."""
    return Path(os.fsdecode(view.state().root))
