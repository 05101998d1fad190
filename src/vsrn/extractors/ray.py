"""The same extraction on the machines of a Ray cluster (`pip install '.[ray]'`).

    with ray_batches("local") as batches:              # or the address of a cluster
        extract(photos, extractor, "store/", "train", batches=batches)

Ray Data carries batches of photo paths to actors, each of which holds an extractor and calls the same
`prepare_or_refuse` and `settle` as a process alone does. The settled batches stream back in order to the one
writer, so the store is the same, and a killed run goes on behind the last batch written. Photos must be where the
actors can open them by the same path, on a shared disk; the store needs to be seen by this process only.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from vsrn.data.photos import PhotoFile
from vsrn.data.region_store import SkippedPhoto
from vsrn.data.regions import Regions
from vsrn.errors import ConfigError, DataError, PhotoError, SkipKind, VsrnError
from vsrn.extractors.base import ExtractorFiles, RegionExtractor, make_extractor
from vsrn.extractors.extract import BatchMaker, SettledBatch, cut, prepare_or_refuse, settle

LOCAL = "local"
# Ray Data keeps a few hundred bytes here for each batch of a dataset, so a long list becomes several of them.
_BATCHES_A_DATASET = 8192
_SECONDS_TO_ANSWER = 10.0


class _Settled(msgspec.Struct, frozen=True):
    """A settled batch as bytes; half precision is what the writer would round to in any case."""

    ids: list[str]
    counts: list[int]
    features: bytes
    boxes: bytes
    scores: bytes | None
    classes: bytes | None
    attributes: bytes | None
    skipped: list[SkippedPhoto]


@contextmanager
def ray_batches(address: str) -> Iterator[BatchMaker]:
    """Connect to the Ray cluster at `address`, or start one in this machine's processors for "local".

    Gives what `extract` takes as `batches`; the extractor must be one that `make_extractor` knows, and
    `workers` is not used, since each actor decodes its own photos. Raises `ConfigError` where Ray is not
    installed or no cluster answers; the batches raise `DataError` where an actor cannot see the photos or
    has another extractor.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        yield _settle_on_ray
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        importlib.import_module("ray.data")
        # Progress and errors reach the user by our own way.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray ({error}); run `pip install '.[ray]'` in the checkout.") from error


def _connect(ray: Any, address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # It warns, as of an error, that an actor could not be begun again if this process died; nor could the run.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == LOCAL:
        quiet["include_dashboard"] = False
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at '{address}' ({reason}); name the address that `ray start --head` printed,"
            " or say --ray local."
        ) from error


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _settle_on_ray(
    photos: Sequence[PhotoFile],
    extractor: RegionExtractor,
    batch_size: int,
    workers: int,  # noqa: ARG001  # a `BatchMaker` is told
) -> Iterator[SettledBatch]:
    batches = cut(photos, batch_size)
    sample = next((photo.path for photo in photos if photo.refusal is None and photo.path.is_file()), None)
    named = (extractor.name, extractor.files, extractor.fingerprint)
    arguments = (*named, str(Path.cwd()), str(sample or ""), torch.get_num_threads())
    while window := list(islice(batches, _BATCHES_A_DATASET)):
        for batch, settled in zip(window, _run(window, arguments), strict=True):
            got = _unpack(settled, extractor)
            assert len(got.ids) + len(got.skipped) == len(batch)
            yield got


def _run(window: Sequence[Sequence[PhotoFile]], arguments: tuple[Any, ...]) -> Iterator[bytes]:
    """The bytes of each settled batch, in order."""
    ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"place": place, "photos": _pack_photos(batch)} for place, batch in enumerate(window)]
    cpus, actors = _shares(ray, threads=arguments[-1], at_most=len(items))
    dataset = data.from_items(items, override_num_blocks=len(items)).map(
        _Actor,
        fn_constructor_args=arguments,
        compute=data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=cpus,
    )
    for place, row in enumerate(dataset.iter_rows()):
        if row["refusal"]:
            raise DataError(row["refusal"])
        assert row["place"] == place
        yield row["settled"]


def _shares(ray: Any, *, threads: int, at_most: int) -> tuple[int, int]:
    """Processors of each actor, and the number of actors: as many threads as here, and every processor used."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(threads, max(nodes, default=1)))
    return cpus, max(1, min(at_most, sum(node // cpus for node in nodes)))


class _Actor:
    """An extractor in a process of its own.

    What is wrong with its machine it says in answer to its first batch: Ray buries an actor that raises.
    """

    def __init__(
        self, name: str, files: ExtractorFiles, fingerprint: str, folder: str, sample: str, threads: int
    ) -> None:
        """Stand where the driver stands, so that a path means the same photo and reads the same in a message.

        sample   a photo that the driver can see
        threads  of the driver's torch: the last bits of a network's output depend on their number
        """
        self.refusal = ""
        try:
            _go_where_photos_are(folder, sample)
            torch.set_num_threads(threads)
            self.extractor = make_extractor(
                name,
                files.weights,
                classes=files.classes,
                attributes=files.attributes,
                download=files.download,
                device=files.device,
            )
            if self.extractor.fingerprint != fingerprint:
                raise DataError(f"{platform.node()} has other weights of '{name}'; install the same vsrn everywhere.")
        except VsrnError as error:
            self.refusal = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        settled = b""
        if not self.refusal:
            photos = _unpack_photos(row["photos"])
            prepared = [prepare_or_refuse(self.extractor, photo) for photo in photos]
            settled = _pack(settle(self.extractor, photos, prepared))
        return {"place": row["place"], "refusal": self.refusal, "settled": settled}


def _go_where_photos_are(folder: str, sample: str) -> None:
    try:
        os.chdir(folder)
        if sample:
            Path(sample).stat()
    except OSError as error:
        raise DataError(
            f"{platform.node()} cannot see {error.filename}; put photos and working folder on a disk that"
            " every machine of the cluster shares."
        ) from error


def _pack_photos(photos: Sequence[PhotoFile]) -> bytes:
    # A path need not be text that Arrow would take.
    refusals = [None if photo.refusal is None else (str(photo.refusal), photo.refusal.kind) for photo in photos]
    return msgspec.msgpack.encode(
        [(photo.id, os.fsencode(photo.path), refusal) for photo, refusal in zip(photos, refusals, strict=True)]
    )


def _unpack_photos(packed: bytes) -> list[PhotoFile]:
    found = msgspec.msgpack.decode(packed, type=list[tuple[str, bytes, tuple[str, SkipKind] | None]])
    return [
        PhotoFile(photo_id, Path(os.fsdecode(path)), None if refusal is None else PhotoError(*refusal))
        for photo_id, path, refusal in found
    ]


def _pack(batch: SettledBatch) -> bytes:
    return msgspec.msgpack.encode(
        _Settled(
            ids=batch.ids,
            counts=[len(photo.features) for photo in batch.regions],
            features=b"".join(photo.features.astype("<f2").tobytes() for photo in batch.regions),
            boxes=b"".join(photo.boxes.astype("<f4").tobytes() for photo in batch.regions),
            scores=_joined([photo.scores for photo in batch.regions], "<f4"),
            classes=_joined([photo.classes for photo in batch.regions], "<i2"),
            attributes=_joined([photo.attributes for photo in batch.regions], "<i2"),
            skipped=batch.skipped,
        )
    )


def _joined(of_photos: Sequence[npt.NDArray[Any] | None], dtype: str) -> bytes | None:
    """What all photos of a batch have, or none of them."""
    there = [of_photo.astype(dtype).tobytes() for of_photo in of_photos if of_photo is not None]
    return b"".join(there) if there else None


def _unpack(packed: bytes, extractor: RegionExtractor) -> SettledBatch:
    settled = msgspec.msgpack.decode(packed, type=_Settled)
    features = np.frombuffer(settled.features, "<f2").reshape(-1, extractor.feature_dim)
    boxes = np.frombuffer(settled.boxes, "<f4").reshape(-1, 4)
    others = [(settled.scores, "<f4"), (settled.classes, "<i2"), (settled.attributes, "<i2")]
    there = [None if content is None else np.frombuffer(content, dtype) for content, dtype in others]
    ends = np.cumsum(settled.counts).tolist()
    slices = [slice(end - count, end) for end, count in zip(ends, settled.counts, strict=True)]
    regions = [
        Regions(features[of], boxes[of], *(None if other is None else other[of] for other in there)) for of in slices
    ]
    return SettledBatch(settled.ids, regions, settled.skipped)
