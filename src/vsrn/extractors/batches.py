"""Work that is done on batches of photos, in this process or, by the same two halves, on other machines.

for done in local_batches(Extraction(extractor), photos, batch_size=32, workers=8):
    ...

`vsrn.extractors.ray` gives the other `BatchMaker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from vsrn.data.photo_splits import made_ready

_T = TypeVar("_T")
Item = TypeVar("Item")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Item_contra = TypeVar("Item_contra", contravariant=True)
Done_co = TypeVar("Done_co", covariant=True)


class Work(Protocol[Item_contra, Ready, Done_co]):
    """What is done with photos: a cheap half for each of them, and an expensive half for a batch.

    Whatever the two halves give can be pickled, since another machine may have computed it.
    """

    @property
    def device(self) -> str:
        """Where the expensive half computes, as it was asked for: `cpu`, `cuda`, `mps` or `auto`."""

    def prepare(self, item: Item_contra) -> Ready:
        """Read and decode one photo. Runs in worker threads and must not touch shared state."""

    def finish(self, items: Sequence[Item_contra], ready: Sequence[Ready]) -> Done_co:
        """Run the networks on a batch, of which `ready` is what `prepare` gave. Runs in one thread."""

    def path_of(self, item: Item_contra) -> Path | None:
        """The file of a photo, or None where it is not to be opened."""

    def elsewhere(self) -> Callable[[str, bool], Work[Item_contra, Ready, Done_co]]:
        """What makes the same work on another machine; it can be pickled.

        It is called with the device to compute on there, and whether `finish` will be called there, since otherwise
        what only that needs is not loaded. It raises `VsrnError` or `OSError` where that machine lacks something.
        """


class BatchMaker(Protocol):
    """Who does the work: this process, or a cluster."""

    def __call__(
        self, work: Work[Item, Ready, Done], items: Sequence[Item], batch_size: int, workers: int | None
    ) -> Iterator[Done]:
        """What becomes of each batch of `batch_size` neighbouring items, in order.

        workers  threads that prepare items in this process; None for one for each processor
        """


def cut(items: Sequence[_T], batch_size: int) -> Iterator[Sequence[_T]]:
    """Batches by place in the list, so that a resumed run cuts the same ones."""
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]


def local_batches(
    work: Work[Item, Ready, Done], items: Sequence[Item], batch_size: int, workers: int | None
) -> Iterator[Done]:
    """Finish batches in order, while `workers` threads prepare the next ones: the `BatchMaker` of one process."""
    for batch, ready in made_ready(cut(items, batch_size), work.prepare, workers):
        yield work.finish(batch, ready)
