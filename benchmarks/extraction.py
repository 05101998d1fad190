"""Extraction from photo files to a region store, against the bare backbone on photos already in memory.

python benchmarks/extraction.py

Photos are drawn scenes of 224 x 224 as JPEG files.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from harness import interleave, record

from vsrn.data.listing import find_photos
from vsrn.data.region_store import open_region_store
from vsrn.extractors.base import prepare_photo
from vsrn.extractors.extract import extract
from vsrn.extractors.grid import GridExtractor
from vsrn.toy.world import draw_toy_world

PHOTOS, ROUNDS = 400, 4


def main() -> None:
    """Both sides over the same photos."""
    with tempfile.TemporaryDirectory() as folder:
        draw_toy_world(Path(folder) / "world", train=PHOTOS, val=1)
        photos = find_photos(Path(folder) / "world" / "images")[:PHOTOS]
        extractor, store = GridExtractor(), Path(folder) / "store"
        prepared = [prepare_photo(extractor, photo.path) for photo in photos]

        def ours() -> None:
            shutil.rmtree(store, ignore_errors=True)
            extract(photos, extractor, store, "photos")

        def bare() -> None:
            extractor(prepared)

        ratio = interleave(ours, bare, rounds=ROUNDS)
        alone = np.stack([regions.features for regions in extractor(prepared)])
        difference = float(np.abs(open_region_store(store, "photos").features - alone).max())
    assert difference < 0.01, difference
    record(
        "Extraction, share of the bare backbone's rate",
        target="at least 85%",
        measured=f"{ratio.median:.0%} [{ratio.low:.0%}-{ratio.high:.0%}]",
        reached=ratio.median >= 0.85,
        checked=f"features differ by {difference:.0e} at most, stored as float16",
        ratio=ratio,
    )


if __name__ == "__main__":
    main()
