"""Lanes: processes that do orders one after the other, several at once on one device.

One lane's death, or one order's failure, costs that order alone. The first process gives the orders out and is the only
one that writes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

import torch
from jobs import Order, card, do

from vsrn.errors import VsrnError

MOST_RESTARTS = 20
POLL = 0.5
# What a lane that was asked to stop may take to save its run.
LAST_SECONDS = 20
# Evaluation after training that was cut in time.
GRACE = 12

Result = dict[str, Any]


def serve(connection: Connection, threads: int, device: str) -> None:
    """A lane: do what comes, until None does, or until an order failed in a way that may have harmed the process."""
    torch.set_num_threads(threads)
    # Ctrl-C reaches every process of a terminal; the first one says what to do, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name = card(device)
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order is None:
            return
        began, harmed = time.time(), False
        try:
            result = do(order) | {"device": name, "torch": str(torch.__version__)}
        except (VsrnError, TimeoutError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500], "trace": traceback.format_exc()[-1500:]}
            # A failed kernel, or a failed recording of a graph, leaves CUDA's context useless.
            harmed = not device.startswith("cpu")
        connection.send(result | {"wall_seconds": round(time.time() - began, 2)})
        if harmed:
            return
        # What the last run had on the device, and its graphs.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@dataclass
class Lane:
    """One process, and the order that it is at."""

    process: Any
    connection: Connection
    order: Order | None = None
    began: float = 0.0


@dataclass
class Lanes:
    """Some lanes on a device.

    give   called for the next order, or None where there is none at present
    take   called with an order and its result
    cut_at  time.time() after which an order that is still under way is given up, some seconds later
    """

    number: int
    threads: int
    device: str
    give: Callable[[], Order | None]
    take: Callable[[Order, Result], None]
    cut_at: float = float("inf")
    lanes: list[Lane] = field(default_factory=list)
    restarts: int = 0

    def run(self, is_over: Callable[[], bool]) -> bool:
        """Give orders out until there are none and none is expected; returns whether a signal came first."""
        with stop_signals() as signals:
            while not signals:
                self.fill()
                busy = [lane for lane in self.lanes if lane.order is not None]
                if self.number == 0 or (not busy and is_over()):
                    break
                self.listen(POLL)
                self.give_up()
            stopped = bool(signals)
            self.close(stopped)
        return stopped

    def fill(self) -> None:
        """Start lanes that are lacking, and give every idle lane an order."""
        for lane in [*self.lanes, *([None] * (self.number - len(self.lanes)))]:
            if lane is not None and lane.order is not None:
                continue
            order = self.give()
            if order is None:
                return
            ready = lane or self.start()
            ready.order, ready.began = order, time.time()
            try:
                ready.connection.send(order)
            except OSError:
                # It died idle: `listen` reports it.
                continue

    def start(self) -> Lane:
        """A new lane."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.threads, self.device), daemon=True)
        process.start()
        theirs.close()
        lane = Lane(process, ours)
        self.lanes.append(lane)
        return lane

    def listen(self, seconds: float) -> None:
        """Take what lanes have to say, for so long at most."""
        wait([lane.connection for lane in self.lanes] or [], timeout=seconds) if self.lanes else time.sleep(seconds)
        for lane in list(self.lanes):
            try:
                while lane.connection.poll():
                    result, order = lane.connection.recv(), lane.order
                    lane.order = None
                    if order is not None:
                        self.take(order, result)
            except (EOFError, OSError):
                self.bury(lane)

    def give_up(self) -> None:
        """Kill lanes whose order began before the time was up, and should have ended by now."""
        for lane in self.lanes:
            if lane.order is not None and lane.began < self.cut_at and time.time() > self.cut_at + GRACE:
                lane.process.kill()

    def bury(self, lane: Lane) -> None:
        """Forget a lane that is no more; another takes its place."""
        self.lanes.remove(lane)
        lane.process.join(5)
        if lane.order is not None:
            seconds = round(time.time() - lane.began, 2)
            self.take(lane.order, {"error": f"its process died ({lane.process.exitcode})", "wall_seconds": seconds})
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            self.number = len(self.lanes)

    def close(self, stopped: bool) -> None:
        """End all lanes; where a signal came, those that train save their runs first."""
        for lane in self.lanes:
            if lane.order is not None and stopped:
                lane.process.terminate()
            try:
                lane.connection.send(None)
            except OSError:
                continue
        until = time.time() + LAST_SECONDS
        for lane in self.lanes:
            lane.process.join(max(0.1, until - time.time()))
            if lane.process.is_alive():
                lane.process.kill()
                lane.process.join(5)
        self.lanes = []


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds SIGINT and SIGTERM from when they come."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def limit_threads(lanes: int) -> int:
    """Processor threads of each of some lanes; sets what libraries read when a lane starts."""
    threads = max(1, (os.cpu_count() or 1) // lanes)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    return threads
