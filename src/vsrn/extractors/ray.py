"""Extraction on the machines of a Ray cluster (`pip install '.[ray]'`).

    with ray_batches("local") as batches:              # or the address of a cluster
        extract(photos, extractor, "store/", "train", batches=batches)

Ray Data carries batches of photos to actors, each of which holds an extractor and calls the same `prepare_or_refuse`
and `extract_batch` as a process alone does; regions come back as columns of arrays, in order, to the one writer. So the
store is the same, and a killed run goes on after the last batch written. Photos must be where the actors can open them
by the same path, on a shared disk; the store needs to be seen by this process only.
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
from vsrn.data.regions import ARRAYS, Regions
from vsrn.errors import ConfigError, DataError, VsrnError
from vsrn.extractors.base import ExtractorFiles, RegionExtractor, make_extractor
from vsrn.extractors.extract import BatchMaker, ExtractedBatch, cut, extract_batch, prepare_or_refuse

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
    try:
        importlib.import_module("ray.data")
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray ({error}); run `pip install '.[ray]'` in the checkout.") from error
    # Progress and errors reach the user by our own way.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        yield _batches_on_ray
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    # It warns, as of an error, that an actor could not be begun again if this process died; nor could the run.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():
            # Where nothing answers, Ray itself would try for minutes.
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at '{address}' ({reason}); name the address that `ray start --head` printed,"
            " or say --ray local."
        ) from error


def _batches_on_ray(
    photos: Sequence[PhotoFile],
    extractor: RegionExtractor,
    batch_size: int,
    workers: int,  # noqa: ARG001  # a `BatchMaker` is told
) -> Iterator[ExtractedBatch]:
    ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    sample = next((photo.path for photo in photos if photo.refusal is None and photo.path.is_file()), None)
    arguments = (extractor.name, extractor.files, extractor.fingerprint, Path.cwd(), sample, torch.get_num_threads())
    # As many threads to an actor as here, and every processor used.
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(torch.get_num_threads(), max(nodes, default=1)))
    batches = cut(photos, batch_size)
    while window := [{"photos": batch} for batch in islice(batches, _BATCHES_A_DATASET)]:
        actors = max(1, min(len(window), sum(node // cpus for node in nodes)))
        dataset = data.from_items(window, override_num_blocks=len(window)).map(
            _Actor,
            fn_constructor_args=arguments,
            compute=data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=cpus,
        )
        for sent, row in zip(window, dataset.iter_rows(), strict=True):
            if "refusal" in row:
                raise DataError(row["refusal"])
            got = batch_of_columns(row)
            assert sorted([*got.ids, *(photo.id for photo in got.skipped)]) == sorted(one.id for one in sent["photos"])
            yield got


class _Actor:
    """An extractor in a process of its own.

    What is wrong with its machine it says in answer to its first batch: Ray hides the error of an actor that raises.
    """

    def __init__(
        self, name: str, files: ExtractorFiles, fingerprint: str, folder: Path, sample: Path | None, threads: int
    ) -> None:
        """Go to the folder of the process that asked, so that a path means the same photo, also in a message.

        sample   a photo that the driver can see
        threads  of the driver's torch: the last bits of a network's output depend on their number
        """
        self.refusal = ""
        try:
            os.chdir(folder)
            if sample is not None:
                sample.stat()
            torch.set_num_threads(threads)
            chosen = {"classes": files.classes, "attributes": files.attributes}
            self.extractor = make_extractor(name, files.weights, **chosen, download=files.download, device=files.device)
            if self.extractor.fingerprint != fingerprint:
                self.refusal = f"{platform.node()} has other weights of '{name}'; install the same vsrn everywhere."
        except OSError as error:
            self.refusal = (
                f"{platform.node()} cannot see {error.filename}; put photos and working folder on a disk that every"
                " machine of the cluster shares."
            )
        except VsrnError as error:
            self.refusal = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.refusal:
            return {"refusal": self.refusal}
        photos = list(row["photos"])
        prepared = [prepare_or_refuse(self.extractor, photo) for photo in photos]
        return columns_of_batch(extract_batch(self.extractor, photos, prepared))


def columns_of_batch(batch: ExtractedBatch) -> dict[str, Any]:
    """A finished batch as columns: one array a field of `Regions`, with the regions of all photos one after the other.

    Features are float16 already, to which the writer would round them. Photos without regions give flat arrays of
    none, which every table can hold.
    """
    columns: dict[str, Any] = {"ids": batch.ids, "skipped": batch.skipped}
    columns["counts"] = [len(photo.features) for photo in batch.regions]
    for array in ARRAYS:
        # All photos of a batch have a field, or none of them.
        values = [value for photo in batch.regions if (value := getattr(photo, array.name)) is not None]
        columns[array.name] = np.concatenate([np.zeros(0), *map(np.ravel, values)]).astype(array.dtype)
    return columns


def batch_of_columns(row: Mapping[str, Any]) -> ExtractedBatch:
    """The batch that `columns_of_batch` made columns of."""
    counts = np.asarray(row["counts"], np.int64)
    fields: list[list[Any]] = []
    for array in ARRAYS:
        values = np.asarray(row[array.name], array.dtype)
        whole = values.reshape(counts.sum(), *array.row_shape(-1)) if values.size else None
        fields.append([None] * len(counts) if whole is None else np.split(whole, np.cumsum(counts)[:-1]))
    regions = [Regions(*values) for values in zip(*fields, strict=True)]
    return ExtractedBatch([str(name) for name in row["ids"]], regions, list(row["skipped"]))
