"""Anonymous memory while training from a store of COCO's size, and whether it stays flat.

python benchmarks/memory.py

The 2019 code holds all features in memory. Ours maps them; what is counted is what the kernel cannot drop
(RssAnon), at its highest over the steps. The store is a sparse file, of which one region of every image is real.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import record
from numpy.lib.format import open_memmap
from problem import WORDS

from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, TrainConfig
from vsrn.metrics import RetrievalMetrics
from vsrn.training.checkpoint import Progress
from vsrn.training.run import prepare_run
from vsrn.training.trainer import Trainer

IMAGES, REGIONS, FEATURE_DIM, CAPTIONS_PER_IMAGE = 113_287, 36, 2048, 5
VALIDATION_IMAGES = 50
STEPS, FLAT_STEPS = 60, 1_000
GIGABYTE = 1e9


class EnoughStepsError(Exception):
    """Ends a run at the step wanted."""


@dataclass
class Memory:
    """Hears how a run goes and reads its memory at every step."""

    steps: int
    anonymous: list[float] = field(default_factory=list)

    def stepped(self, progress: Progress, _: dict[str, Any] | None, /) -> None:
        """Read RssAnon; stop at the last step wanted."""
        self.anonymous.append(anonymous_memory())
        if progress.step >= self.steps:
            raise EnoughStepsError

    def validated(self, progress: Progress, metrics: RetrievalMetrics) -> None:
        """Validation is not what is measured."""

    def noted(self, note: str, /) -> None:
        """Nothing."""


def main() -> None:
    """A real size for the peak, then a tiny model for a thousand steps."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        make_store(store)
        peak = max(anonymous_while_training(store, Path(folder) / "run", 512, STEPS, "bf16"))
        on_disk = (store / "train_ims.npy").stat().st_size / GIGABYTE
        record(
            "Memory while training from COCO's size",
            target="2.5 GB",
            measured=f"{peak:.2f} GB anonymous at most",
            reached=peak <= 2.5,
            checked=f"{STEPS} steps at 512 dimensions in bf16 (fp32 takes less), from {on_disk:.1f} GB of float16"
            f" features, {2 * on_disk:.1f} GB as the float32 that the 2019 code loads",
            gigabytes=peak,
        )
        readings = anonymous_while_training(store, Path(folder) / "tiny", 16, FLAT_STEPS, "fp32")
        early, late = max(readings[100:200]), max(readings[-100:])
        record(
            "Memory over 1,000 steps",
            target="flat: within 2%",
            measured=f"{late / early - 1:+.1%} from steps 100-200 to steps 900-1,000",
            reached=late <= 1.02 * early,
            checked=f"the highest readings of {FLAT_STEPS:,} steps at 16 dimensions",
            gigabytes=late,
        )


def make_store(folder: Path) -> None:
    """Splits `train`, of COCO's size, and `dev`, in the field's layout."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    words = [f"word{number}" for number in range(WORDS)]
    for split, images in (("train", IMAGES), ("dev", VALIDATION_IMAGES)):
        features = open_memmap(folder / f"{split}_ims.npy", "w+", np.float16, (images, REGIONS, FEATURE_DIM))
        # One region a row is enough to give every channel a length; the rest of the file stays a hole.
        features[:, 0] = generator.random(FEATURE_DIM, dtype=np.float32)
        features.flush()
        with (folder / f"{split}_caps.txt").open("w", encoding="utf-8") as file:
            for _ in range(images * CAPTIONS_PER_IMAGE):
                length = int(np.clip(generator.normal(10.5, 2.4), 5, 50))
                file.write(" ".join(words[word] for word in generator.integers(0, WORDS, length)) + "\n")


def anonymous_while_training(store: Path, run: Path, joint_dim: int, steps: int, precision: str) -> list[float]:
    """Gigabytes after each of the first steps of a run."""
    config = Config(
        data=DataConfig(path=str(store)),
        model=ModelConfig(joint_dim=joint_dim, captioner=CaptionerConfig(hidden_dim=joint_dim)),
        train=TrainConfig(precision=precision, device="cpu"),  # type: ignore[arg-type]
    )
    memory = Memory(steps)
    with contextlib.suppress(EnoughStepsError):
        Trainer(prepare_run(config, run, resume=False), memory).run(resume=False)
    return memory.anonymous


def anonymous_memory() -> float:
    """Gigabytes of this process that are backed by no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / GIGABYTE
    raise OSError("/proc/self/status has no RssAnon; this benchmark needs Linux")


if __name__ == "__main__":
    main()
