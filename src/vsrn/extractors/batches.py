"""Work that is done on batches of photos, in this process, in several or, by the same two halves, on other machines.

for done in local_batches(Extraction(extractor), photos, batch_size=32, workers=8):
    ...

`vsrn.extractors.ray` gives the `BatchMaker` of a cluster.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vsrn.data.photo_splits import BATCHES_AHEAD, made_ready, processors
from vsrn.errors import DataError
from vsrn.extractors.base import may_be_gpu

_T = TypeVar("_T")
Item = TypeVar("Item")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Item_contra = TypeVar("Item_contra", contravariant=True)
Done_co = TypeVar("Done_co", covariant=True)


class Work(Protocol[Item_contra, Ready, Done_co]):
    """What is done with photos: a half for each of them, by processors, and one for a batch, by a GPU if there is one.

    Whatever the two halves give can be pickled, since another machine may have computed it.
    """

    @property
    def device(self) -> str:
        """Where the second half computes, as it was asked for: `cpu`, `cuda`, `mps` or `auto`."""

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

        workers  threads or processes that prepare items on this machine; None to choose by its processors
        """


# Items that a process prepares before it sends them; each message costs both processes some time, whatever its size.
_SENT_TOGETHER = 8
# Each takes memory for Python and torch. The number is chosen, not measured on a GPU.
_MOST_PROCESSES = 8
# Processes take seconds to start; with fewer photos than these, threads are done first.
FEWEST_FOR_PROCESSES = 1000


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


def batches_for(device: str, plugins: Sequence[str] = ()) -> BatchMaker:
    """Who does the work in this machine: processes may prepare photos for a GPU, threads do for any other device.

    device, plugins  as in `ExtractorFiles` and `process_batches`
    """
    return functools.partial(process_batches, plugins=plugins) if may_be_gpu(device) else local_batches


def process_batches(
    work: Work[Item, Ready, Done],
    items: Sequence[Item],
    batch_size: int,
    workers: int | None,
    *,
    plugins: Sequence[str] = (),
    fewest: int = FEWEST_FOR_PROCESSES,
) -> Iterator[Done]:
    """Finish batches in order, while `workers` processes prepare the next ones: the `BatchMaker` for a GPU.

    Threads that prepare photos share Python's lock with the one that feeds the GPU; processes have their own. They are
    started anew (`spawn`), so a script that calls this does so below `if __name__ == "__main__":`.

    workers  how many; None for one for each processor, 8 at most
    plugins  modules that each process imports first (`vsrn --plugin`)
    fewest   fewer items than these are prepared by the threads of `local_batches`

    Raises what `Work.elsewhere` and what it gives raise, and `DataError` where a process is killed.
    """
    if len(items) < fewest:
        yield from local_batches(work, items, batch_size, workers)
        return
    workers = workers or min(processors(), _MOST_PROCESSES)
    ahead = max(BATCHES_AHEAD, -(-2 * workers * _SENT_TOGETHER // batch_size))
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _begin,
        (work.elsewhere(), list(plugins)),
    )
    batches = (list(cut(batch, _SENT_TOGETHER)) for batch in cut(items, batch_size))
    try:
        with _deaf_to_interrupts():
            # As long as none has begun, each of these starts another process.
            for _ in range(workers):
                pool.submit(len, ())
        for parts, ready in made_ready(batches, _prepared, batches_ahead=ahead, pool=pool):
            yield work.finish(list(chain.from_iterable(parts)), list(chain.from_iterable(ready)))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads photos was killed, perhaps since the memory is used up; run the same command again,"
            " with fewer --workers: it goes on where it was."
        ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started here leave Ctrl-C, which a terminal sends to all of them, to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, kept or signal.SIG_DFL)  # None is a handler that is not Python's


_work_here: Callable[[], Work[Any, Any, Any]] | None = None


def _begin(make: Callable[[str, bool], Work[Any, Any, Any]], plugins: Sequence[str]) -> None:
    """What a process does first; the work is made with the first items, so that its errors reach the other process."""
    global _work_here  # noqa: PLW0603 - a process pool passes nothing else on from here
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    @functools.cache
    def made() -> Work[Any, Any, Any]:
        for module in plugins:
            importlib.import_module(module)
        return make("cpu", False)

    _work_here = made


def _prepared(items: Sequence[Any]) -> list[Any]:
    assert _work_here is not None, "a process begins with `_begin`"
    work = _work_here()
    return [work.prepare(item) for item in items]


def _end_with_the_parent() -> None:
    """End this process when the one that started it has ended, even by a kill."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
