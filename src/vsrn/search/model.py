"""The model inside an index, opened once it is sure that it is the one that the index was made by."""

from __future__ import annotations

from pathlib import Path

from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError
from vsrn.search.layout import INFO_FILE, MODEL_FOLDER, IndexInfo


def open_model(folder: Path, info: IndexInfo, device: str = "auto") -> OnnxEncoder:
    """The model inside an index.

    device  where its extractor and captioner compute: `cpu`, `cuda`, `mps` or `auto`

    Raises `SearchError` where it is another, or index.json does not agree with it, and `CheckpointError` where one
    of its files is missing, broken, a link, or not the file that the index was made with.
    """
    place = folder / MODEL_FOLDER
    if place.is_symlink():
        raise SearchError(f"{place} is a link, which `vsrn index` never makes; do not use this index.")
    encoder = OnnxEncoder(place, checksums=info.files, device=device)
    if encoder.info.model != info.model:
        raise SearchError(
            f"{place} ({encoder.info.model[:12]}) is not the model that the index was made by ({info.model[:12]});"
            f" `vsrn index PHOTOS -o {folder} --model MODEL`, with that model, puts it back."
        )
    for name in ("joint_dim", "feature_dim"):
        said, known = getattr(info, name), getattr(encoder.info, name)
        if said != known:
            raise SearchError(
                f"{folder / INFO_FILE} was changed: it says {name} {said}, and the model has {known}; put the number"
                f" back, or delete this one file, and `vsrn index PHOTOS -o {folder}` makes it again."
            )
    return encoder
