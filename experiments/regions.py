"""Photos of Flickr8K -> region stores of both kinds: windows of the offline extractor, and objects of a detector."""

from __future__ import annotations

import tempfile
import time
import zipfile
from pathlib import Path

from rows import BOTH, OBJECTS, WINDOWS

from vsrn.extractors.base import make_extractor
from vsrn.extractors.batches import batches_for
from vsrn.extractors.extract import extract_karpathy


def extract(
    *,
    photos: tuple[Path, ...],
    annotations: Path | None = None,
    out: Path,
    kinds: tuple[str, ...] = BOTH,
    detector: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    batch: int = 128,
    workers: int = 0,
) -> None:
    """Make the stores that are lacking; one that was stopped goes on.

    Args:
        photos: Folder of the photos, or zip files of them.
        annotations: Captions in Karpathy's form; left out, dataset.json of the zip files.
        out: Folder of the stores.
        kinds: Of windows and objects.
        detector: ONNX file of the detector, for objects.
        weights: EfficientNet-Lite0's weights under timm's names, where the package with them is not installed.
        device: Where networks compute.
        batch: Photos at a time.
        workers: Threads, or for a GPU processes, that decode photos; 0 for a number that suits the machine.
    """
    folder = photos[0]
    with tempfile.TemporaryDirectory() as temporary:
        if folder.suffix == ".zip":
            folder = Path(temporary)
            for path in photos:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
        dataset = annotations or next(folder.rglob("dataset*.json"))
        names = {WINDOWS: "grid", OBJECTS: f"onnx:{detector}"}
        for kind in kinds:
            began = time.time()
            extractor = make_extractor(names[kind], weights, device=device)
            reports = extract_karpathy(
                dataset,
                folder,
                extractor,
                out / kind,
                batch_size=batch,
                workers=workers or None,
                batches=batches_for(device),
            )
            done, seconds = sum(report.num_done for report in reports), time.time() - began
            print(f"{kind}: {done} photos, {seconds:.1f} s, {done / seconds:.0f} a second", flush=True)
