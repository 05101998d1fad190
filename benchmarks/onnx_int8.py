"""What a model's ONNX encoders cost and save, in fp32 and in int8: Recall@K on a split, bytes, time.

OMP_NUM_THREADS=1 python benchmarks/onnx_int8.py runs/flickr8k --data data/flickr8k --split val
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from harness import record

from vsrn.config import read_config
from vsrn.data.region_store import FloatArray, IntArray
from vsrn.data.splits import Split, open_split
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import CAPTION_FILE, CONFIG_FILE, IMAGE_FILE, OnnxEncoder, StoredPrecision
from vsrn.encoders.torch_backend import Encoder
from vsrn.metrics import rank_blocks, retrieval_metrics, similarity_blocks
from vsrn.model.saved import WEIGHTS_FILE, read_model

BATCH = 128
# Sentences asked one at a time, as a search does.
ALONE = 100


class AnyEncoder(Protocol):
    """What torch's encoder and onnxruntime's have in common."""

    def encode_captions(self, captions: Sequence[str]) -> FloatArray:
        """Sentences -> embeddings."""

    def encode_regions(self, features: FloatArray, counts: IntArray | None = None) -> FloatArray:
        """Regions -> embeddings."""


@dataclass(frozen=True)
class Side:
    """One way to encode, with what it gave in every round."""

    name: str
    encoder: AnyEncoder
    image_bytes: int
    caption_bytes: int
    seconds: dict[str, list[float]]
    found: dict[str, FloatArray]

    def run(self, what: str, job: Callable[[AnyEncoder], FloatArray]) -> None:
        """Do one job, on the clock."""
        start = time.perf_counter()
        self.found[what] = job(self.encoder)
        self.seconds[what].append(time.perf_counter() - start)

    def milliseconds(self, what: str, units: int) -> float:
        """Median over rounds, after the first, which warms up."""
        return 1000 * median(self.seconds[what][1:]) / units


def main() -> None:
    """Encode a split three ways in turn, round after round, then rank each way's embeddings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    split = open_split(options.data, options.split)
    features, counts = split.read_images(np.arange(split.num_images))
    jobs: dict[str, Callable[[AnyEncoder], FloatArray]] = {
        "images": lambda encoder: encode_images(encoder, features, counts),
        "captions": lambda encoder: encoder.encode_captions(split.captions),
        "alone": lambda encoder: np.concatenate([encoder.encode_captions([one]) for one in split.captions[:ALONE]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(options.run, Path(folder))
        for _ in range(options.rounds + 1):
            for what, job in jobs.items():
                for side in sides:
                    side.run(what, job)
        report(split, sides, options.run)


def encode_images(encoder: AnyEncoder, features: FloatArray, counts: IntArray | None) -> FloatArray:
    """All images of the split, some at a time."""
    parts = range(0, len(features), BATCH)
    return np.concatenate(
        [
            encoder.encode_regions(features[at : at + BATCH], None if counts is None else counts[at : at + BATCH])
            for at in parts
        ]
    )


def make_sides(run: Path, folder: Path) -> list[Side]:
    """torch, onnxruntime, and onnxruntime with int8, all with torch's number of threads."""
    stored, threads = read_model(run), torch.get_num_threads()
    sides = [make_side("torch fp32", Encoder.load(run, "cpu"), image=run / WEIGHTS_FILE)]
    precisions: tuple[StoredPrecision, ...] = ("fp32", "int8")
    for precision in precisions:
        name, place = f"onnx {precision}", folder / precision
        export_onnx(stored, place, precision)
        encoder = OnnxEncoder.load(place, threads)
        sides.append(make_side(name, encoder, image=place / IMAGE_FILE, caption=place / CAPTION_FILE))
    return sides


def make_side(name: str, encoder: AnyEncoder, image: Path, caption: Path | None = None) -> Side:
    """A side that has done nothing yet; torch keeps both encoders, and the captioner, in one file."""
    sizes = image.stat().st_size, caption.stat().st_size if caption else 0
    return Side(name, encoder, *sizes, seconds={"images": [], "captions": [], "alone": []}, found={})


def report(split: Split, sides: list[Side], run: Path) -> None:
    """Print the table and keep it."""
    print(f"{split.num_images:,} images, {len(split.captions):,} captions, {torch.get_num_threads()} threads")
    print("MB of torch count the captioner too; `alone` is one caption at a time")
    print(f"{'':12}{'rsum':>8}{'i2t R@1':>9}{'t2i R@1':>9}{'MB':>7}{'ms/image':>10}{'ms/caption':>12}{'ms alone':>10}")
    similarity = read_config(run / CONFIG_FILE).model.similarity
    rows = [row_of(side, split, similarity) for side in sides]
    for row in rows:
        print(
            "{name:12}{rsum:8.1f}{image_to_text:9.2f}{text_to_image:9.2f}{megabytes:7.1f}{ms_per_image:10.3f}"
            "{ms_per_caption:12.4f}{ms_alone:10.3f}".format(**row)
        )
    exact, onnx, int8 = (side.found for side in sides)
    difference = max(float(np.abs(onnx[what] - exact[what]).max()) for what in exact)
    cosines = {what: least_cosine(int8[what], exact[what]) for what in ("images", "captions")}
    cost = rows[0]["rsum"] - rows[2]["rsum"]
    record(
        "ONNX fp32 and int8",
        target="fp32 equal to 1e-5, int8's cost in Recall@K stated",
        measured=f"int8 costs {cost:.1f} of {rows[0]['rsum']:.1f} rsum",
        reached=difference < 1e-5,
        checked=f"fp32 differs from torch by {difference:.0e} at most; int8's cosine to it is at least"
        f" {cosines['images']:.4f} (images) and {cosines['captions']:.4f} (captions)",
        model=str(run),
        rows=rows,
    )


def row_of(side: Side, split: Split, similarity: str) -> dict[str, Any]:
    """One line of the table."""
    blocks = similarity_blocks([side.found["images"]], [side.found["captions"]], similarity)
    metrics = retrieval_metrics(rank_blocks(blocks, split.image_of_caption))
    return {
        "name": side.name,
        "rsum": metrics.rsum,
        "image_to_text": metrics.image_to_text.recall_at_1,
        "text_to_image": metrics.text_to_image.recall_at_1,
        "megabytes": (side.image_bytes + side.caption_bytes) / 1e6,
        "ms_per_image": side.milliseconds("images", split.num_images),
        "ms_per_caption": side.milliseconds("captions", len(split.captions)),
        "ms_alone": side.milliseconds("alone", ALONE),
    }


def least_cosine(ours: FloatArray, theirs: FloatArray) -> float:
    """The smallest cosine of matching rows."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / lengths).min())


if __name__ == "__main__":
    main()
