"""Which files and folders below a folder of photos are left out, by what they are and by globs that a person gives."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from vsrn.errors import ConfigError
from vsrn.files import normal_name, printable

# What systems keep beside photos: thumbnails, deleted files, snapshots. In lower case; hidden ones are left out anyway.
_SYNOLOGY, _QNAP = ("@eadir", "#recycle", "#snapshot"), ("@recycle", "@recently-snapshot", "@transcode")
_WINDOWS, _LINUX = ("$recycle.bin", "recycler", "system volume information"), ("lost+found",)
_MACOS = ("__macosx", "network trash folder", "temporary items")
_SYSTEM_FOLDERS = {*_SYNOLOGY, *_QNAP, *_WINDOWS, *_LINUX, *_MACOS}


class Exclusion:
    """What below a folder is left out: what is hidden, folders of systems, and what globs and `leave_out` say.

    num_folders  that `find_photos` came across and left out
    num_files    that globs left out, beside those in such folders
    """

    def __init__(self, folder: Path | str, globs: Sequence[str] = ()) -> None:
        """
        folder  that is searched
        globs   names such as `Screenshots` and `*.png`, at any depth, or paths below the folder such as `2019/raw*`,
                also written as paths to there; `*` stands for slashes too, and a slash at the end for folders alone

        Raises `ConfigError` for a glob that is empty or names the folder itself.
        """
        self.num_folders = self.num_files = 0
        self._globs = [_glob(folder, written) for written in globs]
        self._told: set[str] = set()

    def leave_out(self, name: str) -> None:
        """Leave out, and count, a folder by its path below the folder that is searched."""
        self._told.add(name)
        self.num_folders += 1

    def has_folder(self, name: str) -> bool:
        """Whether a folder is left out, by its path."""
        last = posixpath.basename(name)
        hidden = last.startswith(".") or last.casefold() in _SYSTEM_FOLDERS
        return hidden or name in self._told or self._is_named(f"{name}/")

    def has_file(self, name: str) -> bool:
        """Whether a file is left out, by its path, where its folder is not."""
        return posixpath.basename(name).startswith(".") or self._is_named(name)

    def has_photo(self, photo_id: str) -> bool:
        """Whether a photo is left out, or a folder that it lies in."""
        above = PurePosixPath(photo_id).parents
        return self.has_file(photo_id) or any(self.has_folder(str(path)) for path in above if path.name)

    def passes_over(self, name: str, kind: Literal["link", "folder", "file"]) -> bool:
        """Whether what was found is left out, which is then counted; a link may be to either."""
        folder = kind != "file" and self.has_folder(name)
        file = kind != "folder" and self.has_file(name)
        self.num_folders += folder and kind == "folder"
        self.num_files += file and not posixpath.basename(name).startswith(".")
        return folder or file

    def _is_named(self, name: str) -> bool:
        """Whether a glob means a file, or a folder, whose name ends with a slash."""
        plain = name.rstrip("/")
        for glob in self._globs:
            asked = plain if "/" in glob.rstrip("/") else posixpath.basename(plain)
            if fnmatchcase(asked, glob.strip("/")) and (name != plain or not glob.endswith("/")):
                return True
        return False


def lasting_glob(folders: Sequence[Path], written: str) -> str:
    """A glob that means in every working directory what `written` means in this one.

    A path to somewhere below one of the folders becomes absolute; any other is one below each of them. Raises
    `ConfigError` where it is empty or names one of the folders.
    """
    for folder in folders:
        if os.path.abspath(written) == os.path.abspath(folder):  # noqa: PTH100
            raise ConfigError(f"--exclude {printable(written)} names a folder of photos; name it before --exclude.")
        glob, below = _glob(folder, written), _below(folder, written)
        if below is not None:
            return f"{os.path.abspath(folder)}{glob}" if glob.startswith("/") else glob  # noqa: PTH100
    return glob


def _glob(folder: Path | str, written: str) -> str:
    """A glob as it fits ids: a name, or a slash and a path below the folder; either with a slash at its end or not."""
    text, end = normal_name(written.replace(os.sep, "/")), "/" * written.endswith(("/", os.sep))
    if "/" in text.rstrip("/"):
        text = _below(folder, written) or posixpath.normpath(text).lstrip("/")
        text = text.removeprefix("**/") if text.count("/") == 1 and text.startswith("**/") else f"/{text}"
    text = text.rstrip("/")
    if text.strip("/") in ("", ".", ".."):
        raise ConfigError(f"--exclude {printable(written) or '(empty)'} names no file or folder below {folder}.")
    return text + end


def _below(folder: Path | str, written: str) -> str | None:
    """What a glob that is a path to somewhere below a folder names there; None of any other glob."""
    root = normal_name(os.path.abspath(folder))  # noqa: PTH100
    below = os.path.relpath(os.path.abspath(normal_name(written)), root).replace(os.sep, "/")  # noqa: PTH100
    return None if below == ".." or below.startswith("../") else below
