"""An index with the model that it was made by, ready to be asked."""

from __future__ import annotations

from pathlib import Path

from vsrn.errors import SearchError
from vsrn.inference.exported import ExportedEncoder
from vsrn.search.index import Index
from vsrn.search.layout import MODEL_FOLDER, read_info


def open_index(folder: Path | str) -> Index:
    """Open an index. Sentences are then searched without torch; photos need it, to extract their regions.

    Raises `SearchError` where the folder is no index, is broken, or its model is not the one that made it, and
    `CheckpointError` where the model itself is broken.
    """
    folder = Path(folder)
    info = read_info(folder)
    encoder = ExportedEncoder.load(folder / MODEL_FOLDER)
    if encoder.info.model != info.model:
        raise SearchError(
            f"{folder / MODEL_FOLDER} ({encoder.info.model[:12]}) is not the model that the index was made by"
            f" ({info.model[:12]}); put that one back, or make the index again."
        )
    return Index(folder, encoder)
