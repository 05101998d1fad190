"""Large photos with the model in the box: indexing next to the bare decoder, and the commands of one photo, cold.

python benchmarks/photos.py
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from harness import interleave, record
from PIL import Image

from vsrn.data.photo_splits import processors
from vsrn.encoders.onnx_backend import OnnxEncoder
from vsrn.extractors.base import prepare_photo
from vsrn.extractors.grid import GridExtractor
from vsrn.pretrained import find_model
from vsrn.search.build import update_index

PHOTOS, ROUNDS = 96, 5
# What a process took is told by its parent: the operating system keeps the most of all children.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def main() -> None:
    """Photos are drawn: smooth colours with noise, which is what a JPEG decoder's time depends on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = [folder / "photos" / f"{number:03}.jpg" for number in range(PHOTOS)]
        for number, path in enumerate(paths):
            draw(path, number)
        indexing(folder, paths)
        network(paths)
        cold(folder, paths[0])


def draw(path: Path, seed: int) -> None:
    """A JPEG of 12 megapixels, about 2.5 MB."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).resize((4000, 3000))
    noise = random.normal(0, 5, (1500, 2000, 1)).repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=88)


def indexing(folder: Path, paths: Sequence[Path]) -> None:
    """An index of all photos, made in this process, next to nothing but their decoding at an eighth."""
    contents = [path.read_bytes() for path in paths]
    made = 0

    def decode(content: bytes) -> None:
        with Image.open(io.BytesIO(content)) as photo:
            photo.draft(None, (photo.width // 8, photo.height // 8))
            photo.load()

    def decode_all() -> None:
        with ThreadPoolExecutor(processors()) as pool:
            list(pool.map(decode, contents))

    def index() -> None:
        nonlocal made
        made += 1
        assert update_index(folder / "photos", folder / f"idx-{made}").num_photos == PHOTOS

    ratio = interleave(index, decode_all, ROUNDS)
    size = sum(map(len, contents)) / len(contents) / 1e6
    record(
        "Indexing 12 megapixels, share of the decoder's rate",
        target="at least 50%",
        measured=f"{ratio.median:.0%} [{ratio.low:.0%}-{ratio.high:.0%}]: {PHOTOS / ratio.ours_seconds:.0f} photos/s"
        f" of {size:.1f} MB, the decoder alone {PHOTOS / ratio.theirs_seconds:.0f}",
        reached=ratio.median >= 0.5,
        checked="every photo is in the index",
        ratio=ratio,
    )


def network(paths: Sequence[Path]) -> None:
    """The extractor of the model in the box by onnxruntime, next to torch with the same weights."""
    exported = OnnxEncoder(find_model(), device="cpu").extractor
    weights = exported.files.weights
    by_torch = GridExtractor(weights, "cpu")
    prepared = [prepare_photo(by_torch, path) for path in paths]
    pairs = zip(exported(prepared), by_torch(prepared), strict=True)
    largest = max(float(np.abs(ours.features - theirs.features).max()) for ours, theirs in pairs)
    assert largest < 1e-3
    ratio = interleave(lambda: exported(prepared), lambda: by_torch(prepared), ROUNDS)
    record(
        "Regions by onnxruntime",
        target="no slower than torch",
        measured=f"{ratio.median:.1f}x [{ratio.low:.1f}-{ratio.high:.1f}], {PHOTOS / ratio.ours_seconds:.0f} photos/s",
        reached=ratio.median >= 1,
        checked=f"features differ by {largest:.1g} at most",
        ratio=ratio,
    )


def cold(folder: Path, photo: Path) -> None:
    """Whole processes: seconds, and the most memory that they held."""
    commands = {
        "search --image": ["search", str(folder / "idx-1"), "--image", str(photo)],
        "caption": ["caption", str(photo)],
        "explain": ["explain", str(photo), "a man in the snow", "--force", "-o", str(folder / "why.jpg")],
    }
    told, most_seconds, most_mb = [], 0.0, 0.0
    for name, arguments in commands.items():
        measure = [sys.executable, "-c", MEASURE, sys.executable, "-m", "vsrn", *arguments]
        runs = [
            [float(word) for word in subprocess.run(measure, check=True, capture_output=True, text=True).stdout.split()]
            for _ in range(ROUNDS)
        ]
        seconds, megabytes = (median(column) for column in zip(*runs, strict=True))
        told.append(f"{name} {seconds:.2f} s, {megabytes:.0f} MB")
        most_seconds, most_mb = max(most_seconds, seconds), max(most_mb, megabytes)
    record(
        "Photos of 12 megapixels, cold",
        target="under 1.5 s and 300 MB",
        measured="; ".join(told),
        reached=most_seconds < 1.5 and most_mb < 300,
        checked="tests/test_without_torch.py: no torch is imported",
        processors=os.cpu_count(),
    )


if __name__ == "__main__":
    main()
