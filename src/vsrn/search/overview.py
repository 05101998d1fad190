"""What an index holds and what it was made of, for whoever looks after it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.errors import SearchError, VsrnError
from vsrn.pretrained import MODELS, PACKAGED_MODELS
from vsrn.search.database import Records
from vsrn.search.layout import GROWING, MODEL_FOLDER, GrowingFile, IndexInfo, open_model
from vsrn.search.records import SkippedRecord
from vsrn.search.roots import Settings, is_empty
from vsrn.search.where import Where

# What takes room: files by the beginning of their names, and the folder of the model.
PARTS = (*GROWING, "records", "graph", "milvus", MODEL_FOLDER)


@dataclass(frozen=True)
class FolderOverview:
    """A folder of photos.

    path, label  as of a `Root`
    there        whether it is there, may be listed and holds anything
    num_photos   that the index has of it
    """

    path: Path
    label: str
    there: bool
    num_photos: int


@dataclass
class IndexOverview:
    """What is known of an index without looking at each photo.

    info          its index.json
    size          bytes on disk by part: vectors, regions, thumbnails, records, model, and what else there is
    model_name    of a packaged model; empty for any other
    extractor     what makes regions of its photos; empty where nobody recorded it, or the model cannot be opened
    num_photos    that can be found
    folders       of its photos
    settings      what is left out, and when the last run ended
    skipped       files that could not be read, and why
    damage        a sentence for each thing that is not as it was written, as sizes and the model's checksums tell
    """

    info: IndexInfo
    size: dict[str, int]
    model_name: str = ""
    extractor: str = ""
    num_photos: int = 0
    folders: list[FolderOverview] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    skipped: list[SkippedRecord] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def read_overview(folder: Path | str) -> IndexOverview:
    """Look at an index, at what takes no time (`vsrn.search.mend.check_index` looks at everything).

    Raises `SearchError` where the folder is no index.
    """
    folder = Path(folder)
    seen = IndexOverview(IndexInfo.read(folder), _sizes(folder))
    try:
        seen.extractor = open_model(folder, seen.info, "cpu", whole=True).learned_from.extractor
    except VsrnError as error:
        seen.damage.append(str(error))
    for name in PACKAGED_MODELS:
        with contextlib.suppress(VsrnError):  # an installation may be without it
            seen.model_name = name if OnnxEncoder(MODELS / name).info.model == seen.info.model else seen.model_name
    try:
        with Records(folder) as records, records.read() as view:
            seen.num_photos, seen.skipped, seen.settings = view.num_photos(), view.skipped(), view.settings()
            for root in view.roots():
                num_photos = view.num_photos(Where(root.label))
                seen.folders.append(FolderOverview(root.path, root.label, not is_empty(root.path), num_photos))
            state = view.state()
            for kind in GROWING if state.num_rows else ():
                try:
                    with GrowingFile(folder, kind, seen.info, state) as file:
                        if file.status().st_size < file.end:
                            seen.damage.append(f"{file.path} is shorter than the records say.")
                except FileNotFoundError as error:
                    seen.damage.append(f"{error.filename} is missing.")
                except SearchError as error:
                    seen.damage.append(str(error))
    except VsrnError as error:
        seen.damage.append(str(error))
    return seen


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of an index by part, the largest first."""
    sizes: Counter[str] = Counter()
    for top, _, names in os.walk(folder):
        for name in names:
            part = MODEL_FOLDER if Path(top) != folder else name.partition(".")[0].partition("-")[0]
            with contextlib.suppress(OSError):  # a compaction has just replaced it
                sizes[part if part in PARTS else "other"] += os.lstat(Path(top, name)).st_size
    return dict(sizes.most_common())
