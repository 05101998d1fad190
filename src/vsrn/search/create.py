"""A new index, or the one that is there if it is what was asked for."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from pathlib import Path

import msgspec
import safetensors

from vsrn.data.regions import RegionNames
from vsrn.encoders import load_encoder
from vsrn.encoders.base import Encoder
from vsrn.encoders.fit import FIT_FILE
from vsrn.encoders.onnx_backend import CAPTIONER_FILE, FILES, MODEL_KEY, OnnxEncoder, files_of
from vsrn.errors import SearchError
from vsrn.extractors.provenance import NAME, kept_weights
from vsrn.files import new_folder, read_plain, sync_folder, write_synced
from vsrn.pretrained import DEFAULT_MODEL, find_model
from vsrn.search import layout
from vsrn.search.database import create_records
from vsrn.search.layout import EngineName, IndexInfo
from vsrn.search.records import State

Model = Encoder | Path | str
# What a creation that was killed may have left, besides the records and the files that SQLite keeps beside them.
_OURS = (layout.LOCK_FILE, layout.MODEL_FOLDER, layout.MILVUS_FILE)
LICENSE_FILE = "LICENSE"
# Of a model, these and its extractor's weights, `extractor.*`, are copied: what else lies in its folder stays there.
_MODEL_FILES = (*FILES, LICENSE_FILE)
# Of an extractor that is a folder: what transformers reads that is no code.
_WEIGHT_FILES = (".json", ".safetensors", ".txt")


def create_index(
    folder: Path,
    model: Model | None = None,
    *,
    explain: bool | None = None,
    engine: EngineName | None = None,
    uri: str = "",
    device: str = "cpu",
    thumbnail_side: int | None = None,
) -> None:
    """Make an empty index of no photos in `folder`, or see that the one there was made in this way.

    Arguments as in `update_index`; None is whatever an existing index has. Raises `SearchError` where the index, or
    the folder's other use, contradicts them, and `CheckpointError` where the model cannot be used.
    """
    if uri and engine != "milvus":
        raise SearchError("--uri is for Milvus; add --engine milvus.")
    side = layout.THUMBNAIL_SIDE if thumbnail_side is None else thumbnail_side
    least, most = layout.LEAST_THUMBNAIL_SIDE, layout.MOST_THUMBNAIL_SIDE
    if not least <= side <= most:
        raise SearchError(f"--thumbnail-side {side}: thumbnails are {least} to {most} pixels a side.")
    if (folder / layout.INFO_FILE).is_file():
        _check_agreement(folder, model, explain, engine, uri, thumbnail_side)
        return
    _check_no_other_use(folder)
    source = open_source(DEFAULT_MODEL if model is None else model, device)
    _check_searchable(source)
    # A model that cannot read photos here is refused at once.
    names = source.region_names
    folder.mkdir(parents=True, exist_ok=True)
    with layout.index_lock(folder):
        if (folder / layout.INFO_FILE).is_file():
            # Another process made the index between our first check and our getting the lock.
            raise SearchError(f"{folder} was just made by another vsrn index; run the same command again.")
        shutil.rmtree(folder / layout.MODEL_FOLDER, ignore_errors=True)
        write_model(source, folder / layout.MODEL_FOLDER)
        encoder = OnnxEncoder(folder / layout.MODEL_FOLDER, checksums={})
        info = new_info(encoder, names, explain=explain is not False, engine=engine or "faiss", uri=uri)
        info = msgspec.structs.replace(info, thumbnail_side=side)
        create_records(folder / layout.RECORDS_FILE, State(0, 1, 0, 0, 0, b""), info.as_json())
        info.write(folder)
        sync_folder(folder)


def new_info(encoder: OnnxEncoder, names: RegionNames, *, explain: bool, engine: EngineName, uri: str) -> IndexInfo:
    """The index.json of an index with this model in its folder, whose extractor calls regions by these names."""
    return IndexInfo(
        name=uuid.uuid4().hex,
        model=encoder.info.model,
        joint_dim=encoder.info.joint_dim,
        feature_dim=encoder.info.feature_dim,
        explain=explain,
        engine=engine,
        uri=uri,
        names=names if explain else RegionNames(),
        files=checksums(encoder.folder),
    )


def open_source(model: Model, device: str = "cpu") -> Encoder:
    """The model that a person named, to compute on `device` where it is not loaded yet; raises `CheckpointError`."""
    return model if isinstance(model, Encoder) else load_encoder(find_model(model), device)


def write_model(model: Encoder, folder: Path) -> None:
    """Put the exported encoders in the index, so that a search needs nothing else."""
    if not isinstance(model, OnnxEncoder):
        from vsrn.encoders.export import export_onnx  # noqa: PLC0415
        from vsrn.encoders.torch_backend import TorchEncoder  # noqa: PLC0415

        assert isinstance(model, TorchEncoder), "a SCAN is refused before"
        export_onnx(model.stored, folder)
        weights = kept_weights(folder)
        if weights is not None and weights.is_symlink():
            source = weights.resolve()
            weights.unlink()
            _copy_weights(source, folder)
        return
    model.check()
    with new_folder(folder) as temporary:
        for name in _MODEL_FILES:
            if _belongs(model, model.folder / name):
                write_synced(temporary / name, (model.folder / name).read_bytes())
        if model.extractor_weights is not None:
            _copy_weights(model.extractor_weights, temporary)


def _belongs(model: OnnxEncoder, file: Path) -> bool:
    """Whether a file of a model's folder is what its name says.

    What has been read as such may be a link, as in a hub's folders; anything else may not, since a link can lead to a
    file that is not meant to be copied.
    """
    if file.name == FIT_FILE:
        return model.fit is not None
    if file.name == CAPTIONER_FILE and file.is_file():
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                return bool((opened.metadata() or {}).get(MODEL_KEY) == model.info.model)
        except safetensors.SafetensorError:
            return False
    return file.is_file() and not (file.name == LICENSE_FILE and file.is_symlink())


def _copy_weights(weights: Path, folder: Path) -> None:
    """Copy an extractor's weights into an index's model, of a folder only what is no code."""
    place = folder / f"{NAME}{weights.suffix}"
    if weights.is_file():
        shutil.copyfile(weights, place)
        return
    place.mkdir()
    for file in sorted(weights.iterdir()):
        if file.is_file() and file.suffix in _WEIGHT_FILES:
            shutil.copyfile(file, place / file.name)


def model_files(folder: Path) -> list[Path]:
    """The files of a model that an index takes along."""
    weights = kept_weights(folder)
    files = [folder / name for name in _MODEL_FILES if (folder / name).is_file()]
    return files + ([] if weights is None else files_of(weights))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of each file of a model, by its name."""
    files = model_files(folder)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(read_plain(file)).hexdigest() for file in files}


def _check_no_other_use(folder: Path) -> None:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise SearchError(f"{folder} is a file; choose another -o.") from error
    foreign = sorted(name for name in names if name not in _OURS and not name.startswith((".", layout.RECORDS_FILE)))
    if foreign:
        raise SearchError(f"{folder} is no index and holds other files ({foreign[0]}); choose another -o.")


def _check_searchable(model: Encoder) -> None:
    config = model.config.model
    if config.kind == "scan":
        raise SearchError(
            'a model of kind "scan", which has no vector of an image, cannot be searched by; use one that compares by'
            " cosine, and this one with --rerank."
        )
    if config.similarity != "cosine":
        raise SearchError(
            f"the model compares by {config.similarity} similarity, which no engine searches by; use one that compares"
            " by cosine."
        )
    if config.network.name:
        raise SearchError(
            "the model reads photos whole, by a network of its own that an index cannot take along; use a model of"
            " regions."
        )


def _check_agreement(
    folder: Path, model: Model | None, explain: bool | None, engine: EngineName | None, uri: str, side: int | None
) -> None:
    """Raise `SearchError` where an index was made in another way than is asked for now."""
    info = IndexInfo.read(folder)
    asked = info.model if model is None else open_source(model).fingerprint
    if asked != info.model:
        raise SearchError(
            f"{folder} was made by another model ({info.model[:12]}, not {asked[:12]}); choose another -o, or leave"
            " out --model to go on with its own."
        )
    other = None
    if explain not in (None, info.explain):
        other = "without --no-explain" if info.explain else "with --no-explain"
    elif engine is not None and (engine, uri) != (info.engine, info.uri):
        other = f"with --engine {info.engine}" + (f" --uri {info.uri}" if info.uri else "")
    elif side not in (None, info.thumbnail_side):
        other = f"with --thumbnail-side {info.thumbnail_side}"
    if other is not None:
        raise SearchError(f"{folder} was made {other}, which cannot be changed; choose another -o.")
