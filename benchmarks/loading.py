"""How much of a training step goes into making its batch, at 36 regions x 1,280 -> 512 and in bf16, the faster step.

python benchmarks/loading.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import interleave, record
from problem import BATCH, FEATURE_DIM, REGIONS, WORDS, make_batch, make_captions, make_model
from training_step import our_step

from vsrn.data.splits import open_split
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.model.base import Batch
from vsrn.training.batches import TrainingBatches

IMAGES = 2000


def main() -> None:
    """Time a step on a ready batch, and the making of a batch, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        batches = endless(make_batches(Path(folder)))
        step = our_step(make_model(), make_batch(), "bf16")
        ratio = interleave(lambda: next(batches), step, rounds=8)
    share = 1 / ratio.median
    record(
        "Data loading",
        target="under 5% of a step",
        measured=f"{share:.1%} [{1 / ratio.high:.1%}-{1 / ratio.low:.1%}]",
        reached=share < 0.05,
        checked="features read from a memory-mapped float16 file, and looked at for NaN",
        ratio=ratio,
    )


def make_batches(folder: Path) -> TrainingBatches:
    """A store of random features with five captions each."""
    generator = np.random.default_rng(0)
    np.save(folder / "train_ims.npy", generator.random((IMAGES, REGIONS, FEATURE_DIM), dtype=np.float32).astype("f2"))
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(f"w{number}" for number in range(WORDS - 4))])
    captions = [" ".join(vocabulary.words[token] for token in ids[1:-1]) for ids in make_captions(5 * IMAGES)]
    (folder / "train_caps.txt").write_text("\n".join(captions))
    return TrainingBatches(open_split(folder, "train"), vocabulary, BATCH, seed=0)


def endless(batches: TrainingBatches) -> Iterator[Batch]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


if __name__ == "__main__":
    main()
