"""Work on photos done by the machines of a Ray cluster (`pip install '.[ray]'`).

Ray Data carries batches of photos to actors, each of which makes the same `Work` again and runs its two halves; results
come back in order to the one writer. Where the cluster has GPUs, and the device asked for is not the CPU, photos are
prepared by actors of one processor each and finished by actors of one GPU each. Otherwise an actor runs both halves.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vsrn.data.photo_splits import made_ready
from vsrn.errors import ConfigError, DataError, VsrnError, one_line
from vsrn.extractors.batches import BatchMaker, Done, Item, Ready, Work, cut

# Ray Data keeps a few hundred bytes here for each batch of a dataset, so a long list becomes several of them.
_BATCHES_A_DATASET = 8192
_SECONDS_TO_ANSWER = 10.0


@contextmanager
def ray_batches(address: str) -> Iterator[BatchMaker]:
    """Connect to the Ray cluster at `address`, or start one in this machine's processors for "local".

        with ray_batches("local") as batches:
            extract(photos, extractor, "store/", "train", batches=batches)

    Gives what `extract` and `update_index` take as `batches`; `workers` is not used. The extractor must be one that
    `make_extractor` knows by itself. Actors open photos and weights by the same paths as this process, which alone
    needs to see the store or the index. Results are the same, bit for bit where the actors' processors or GPUs are of
    the writer's kind, and to the rounding of float16 elsewhere. Of a killed actor its batch is done again.

    Raises `ConfigError` where Ray is not installed or no cluster answers; the batches raise `DataError` where an actor
    cannot see the photos, has another extractor, or cannot compute.
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
        raise ConfigError(
            f"no Ray cluster answers at '{address}' ({one_line(error)}); name the address that `ray start --head`"
            " printed, set RAY_AUTH_MODE=token where it asks for a token, or say --ray local."
        ) from error


def _batches_on_ray(
    work: Work[Item, Ready, Done],
    items: Sequence[Item],
    batch_size: int,
    workers: int | None,  # noqa: ARG001  # a `BatchMaker` is told
) -> Iterator[Done]:
    ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    paths = filter(None, map(work.path_of, items))
    sample = next((path for path in paths if path.is_file()), None)
    # Kept once for all actors: a model may be among it.
    make = ray.put(work.elsewhere())
    stages = _stages(ray.nodes(), work.device)
    batches = cut(items, batch_size)
    while window := [{"message": _packed(list(batch))} for batch in islice(batches, _BATCHES_A_DATASET)]:
        dataset = data.from_items(window, override_num_blocks=len(window))
        for stage in stages:
            dataset = dataset.map(
                _Actor,
                fn_constructor_args=(stage, make, Path.cwd(), sample),
                # All at once: Ray would add them one by one, each after it has seen that the others are busy.
                compute=data.ActorPoolStrategy(size=max(1, min(len(window), stage.actors))),
                num_cpus=stage.cpus,
                num_gpus=stage.gpus,
            )
        for row in dataset.iter_rows():
            done = _unpacked(row["message"])
            if isinstance(done, DataError):
                raise done
            yield done


class _Stage(NamedTuple):
    """Actors that do one half of the work, or both.

    halves      "prepare", "finish" or both
    actors      how many, at most
    cpus, gpus  that Ray keeps for each of them
    threads     of torch in each: the last bits of a network's output depend on their number
    """

    halves: tuple[str, ...]
    device: str
    actors: int
    cpus: int
    gpus: int | None
    threads: int


def _stages(nodes: Sequence[dict[str, Any]], device: str) -> list[_Stage]:
    """How the machines of a cluster share the work; `device` as it was asked for."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in alive]
    gpus = sum(int(node.get("GPU", 0)) for node in alive)
    threads, kind = torch.get_num_threads(), device.partition(":")[0]
    if kind in ("auto", "cuda") and gpus:
        # An actor sees its own GPU only, as the first one. It takes no processor from those who prepare, so that a
        # machine of one processor and one GPU has room for both.
        return [
            _Stage(("prepare",), "cpu", sum(cpus), 1, None, 1),
            _Stage(("finish",), kind, gpus, 0, 1, threads),
        ]
    # As many threads to an actor as here, and every processor used.
    each = max(1, min(threads, max(cpus, default=1)))
    return [_Stage(("prepare", "finish"), device, sum(node // each for node in cpus), each, None, threads)]


class _Actor:
    """The work in a process of its own, which passes messages: a pickled value in, what became of it out.

    What is wrong it gives as a `DataError` in the value's place: Ray hides the error of an actor that raises.
    """

    def __init__(self, stage: _Stage, make: Any, folder: Path, sample: Path | None) -> None:
        """Go to the folder of the process that asked, so that a path means the same photo, also in a message.

        make    Ray's reference to what `Work.elsewhere` gave
        sample  a photo that the driver can see
        """
        self.stage, self.refusal = stage, ""
        try:
            os.chdir(folder)
            if sample is not None:
                sample.stat()
            torch.set_num_threads(stage.threads)
            made_here = importlib.import_module("ray").get(make)
            self.work: Work[Any, Any, Any] = made_here(stage.device, "finish" in stage.halves)
        except OSError as error:
            self.refusal = (
                f"{platform.node()} cannot see {error.filename}; put photos and working folder on a disk that every"
                " machine of the cluster shares."
            )
        except VsrnError as error:
            self.refusal = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        value = DataError(self.refusal) if self.refusal else _unpacked(row["message"])
        try:
            if "prepare" in self.stage.halves and not isinstance(value, DataError):
                value = next(made_ready([value], self.work.prepare, self.stage.threads))
            if "finish" in self.stage.halves and not isinstance(value, DataError):
                value = self.work.finish(*value)
        except VsrnError as error:
            value = DataError(str(error))
        return {"message": _packed(value)}


def _packed(value: object) -> npt.NDArray[np.uint8]:
    """A value as the bytes that Ray Data carries, which it can count and need not understand."""
    return np.frombuffer(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), np.uint8)


def _unpacked(message: npt.NDArray[np.uint8]) -> Any:
    """The value that `_packed` packed in this process or in an actor's; nothing of a photo or a model gets here."""
    return pickle.loads(message.tobytes())  # noqa: S301 - bytes that the same program pickled
