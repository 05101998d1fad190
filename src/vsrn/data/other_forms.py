"""Regions in other forms than a region store, which `vsrn import` converts: the sentence that says what to do."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import numpy as np

# What `vsrn import` reads, by the end of a file's name.
ENDINGS = (".npz", ".safetensors", ".h5", ".hdf5", ".tsv", ".tsv.gz")
# Names looked at in a folder; one with a file an image has hundreds of thousands.
_LOOKED_AT = 1000


def remedy_for_split(folder: Path, split: str) -> str:
    """A sentence that says how to use `{split}_ims.npz` or its like, where the folder has such a file; else ""."""
    found = next((path for end in ENDINGS if (path := folder / f"{split}_ims{end}").is_file()), None)
    return f"turn {found.name} into a region store with `vsrn import {for_shell(found)} -o STORE`." if found else ""


def remedy_for_folder(folder: Path, split: str) -> str:
    """What to do with a folder that is no region store, as the end of a sentence; a file of `split` is named first."""
    if said := remedy_for_split(folder, split):
        return said
    names = sorted(path.name for path in itertools.islice(folder.iterdir(), _LOOKED_AT))
    if sum(name.endswith((".npy", ".npz")) for name in names) > 1:
        return (
            f"of a folder with one file an image, make a region store with `vsrn import {for_shell(folder)} -o STORE`."
        )
    other = next((name for name in names if name.lower().endswith(ENDINGS)), None)
    if other is not None:
        return f"turn {other} into a region store with `vsrn import {for_shell(folder / other)} -o STORE`."
    below = [name for name in names if (folder / name).is_dir() and next((folder / name).glob("*_ims.npy"), None)]
    if below:
        return f"the region stores in it are {', '.join(str(folder / name) for name in below[:3])}; name one of them."
    return f"make a region store with `vsrn extract PHOTOS -o {for_shell(folder)}`."


def why_no_array(path: Path) -> str:
    """What a file is that is no `.npy` array of numbers and what to do about it; "" where that is not known."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                made = f"`vsrn import {for_shell(path)} -o STORE`"
                return f"{path} is an .npz archive; turn it into a region store with {made}."
            file.seek(0)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except Exception:
        # A header is an expression of Python; a wrong one raises SyntaxError, OverflowError, MemoryError and others.
        return ""
    if not dtype.hasobject:
        return ""
    archive = path.with_suffix(".npz")
    arrays = "*a" if shape else "**a.item()"
    return (
        f"{path} holds Python objects, which only a pickle can hold, and a pickle can run code; if you trust it, write"
        """ one array an image with `python -c "import sys, numpy as np; a = np.load(sys.argv[1], allow_pickle=True);"""
        f""" np.savez(sys.argv[2], {arrays})" {for_shell(path)} {for_shell(archive)}` and then run"""
        f" `vsrn import {for_shell(archive)} -o STORE`."
    )


def for_shell(path: Path) -> str:
    """A path for a command that a person copies; a name that a stranger chose runs nothing there."""
    return shlex.quote(str(path))
