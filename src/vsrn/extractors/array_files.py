"""Files of arrays, whatever their form: `.npy`, `.npz`, HDF5 and safetensors, read an array or a row of one at a time.

Nothing of a file runs: no pickle is opened, and links and storage outside of an HDF5 file are not followed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vsrn.data.other_forms import for_shell
from vsrn.data.region_store import map_array
from vsrn.errors import ConfigError, DataError, one_line

Array = npt.NDArray[Any]
# The most that one image's array may take; an archive can be made to claim any size.
MAX_IMAGE_BYTES = 64 * 2**20
# Of an archive, also of one without members.
_MAGIC_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PICKLE_VERSIONS = (b"\x02", b"\x03", b"\x04", b"\x05")
_MAGIC_HDF5, _MAGIC_NPY = b"\x89HDF", b"\x93NUM"
# What to do with files that only Python reads. torch reads its tensors and runs nothing of such a file.
_BY_TORCH = (
    "was written by torch.save; write its tensors with",
    "import sys, torch; from safetensors.torch import save_file;"
    " t = torch.load(sys.argv[1], 'cpu', weights_only=True);"
    " save_file({str(k): v.contiguous() for k, v in (t if isinstance(t, dict) else {'features': t}).items()},"
    " sys.argv[2])",
)
_BY_PICKLE = (
    "is a pickle, which can run code; if you trust it, write its arrays with",
    "import sys, pickle, numpy as np; t = pickle.load(open(sys.argv[1], 'rb')); np.savez(sys.argv[2],"
    " **({str(k): np.asarray(v) for k, v in t.items()} if isinstance(t, dict) else {'features': np.asarray(t)}))",
)


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a file.

    objects  whether it holds Python objects, which are not read
    read     gives the whole array
    rows     gives an array-like whose single rows can be read without the others
    """

    shape: tuple[int, ...]
    objects: bool
    read: Callable[[], Array]
    rows: Callable[[], Any]


def open_arrays(path: Path, unpack_in: Path, opened: contextlib.ExitStack) -> dict[str, ArrayEntry] | None:
    """The arrays of a file by name, in the file's order; None where it is none of these forms.

    unpack_in  folder on a disk with room for what an archive holds compressed; nothing in it is left behind
    opened     keeps the file open

    The one array of an `.npy` file has the file's name. Raises `DataError` where the file cannot be read or is damaged,
    and `ConfigError` where HDF5 needs a package.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == _MAGIC_NPY:
            array = map_array(path, dims=(1, 2, 3))
            return {path.stem: ArrayEntry(array.shape, False, lambda: np.asarray(array), lambda: array)}
        if magic in _MAGIC_ZIP:
            return _of_archive(path, unpack_in, opened)
        if magic[:1] == b"\x80" and magic[1:2] in _PICKLE_VERSIONS:
            raise DataError(_to_rewrite(path, ".npz", *_BY_PICKLE))
        if magic == _MAGIC_HDF5:
            return _of_hdf5(path, opened)
        if path.suffix == ".safetensors":
            return _of_safetensors(path, opened)
    except (DataError, ConfigError):
        raise
    except Exception as error:
        # A damaged file makes its parser raise anything.
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{path} cannot be read ({reason}); check the path, or get the file again.") from error
    return None


def _to_rewrite(path: Path, ending: str, said: str, code: str) -> str:
    """The sentence that gives the commands for a file that only Python reads."""
    kept = for_shell(path.with_suffix(ending))
    return f'{path} {said} `python -c "{code}" {for_shell(path)} {kept}` and then run `vsrn import {kept} -o STORE`.'


def _of_archive(path: Path, unpack_in: Path, opened: contextlib.ExitStack) -> dict[str, ArrayEntry]:
    archive, entries = opened.enter_context(zipfile.ZipFile(path)), {}
    for member in archive.infolist():
        if member.filename.endswith("/data.pkl"):
            raise DataError(_to_rewrite(path, ".safetensors", *_BY_TORCH))
        if not member.filename.endswith(".npy"):
            raise DataError(
                f"{path} is a zip archive of other files than arrays, such as {member.filename}; unpack it first."
            )
        entries[member.filename.removesuffix(".npy")] = _of_member(archive, member, path, unpack_in, opened)
    return entries


def _of_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, unpack_in: Path, opened: contextlib.ExitStack
) -> ArrayEntry:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        start = file.tell()
    what = f"{path}: {member.filename}"
    order: Any = "F" if fortran else "C"
    if not dtype.hasobject and member.file_size - start != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise DataError(f"{what} is not as long as its header says; get the file again.")

    def read() -> Array:
        if member.file_size > MAX_IMAGE_BYTES:
            raise DataError(f"{what} is larger than {MAX_IMAGE_BYTES // 2**20} MB, more than an image has.")
        with archive.open(member) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

    def rows() -> Any:
        if member.compress_type == zipfile.ZIP_STORED:
            return np.memmap(path, dtype, "r", _start_of(path, member) + start, shape, order)
        unpack_in.mkdir(parents=True, exist_ok=True)
        # It has no name, so that no kill can leave it behind.
        copy = opened.enter_context(tempfile.TemporaryFile(dir=unpack_in))  # noqa: SIM115
        with archive.open(member) as file:
            shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        return np.memmap(copy, dtype, "r", start, shape, order)

    return ArrayEntry(shape, dtype.hasobject, read, rows)


def _start_of(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins; its name and further fields, of any length, stand before it."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra


def _of_hdf5(path: Path, opened: contextlib.ExitStack) -> dict[str, ArrayEntry]:
    try:
        import h5py  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            f"{path} is HDF5, which needs the package h5py; run `pip install '.[hdf5]'` in the checkout."
        ) from error
    entries: dict[str, ArrayEntry] = {}

    def note(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        if node.external or node.is_virtual:
            raise DataError(f"{path}: {name} keeps its numbers in another file; name that file.")
        entries[name] = ArrayEntry(node.shape, node.dtype.kind == "O", lambda: np.asarray(node[()]), lambda: node)

    # This visits what is in the file, and follows no link out of it.
    opened.enter_context(h5py.File(path, "r")).visititems(note)
    return entries


def _of_safetensors(path: Path, opened: contextlib.ExitStack) -> dict[str, ArrayEntry]:
    import safetensors  # noqa: PLC0415
    import torch  # noqa: PLC0415 - numpy has no bfloat16

    file = opened.enter_context(safetensors.safe_open(path, framework="pt"))

    def entry(name: str) -> ArrayEntry:
        part = file.get_slice(name)

        def as_array(tensor: Any) -> Array:
            return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())

        class Rows:
            """Single rows of a tensor."""

            shape = tuple(part.get_shape())

            def __getitem__(self, row: int) -> Array:
                return as_array(part[row])

        return ArrayEntry(Rows.shape, False, lambda: as_array(file.get_tensor(name)), Rows)

    return {name: entry(name) for name in file.keys()}  # noqa: SIM118 - not a dict
