"""From a list of photos to settled batches, in the list's order: what a writer appends.

`local_batches` does it in this process; `vsrn.regions.on_ray` on many machines, with the same two functions,
`prepare_or_refuse` and `settle`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vsrn.errors import PhotoError
from vsrn.regions.extractor import Prepared, RegionExtractor, prepare_photo
from vsrn.regions.photos import PhotoFile
from vsrn.regions.store import Regions
from vsrn.regions.writer import SkippedPhoto

_BATCHES_AHEAD = 2

_Item = TypeVar("_Item")
_Ready = TypeVar("_Ready")


@dataclass(frozen=True)
class SettledBatch:
    """What became of neighbouring photos: each has its regions or its reason.

    ids      photos that could be read
    regions  of each of them
    skipped  the others
    """

    ids: list[str]
    regions: list[Regions]
    skipped: list[SkippedPhoto]


# Called as batches(photos, extractor, batch_size, workers): settled batches of that size, in order.
BatchMaker = Callable[[Sequence[PhotoFile], RegionExtractor, int, int], Iterator[SettledBatch]]


def prepare_or_refuse(extractor: RegionExtractor, photo: PhotoFile) -> Prepared | PhotoError:
    """The cheap half: what the extractor reads of this photo, or why it cannot."""
    if photo.refusal is not None:
        return photo.refusal
    try:
        return prepare_photo(extractor, photo.path)
    except PhotoError as error:
        return error


def settle(
    extractor: RegionExtractor, photos: Sequence[PhotoFile], prepared: Sequence[Prepared | PhotoError]
) -> SettledBatch:
    """The dear half: the network, on those photos of a batch that could be read."""
    pairs = list(zip(photos, prepared, strict=True))
    readable = [(photo, got) for photo, got in pairs if not isinstance(got, PhotoError)]
    return SettledBatch(
        ids=[photo.id for photo, _ in readable],
        regions=extractor([got for _, got in readable]),
        skipped=[SkippedPhoto(photo.id, str(got), got.kind) for photo, got in pairs if isinstance(got, PhotoError)],
    )


def cut(items: Sequence[_Item], batch_size: int) -> Iterator[Sequence[_Item]]:
    """Batches by place in the list, so that a resumed run cuts the same ones."""
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]


def made_ready(
    items: Sequence[_Item], make: Callable[[_Item], _Ready], batch_size: int, workers: int
) -> Iterator[tuple[Sequence[_Item], list[_Ready]]]:
    """Batches in order, with what `make` made of each item; `workers` threads work a few batches ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[tuple[Sequence[_Item], list[Future[_Ready]]]] = deque()

    def take() -> tuple[Sequence[_Item], list[_Ready]]:
        batch, futures = ahead.popleft()
        return batch, [future.result() for future in futures]

    try:
        for batch in cut(items, batch_size):
            ahead.append((batch, [pool.submit(make, item) for item in batch]))
            if len(ahead) > _BATCHES_AHEAD:
                yield take()
        while ahead:
            yield take()
    finally:
        pool.shutdown(cancel_futures=True)


def local_batches(
    photos: Sequence[PhotoFile], extractor: RegionExtractor, batch_size: int, workers: int
) -> Iterator[SettledBatch]:
    """Settle batches one after the other, with `workers` threads preparing a few of them ahead."""
    for batch, prepared in made_ready(photos, partial(prepare_or_refuse, extractor), batch_size, workers):
        yield settle(extractor, batch, prepared)
