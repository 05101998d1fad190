"""What of an index is not what was written, and how it is made whole before anything is added to it.

    for damage in check_index("idx/"):
        print(damage.what, damage.ids)

`vsrn index` mends records, model and index.json here; photos whose vector, regions or thumbnail are damaged are read
again (`build.py`). Records of older indexes have no checksums. Of those a vector must be finite and, where the model's
are, of length 1; a thumbnail must begin as a JPEG; and every piece must be there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError, VsrnError
from vsrn.files import read_at, sync_folder
from vsrn.pretrained import PACKAGED_MODELS
from vsrn.search.create import Model, checksums, new_info, open_source, write_model
from vsrn.search.database import Records
from vsrn.search.layout import (
    GROWING,
    INFO_FILE,
    JPEG_START,
    MODEL_FOLDER,
    RECORDS_FILE,
    IndexInfo,
    IndexLock,
    UnreadableInfoError,
    growing_path,
    lengths_are_wrong,
    open_model,
    opened,
    parse_info,
    piece_of,
    read_info,
    regions_size,
    write_info,
)
from vsrn.search.records import DamagedRecordsError, PhotoRecord, Stamp, State, View


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


def mend_index(folder: Path, photos: Path, model: Model | None) -> None:
    """Mend what is damaged of an index besides its vectors, regions and thumbnails; of a folder without one, nothing.

    photos  the folder of its photos
    model   the model that it was made by, where a person named it

    Raises `SearchError` or `CheckpointError` where that cannot be done.
    """
    if not is_index(folder):
        return
    info = _info_of(folder)
    _mend_model(folder, info, model)
    _mend_records(folder, info, photos)


def is_index(folder: Path) -> bool:
    """Whether an index is there, be it without its index.json."""
    if (folder / INFO_FILE).is_file():
        return True
    try:
        with contextlib.closing(Records(folder / RECORDS_FILE)) as records, records.read() as view:
            return view.state().version > 0
    except SearchError:
        return False


def _info_of(folder: Path) -> IndexInfo:
    """The index.json of an index; a lost or damaged one is made again from its copy in the records, or the model.

    Raises `SearchError` where it contradicts its copy.
    """
    try:
        info = read_info(folder)
        _check_copy(folder, info)
        return info
    except UnreadableInfoError:
        with contextlib.closing(Records(folder / RECORDS_FILE)) as records, records.read() as view:
            copy = view.info()
            explain = all(photo.regions_at is not None for photo in view.latest(1))
        try:
            info = parse_info(copy or b"")
        except ValueError:
            # An older index, which kept no copy. Had it a server, its vectors are in the index all the same.
            encoder = OnnxEncoder.load(folder / MODEL_FOLDER, checksums={}, device="cpu")
            info = new_info(encoder, encoder.region_names, explain=explain, engine="faiss", uri="")
        write_info(folder, info)
        return info


def _check_copy(folder: Path, info: IndexInfo) -> None:
    """Raise `SearchError` where index.json says otherwise than its copy in the records; where Milvus is may change."""
    try:
        with contextlib.closing(Records(folder / RECORDS_FILE)) as records, records.read() as view:
            copy = parse_info(view.info() or b"")
    except (DamagedRecordsError, ValueError):
        return
    for name in ("joint_dim", "feature_dim", "explain", "names"):
        said, was = getattr(info, name), getattr(copy, name)
        if said != was:
            raise SearchError(
                f"{folder / INFO_FILE} was changed: it says {name} {said}, and the records {was}; put it back, or"
                f" delete this one file, and `vsrn index PHOTOS -o {folder}` makes it again."
            )


def _mend_model(folder: Path, info: IndexInfo, model: Model | None) -> None:
    """Put the index's model back where a file of it is not what it was, and the same model is at hand.

    model  where a person named it; else a packaged one. Raises what `open_model` raises where none is the same.
    """
    try:
        encoder = open_model(folder, info)
        for name in info.files:
            encoder.file(name)
        return
    except VsrnError:
        named = PACKAGED_MODELS if model is None else (model,)
        sources = [source for source in map(open_source, named) if source.fingerprint == info.model]
        if not sources:
            raise
    lock = IndexLock(folder)
    try:
        place = folder / MODEL_FOLDER
        place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)
        write_model(sources[0], place)
        write_info(folder, msgspec.structs.replace(info, files=checksums(place)))
    finally:
        lock.release()


def _mend_records(folder: Path, info: IndexInfo, photos: Path) -> None:
    """Replace damaged records by new ones with what can still be read of them; other photos are read again."""
    path = folder / RECORDS_FILE
    try:
        with contextlib.closing(Records(path)) as records:
            if not records.faults():
                return
    except DamagedRecordsError:
        pass
    lock = IndexLock(folder)
    try:
        state, found = _salvaged(folder, info, photos)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.closing(Records.create(temporary, state.root)) as begun:
            begun.begin_with(state, found)
        for beside in (Path(f"{path}-wal"), Path(f"{path}-shm")):
            beside.unlink(missing_ok=True)
        temporary.replace(path)
        sync_folder(folder)
    finally:
        lock.release()


def _salvaged(folder: Path, info: IndexInfo, photos: Path) -> tuple[State, list[PhotoRecord]]:
    """How far an index with damaged records has come, as far as can be told, and the records that can be read."""
    generations = [path.stem.rpartition("-")[2] for path in folder.glob("vectors-*.f16")]
    generation = max((int(number) for number in generations if number.isdecimal()), default=1)
    vectors = growing_path(folder, "vectors", generation)
    num_rows = vectors.stat().st_size // (2 * info.joint_dim) if vectors.is_file() else 0
    state: State | None = None
    found: list[PhotoRecord] = []
    with contextlib.suppress(SearchError), contextlib.closing(Records(folder / RECORDS_FILE)) as records:
        state, found = records.salvage(num_rows)
    if state is not None and state.generation != generation:
        found = []
    return (
        State(
            # Services tell by the version whether there is something new: the time is above any number of commits.
            version=int(time.time()) if state is None else state.version + 1,
            generation=generation,
            num_rows=max((photo.row + 1 for photo in found), default=0),
            regions_end=max(
                (photo.regions_at + regions_size(photo, info) for photo in found if photo.regions_at is not None),
                default=0,
            ),
            thumbnails_end=max((photo.thumbnail_at + photo.thumbnail_size for photo in found), default=0),
            root=os.fsencode(photos.absolute()) if state is None else state.root,
        ),
        found,
    )
