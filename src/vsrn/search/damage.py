"""What of an index is not what was written: a look at every vector, every photo's regions and every thumbnail.

    for damage in check_index("idx/"):
        print(damage.what, damage.ids)

Records of older indexes have no checksums. Of those a vector must be finite and, where the model's are, of length 1;
a thumbnail must begin as a JPEG; and every piece must be there.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsrn.errors import VsrnError
from vsrn.files import read_at
from vsrn.metrics import FloatArray
from vsrn.search.database import Records
from vsrn.search.layout import GROWING, RECORDS_FILE, IndexInfo, growing_path, opened, read_info, regions_size
from vsrn.search.model import open_model
from vsrn.search.records import PhotoRecord, Stamp, State, View

JPEG_START = b"\xff\xd8\xff"
# Vectors are halves: rounding 512 numbers changes a length of 1 by less than 1e-3.
LENGTH_TOLERANCE = 0.01


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    what    the sentence that says what is damaged
    ids     of the photos concerned; empty where that cannot be said
    """

    what: str
    ids: list[str]


def check_index(folder: Path | str) -> list[Damage]:
    """Look at everything in an index and change nothing; an empty list says that it is whole.

    Raises `SearchError` where the folder is no index.
    """
    folder = Path(folder)
    info = read_info(folder)
    found: list[Damage] = []
    normalised = True
    try:
        encoder = open_model(folder, info)
        normalised = encoder.config.model.image_norm
        for name in info.files:
            encoder.file(name)
    except VsrnError as error:
        found.append(Damage(str(error), []))
    try:
        with contextlib.closing(Records(folder / RECORDS_FILE)) as records:
            found += [Damage(f"{records.path} is damaged: {fault}", []) for fault in records.faults()]
            with records.read() as view:
                damaged = damaged_pieces(folder, info, view, normalised=normalised)
    except VsrnError as error:
        return [*found, Damage(str(error), [])]
    for kind in GROWING:
        ids = [photo_id for photo_id, kinds in damaged.items() if kind in kinds]
        if ids:
            found.append(Damage(f"the {kind} of {len(ids):,} photos are not what was written", ids))
    return found


def damaged_pieces(
    folder: Path, info: IndexInfo, view: View, *, normalised: bool, stamped: bool = False
) -> dict[str, set[str]]:
    """By photo id, which of its vector, regions and thumbnail are not what was written; changes nothing.

    normalised  whether the model's embeddings have length 1
    stamped     whether to pass over files that have the size, time and inode that the last commit left them with

    Raises `SearchError` where one of the files is a link or no regular file.
    """
    state, stamps = view.state(), view.file_stamps() if stamped else {}
    found: dict[str, set[str]] = {}
    for kind in GROWING:
        path = growing_path(folder, kind, state.generation)
        with contextlib.ExitStack() as stack:
            descriptor = None
            with contextlib.suppress(FileNotFoundError):
                descriptor = stack.enter_context(opened(path))
            if descriptor is not None and stamps.get(kind) == stamp_of(os.fstat(descriptor)):
                continue
            for photo in view.photos():
                if not _is_whole(kind, descriptor, photo, info, state, normalised=normalised):
                    found.setdefault(photo.id, set()).add(kind)
    return found


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells whether a file of vectors, regions or thumbnails is as a commit left it."""
    return Stamp.of(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def piece_of(kind: str, photo: PhotoRecord, info: IndexInfo) -> tuple[int, int, int | None] | None:
    """First byte, number of bytes and CRC-32 of what a photo has in a file; None where the index keeps none."""
    if kind == "vectors":
        return 2 * info.joint_dim * photo.row, 2 * info.joint_dim, photo.vector_crc
    if kind == "regions":
        return None if photo.regions_at is None else (photo.regions_at, regions_size(photo, info), photo.regions_crc)
    return photo.thumbnail_at, photo.thumbnail_size, photo.thumbnail_crc


def lengths_are_wrong(vectors: FloatArray, *, normalised: bool) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n, D) vectors -> (n,) True where one is not finite or, where the model's are, not of length 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.asarray(vectors, dtype=np.float32)
        squares = np.einsum("nd,nd->n", wide, wide)
        if not normalised:
            return ~np.isfinite(squares)
        return ~(np.abs(np.sqrt(squares) - 1) < LENGTH_TOLERANCE)


def _is_whole(
    kind: str, descriptor: int | None, photo: PhotoRecord, info: IndexInfo, state: State, *, normalised: bool
) -> bool:
    piece = piece_of(kind, photo, info)
    if piece is None:
        return True
    start, size, crc = piece
    end = {"vectors": 2 * info.joint_dim * state.num_rows, "regions": state.regions_end}
    if descriptor is None or start + size > end.get(kind, state.thumbnails_end):
        return False
    content = read_at(descriptor, size, start)
    if len(content) != size:
        return False
    if crc is not None:
        return zlib.crc32(content) == crc
    if kind == "vectors":
        return not lengths_are_wrong(np.frombuffer(content, "<f2")[None], normalised=normalised)[0]
    return kind != "thumbnails" or content.startswith(JPEG_START)
