"""Extraction on the machines of a Ray cluster (`pip install '.[ray]'`).

    with ray_batches("local") as batches:              # or the address of a cluster
        extract(photos, extractor, "store/", "train", batches=batches)

Ray Data carries batches of photo paths to actors, each of which holds an extractor and calls the same
`prepare_or_refuse` and `extract_batch` as a process alone does. The batches come back in order to the one
writer, so the store is the same, and a killed run goes on after the last batch written. Photos must be where the
actors can open them by the same path, on a shared disk; the store needs to be seen by this process only.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsrn.data.listing import PhotoFile
from vsrn.data.region_store import SkippedPhoto
from vsrn.data.regions import ARRAYS, Regions
from vsrn.errors import ConfigError, DataError, PhotoError, VsrnError
from vsrn.extractors.base import ExtractorFiles, RegionExtractor, make_extractor
from vsrn.extractors.extract import BatchMaker, ExtractedBatch, cut, extract_batch, prepare_or_refuse

LOCAL = "local"
# Ray Data keeps a few hundred bytes here for each batch of a dataset, so a long list becomes several of them.
_BATCHES_A_DATASET = 8192
_SECONDS_TO_ANSWER = 10.0


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
        yield _batches_on_ray
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
        _check_answers(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at '{address}' ({reason}); name the address that `ray start --head` printed,"
            " or say --ray local."
        ) from error


def _check_answers(address: str) -> None:
    """Raise `OSError` where nothing answers at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


def _batches_on_ray(
    photos: Sequence[PhotoFile],
    extractor: RegionExtractor,
    batch_size: int,
    workers: int,  # noqa: ARG001  # a `BatchMaker` is told
) -> Iterator[ExtractedBatch]:
    batches = cut(photos, batch_size)
    sample = next((photo.path for photo in photos if photo.refusal is None and photo.path.is_file()), None)
    named = (extractor.name, extractor.files, extractor.fingerprint)
    arguments = (*named, str(Path.cwd()), str(sample or ""), torch.get_num_threads())
    while window := list(islice(batches, _BATCHES_A_DATASET)):
        for batch, row in zip(window, _run(window, arguments), strict=True):
            got = batch_of_columns(row)
            assert len(got.ids) + len(got.skipped) == len(batch)
            yield got


def _run(window: Sequence[Sequence[PhotoFile]], arguments: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """What an actor gives of each batch, in order."""
    ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"place": place, **columns_of_photos(batch)} for place, batch in enumerate(window)]
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
        yield row


def _shares(ray: Any, *, threads: int, at_most: int) -> tuple[int, int]:
    """Processors of each actor, and the number of actors: as many threads as here, and every processor used."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(threads, max(nodes, default=1)))
    return cpus, max(1, min(at_most, sum(node // cpus for node in nodes)))


class _Actor:
    """An extractor in a process of its own.

    What is wrong with its machine it says in answer to its first batch: Ray hides the error of an actor that raises.
    """

    def __init__(
        self, name: str, files: ExtractorFiles, fingerprint: str, folder: str, sample: str, threads: int
    ) -> None:
        """Go to the folder of the process that asked, so that a path means the same photo, also in a message.

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
        place = {"place": row["place"], "refusal": self.refusal}
        if self.refusal:
            return place
        photos = photos_of_columns(row)
        prepared = [prepare_or_refuse(self.extractor, photo) for photo in photos]
        return place | columns_of_batch(extract_batch(self.extractor, photos, prepared))


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


def columns_of_photos(photos: Sequence[PhotoFile]) -> dict[str, Any]:
    """A batch of photos as columns: lists of text, and paths as bytes, since a path need not be text."""
    return {
        "ids": [photo.id for photo in photos],
        "paths": [os.fsencode(photo.path) for photo in photos],
        "refusals": ["" if photo.refusal is None else str(photo.refusal) for photo in photos],
        "kinds": ["" if photo.refusal is None else photo.refusal.kind for photo in photos],
    }


def photos_of_columns(row: Mapping[str, Any]) -> list[PhotoFile]:
    """The photos that `columns_of_photos` made columns of."""
    columns = (row[name] for name in ("ids", "paths", "refusals", "kinds"))
    return [
        PhotoFile(str(photo_id), Path(os.fsdecode(path)), PhotoError(refusal, kind) if refusal else None)
        for photo_id, path, refusal, kind in zip(*columns, strict=True)
    ]


def columns_of_batch(batch: ExtractedBatch) -> dict[str, Any]:
    """A finished batch as columns: one array a field of `Regions`, with the regions of all photos one after the other.

    Features are float16 already, to which the writer would round them.
    """
    columns: dict[str, Any] = {
        "ids": batch.ids,
        "counts": [len(photo.features) for photo in batch.regions],
        "skipped": [photo.id for photo in batch.skipped],
        "reasons": [photo.reason for photo in batch.skipped],
        "kinds": [photo.kind for photo in batch.skipped],
    }
    for array in ARRAYS:
        values = [getattr(photo, array.name) for photo in batch.regions]
        # All photos of a batch have a field, or none of them.
        there = bool(values) and values[0] is not None
        # What has no rows goes as one flat array of none, which every table can hold.
        columns[array.name] = np.concatenate(values).astype(array.dtype).ravel() if there else np.zeros(0, array.dtype)
    return columns


def batch_of_columns(row: Mapping[str, Any]) -> ExtractedBatch:
    """The batch that `columns_of_batch` made columns of."""
    counts = [int(count) for count in row["counts"]]
    ends = np.cumsum(counts, dtype=np.int64)[:-1]
    split: dict[str, list[Any]] = {}
    for array in ARRAYS:
        values = np.asarray(row[array.name], dtype=array.dtype)
        whole = values.reshape(sum(counts), *array.row_shape(-1)) if values.size else None
        split[array.name] = [None] * len(counts) if whole is None else np.split(whole, ends)
    regions = [Regions(**{name: values[place] for name, values in split.items()}) for place in range(len(counts))]
    skipped = zip(row["skipped"], row["reasons"], row["kinds"], strict=True)
    return ExtractedBatch(
        [str(name) for name in row["ids"]], regions, [SkippedPhoto(*map(str, one)) for one in skipped]
    )
