"""A new index, or the one that is there if it is what was asked for."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from vsrn.errors import SearchError
from vsrn.files import new_folder
from vsrn.inference.encoder import Encoder
from vsrn.inference.export import export_onnx, model_fingerprint
from vsrn.inference.onnx import INFO_FILE as EXPORT_FILE
from vsrn.inference.onnx import OnnxEncoder
from vsrn.inference.photos import learned_extractor, names_of
from vsrn.packaged import DEFAULT_MODEL, find_model
from vsrn.regions.growing import sync_folder, write_synced
from vsrn.regions.kept import carry_weights
from vsrn.regions.store import RegionNames
from vsrn.search.layout import (
    INFO_FILE,
    LOCK_FILE,
    MILVUS_FILE,
    MODEL_FOLDER,
    RECORDS_FILE,
    EngineName,
    IndexInfo,
    read_info,
    write_info,
)
from vsrn.search.records import Records
from vsrn.search.writer import IndexLock

Model = Encoder | OnnxEncoder | Path | str
# What a creation that was killed may have left.
_OURS = (LOCK_FILE, MODEL_FOLDER, MILVUS_FILE, RECORDS_FILE, f"{RECORDS_FILE}-wal", f"{RECORDS_FILE}-shm")


def create_index(
    folder: Path,
    photos: Path,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
) -> None:
    """Make an empty index of `photos` in `folder`, or see that the one that is there was made in this way.

    Arguments as in `update_index`; None is whatever an existing index has. Raises `SearchError` where the index, or
    the folder's other use, contradicts them, and `CheckpointError` where the model cannot be used.
    """
    if uri and engine != "milvus":
        raise SearchError("--uri is for Milvus; add --engine milvus.")
    if (folder / INFO_FILE).is_file():
        _refuse_contradiction(folder, read_info(folder), model, explain=explain, engine=engine, uri=uri)
        return
    _refuse_foreign(folder)
    source = _open_model(DEFAULT_MODEL if model is None else model)
    _refuse_unsearchable(source)
    # Asked for even where nothing is kept of regions: a model that cannot read photos here is refused at once.
    names = _region_names(source)
    folder.mkdir(parents=True, exist_ok=True)
    lock = IndexLock(folder)
    try:
        if (folder / INFO_FILE).is_file():
            # While this process opened its model.
            raise SearchError(f"{folder} was just made by another vsrn index; run the same command again.")
        shutil.rmtree(folder / MODEL_FOLDER, ignore_errors=True)
        _write_model(source, folder / MODEL_FOLDER)
        info = OnnxEncoder.load(folder / MODEL_FOLDER).info
        Records.create(folder / RECORDS_FILE, os.fsencode(photos.absolute())).close()
        write_info(
            folder,
            IndexInfo(
                name=uuid.uuid4().hex,
                model=info.model,
                joint_dim=info.joint_dim,
                feature_dim=info.feature_dim,
                explain=explain is not False,
                engine=engine or "faiss",
                uri=uri,
                names=RegionNames() if explain is False else names,
            ),
        )
        sync_folder(folder)
    finally:
        lock.release()


def _open_model(model: Model) -> Encoder | OnnxEncoder:
    if not isinstance(model, Path | str):
        return model
    folder = find_model(model)
    if (folder / EXPORT_FILE).is_file():
        return OnnxEncoder.load(folder)
    return Encoder.load(folder, device="cpu")


def _fingerprint(model: Encoder | OnnxEncoder) -> str:
    return model.info.model if isinstance(model, OnnxEncoder) else model_fingerprint(model.stored)


def _write_model(model: Encoder | OnnxEncoder, folder: Path) -> None:
    """Put the exported encoders in the index, so that a search needs nothing else."""
    if isinstance(model, Encoder):
        export_onnx(model.stored, folder)
        return
    weights = model.extractor_weights
    with new_folder(folder) as temporary:
        for file in sorted(model.folder.iterdir()):
            if file.is_file() and file != weights:
                write_synced(temporary / file.name, file.read_bytes())
        if weights is not None:
            carry_weights(weights, temporary)


def _refuse_foreign(folder: Path) -> None:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise SearchError(f"{folder} is a file; choose another -o.") from error
    foreign = sorted(name for name in names if name not in _OURS and not name.startswith("."))
    if foreign:
        raise SearchError(f"{folder} is no index and holds other files ({foreign[0]}); choose another -o.")


def _refuse_unsearchable(model: Encoder | OnnxEncoder) -> None:
    config = model.config if isinstance(model, OnnxEncoder) else model.stored.config
    if config.model.similarity != "cosine":
        raise SearchError(
            f"the model compares by {config.model.similarity} similarity, which no engine searches by; use one that"
            " compares by cosine."
        )
    if config.model.network.name:
        raise SearchError(
            "the model reads photos whole, by a network of its own that an index cannot take along; use a model of"
            " regions."
        )


def _region_names(model: Encoder | OnnxEncoder) -> RegionNames:
    """What its extractor calls regions. Raises `DataError` where the extractor here is not the model's."""
    if isinstance(model, Encoder):
        stored = model.stored
        return names_of(learned_extractor(stored.regions, stored.extractor_weights), stored.region_names)
    return names_of(learned_extractor(model.learned_from, model.extractor_weights), model.region_names)


def _refuse_contradiction(
    folder: Path, info: IndexInfo, model: Model | None, *, explain: bool | None, engine: EngineName | None, uri: str
) -> None:
    """Raise `SearchError` where an index was made in another way than is asked for now."""
    if model is not None:
        asked = _fingerprint(_open_model(model))
        if asked != info.model:
            raise SearchError(
                f"{folder} was made by another model ({info.model[:12]}, not {asked[:12]}); choose another -o, or leave"
                " out --model to go on with its own."
            )
    other = None
    if explain is not None and explain != info.explain:
        other = "without --no-explain" if info.explain else "with --no-explain"
    elif engine is not None and (engine, uri) != (info.engine, info.uri):
        other = f"with --engine {info.engine}" + (f" --uri {info.uri}" if info.uri else "")
    if other is not None:
        raise SearchError(f"{folder} was made {other}, which cannot be changed; choose another -o.")
