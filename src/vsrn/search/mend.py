"""What of an index is not what was written, and how it is made whole before anything is added to it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError, VsrnError
from vsrn.files import delete, replacing, sync_folder
from vsrn.pretrained import PACKAGED_MODELS
from vsrn.search import layout
from vsrn.search.create import Model, checksums, new_info, open_source, write_model
from vsrn.search.database import Records, beside, create_records
from vsrn.search.layout import GROWING, GrowingFile, IndexInfo, check_agreement
from vsrn.search.records import DamagedRecordsError, PhotoRecord, Stamp, State, View
from vsrn.search.roots import Settings


@dataclass(frozen=True)
class Damage:
    """One kind of damage: a sentence, and the ids of the photos concerned; none where that cannot be said."""

    what: str
    ids: list[str]


def check_index(folder: Path | str) -> list[Damage]:
    """Look at everything in an index and change nothing; nothing is found where it is whole.

    Raises `SearchError` where the folder is no index.
    """
    folder = Path(folder)
    info = IndexInfo.read(folder)
    found: list[Damage] = []
    normalised = True
    try:
        normalised = layout.open_model(folder, info).config.model.image_norm
        layout.open_model(folder, info, whole=True)
    except VsrnError as error:
        found.append(Damage(str(error), []))
    try:
        with Records(folder) as records:
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
    files: dict[str, GrowingFile | None] = {}
    with contextlib.ExitStack() as stack:
        for kind in GROWING:
            file = None
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(GrowingFile(folder, kind, info, state))
            if file is None or stamps.get(kind) != Stamp.of_status(file.status()):
                files[kind] = file
        for photo in view.photos() if files else ():
            for kind, file in files.items():
                try:
                    if file is not None:
                        file.piece(photo, normalised=normalised)
                    elif layout.piece_of(kind, photo, info)[1]:
                        raise SearchError(f"the {kind} are missing")
                except SearchError:
                    found.setdefault(photo.id, set()).add(kind)
    return found


def mend_index(folder: Path, model: Model | None) -> None:
    """Mend what is damaged of an index, if there is one, besides its vectors, regions and thumbnails.

    model  the model that it was made by, where a person named it

    Raises `SearchError` or `CheckpointError` where that cannot be done.
    """
    if is_index(folder):
        _mend_model(folder, _info_of(folder), model)
        _mend_records(folder, IndexInfo.read(folder))


def is_index(folder: Path) -> bool:
    """Whether an index is there, be it without its index.json."""
    if (folder / layout.INFO_FILE).is_file():
        return True
    try:
        with Records(folder) as records, records.read() as view:
            return view.state().version > 0
    except SearchError:
        return False


def _info_of(folder: Path) -> IndexInfo:
    """The index.json of an index; a lost or damaged one is made again from its copy in the records, or the model.

    Raises `SearchError` where it contradicts its copy.
    """
    try:
        info = IndexInfo.read(folder)
    except SearchError:
        with Records(folder) as records, records.read() as view:
            copy = view.info()
            explain = all(photo.regions_at is not None for photo in view.latest(1))
        try:
            info = IndexInfo.parse(copy or b"")
        except ValueError:
            # An older index, which kept no copy. Had it a server, its vectors are in the index all the same.
            encoder = OnnxEncoder(folder / layout.MODEL_FOLDER, checksums={}, device="cpu")
            info = new_info(encoder, encoder.region_names, explain=explain, engine="faiss", uri="")
        info.write(folder)
        return info
    try:
        with Records(folder) as records, records.read() as view:
            kept = IndexInfo.parse(view.info() or b"")
    except (DamagedRecordsError, ValueError):
        return info
    # Where Milvus is may change.
    check_agreement(folder, info, kept, "records", ("joint_dim", "feature_dim", "explain", "names", "thumbnail_side"))
    return info


def _mend_model(folder: Path, info: IndexInfo, model: Model | None) -> None:
    """Put the index's model back where a file of it is not what it was, from the named model or a packaged one.

    Raises what `open_model` raises where none is the same.
    """
    try:
        layout.open_model(folder, info, whole=True)
    except VsrnError:
        named = PACKAGED_MODELS if model is None else (model,)
        sources = [source for source in map(open_source, named) if source.fingerprint == info.model]
        if not sources:
            raise
        place = folder / layout.MODEL_FOLDER
        with layout.index_lock(folder):
            delete(place)
            write_model(sources[0], place)
            msgspec.structs.replace(info, files=checksums(place)).write(folder)


def _mend_records(folder: Path, info: IndexInfo) -> None:
    """Replace damaged records by new ones with what can still be read of them; other photos are read again."""
    path = folder / layout.RECORDS_FILE
    with contextlib.suppress(DamagedRecordsError), Records(folder) as records:
        if not records.faults():
            return
    with layout.index_lock(folder):
        generations = [file.stem.rpartition("-")[2] for file in folder.glob("vectors-*.f16")]
        generation = max((int(number) for number in generations if number.isdecimal()), default=1)
        vectors = layout.growing_path(folder, "vectors", generation)
        num_rows = vectors.stat().st_size // (2 * info.joint_dim) if vectors.is_file() else 0
        old: State | None = None
        settings, found = Settings(), list[PhotoRecord]()
        with contextlib.suppress(SearchError), Records(folder) as records:
            old, settings, found = records.salvage(num_rows)
        if old is not None and old.generation != generation:
            found = []
        regions = [layout.piece_of("regions", photo, info) for photo in found]
        state = State(
            # Services tell by the version whether there is something new: the time is above any number of commits.
            version=int(time.time()) if old is None else old.version + 1,
            generation=generation,
            num_rows=max((photo.row + 1 for photo in found), default=0),
            regions_end=max((start + size for start, size, _ in regions), default=0),
            thumbnails_end=max((photo.thumbnail_at + photo.thumbnail_size for photo in found), default=0),
            root=b"" if old is None else old.root,
        )
        with replacing(path) as temporary:
            create_records(temporary, state, info.as_json(), found, settings)
            for file in beside(path):
                file.unlink(missing_ok=True)
        sync_folder(folder)
