"""Extraction from photo files to a region store, against the bare backbone on photos already in memory; and what of it
is left to the process that feeds the network where others decode for it.

python benchmarks/extraction.py

Photos are drawn scenes of 224 x 224 as JPEG files.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from harness import interleave, record

from vsrn.data.listing import PhotoFile, find_photos
from vsrn.data.region_store import open_region_store
from vsrn.errors import PhotoError
from vsrn.extractors.base import Prepared, prepare_photo
from vsrn.extractors.batches import BatchMaker, local_batches, process_batches
from vsrn.extractors.extract import ExtractedBatch, Extraction, extract
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

        decoding(photos, extractor)
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


class OnlyDecoding(Extraction):
    """An extraction whose network takes no time."""

    def finish(self, photos: Sequence[PhotoFile], prepared: Sequence[Prepared | PhotoError]) -> ExtractedBatch:  # noqa: ARG002
        """No regions."""
        return ExtractedBatch([photo.id for photo in photos], [], [])


def decoding(photos: Sequence[PhotoFile], extractor: GridExtractor) -> None:
    """Record the processor time a photo of the process that feeds the network, where two processes or threads decode.

    Of threads it is that of all of them: they share Python's lock with whoever feeds the network.
    """
    work = OnlyDecoding(extractor)
    threads = [milliseconds(local_batches, photos, work) for _ in range(ROUNDS)]
    processes = [milliseconds(partial(process_batches, fewest=1), photos, work) for _ in range(ROUNDS)]
    there, here = median(threads), median(processes)
    record(
        "Decoding in processes",
        target="none set",
        measured=f"who feeds the network spends {here:.2f} ms of CPU time a photo, {there:.2f} with threads",
        reached=True,
        checked="both prepare the same photos",
    )


def milliseconds(batches: BatchMaker, photos: Sequence[PhotoFile], work: OnlyDecoding) -> float:
    """Processor time of this process for each photo after the first batch, which waits for processes to start."""
    done = batches(work, photos, 32, 2)
    first = next(done)
    before = time.process_time()
    assert len(first.ids) + sum(len(batch.ids) for batch in done) == len(photos)
    return (time.process_time() - before) * 1e3 / (len(photos) - len(first.ids))


if __name__ == "__main__":
    main()
