"""What a run of measurements writes down: one JSON line for each measurement, on disk as soon as it is made.

The measurements of a part run in one process. An exception costs one measurement: its line then holds the error. What
ends the process (a crash, a measurement that does not come back, an error after which the GPU takes no more work) costs
one measurement too: `run.py` writes its line and starts the part again, which leaves out what has a line already.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS, RUNNING, STACKS = "results.jsonl", "running.txt", "stacks.txt"
# The exit status of a part's process that ended because the GPU takes no more work.
GPU_LOST = 75
Figures = dict[str, Any]


def card_of(device: str) -> dict[str, str]:
    """The card's name and its driver as `nvidia-smi` gives them, or the processor and no driver; torch's version."""
    facts = {"card": platform.processor() or platform.machine(), "driver": "", "torch": str(torch.__version__)}
    if not device.startswith("cuda"):
        return facts
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
        card, _, driver = said.splitlines()[0].partition(",")
        return facts | {"card": card.strip(), "driver": driver.strip()}
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return facts | {"card": card, "driver": f"nvidia-smi: {type(error).__name__}"}


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the results, and wait until it is on disk."""
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The results so far."""
    path = folder / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@dataclass
class Part:
    """The measurements of one part: their clock, and where they are written.

    name     of the part
    folder   of the results
    scratch  a folder for what is needed for a while only
    device   where it is measured
    small    whether sizes are those of a test instead of those of the paper
    until    `time.time()` at which no further measurement begins
    facts    what each line says beside: card, driver, torch, command
    """

    name: str
    folder: Path
    scratch: Path
    device: torch.device
    small: bool
    until: float
    facts: dict[str, str]

    def __post_init__(self) -> None:
        self.done = {line["name"] for line in read_lines(self.folder) if line["part"] == self.name}

    @property
    def left(self) -> float:
        """Seconds in which a measurement may begin."""
        return self.until - time.time()

    def measure(self, name: str, make: Callable[[], Figures], *, needs: float = 10, limit: float = 60) -> None:
        """Make one measurement and write its line: figures, an error, or that it was left out.

        needs  seconds that it takes; it is left out where fewer are left
        limit  seconds after which it is given up, and the process with it
        """
        if name in self.done:
            return
        self.done.add(name)
        line: dict[str, Any] = {"part": self.name, "name": name}
        if self.left < (0 if self.small else needs):
            self._write(line | {"skipped": f"{max(0.0, self.left):.0f} s left, and it needs {needs:g} s"}, 0.0)
            return
        (self.folder / RUNNING).write_text(name, encoding="utf-8")
        began, lost = time.perf_counter(), False
        with (self.folder / STACKS).open("w", encoding="utf-8") as stacks:
            # A test's processors may be busy with other tests.
            faulthandler.dump_traceback_later(limit * (5 if self.small else 1), exit=True, file=stacks)
            try:
                line["figures"] = make()
                synchronize(self.device)
            except Exception as error:
                line["error"] = said_of(error)
                lost = not self._still_works()
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._write(line, time.perf_counter() - began)
        (self.folder / RUNNING).unlink()
        if lost:
            os._exit(GPU_LOST)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _write(self, line: dict[str, Any], seconds: float) -> None:
        append_line(self.folder, line | {"seconds": round(seconds, 2)} | self.facts)
        print(f"  {one_line(line)}  [{seconds:.1f} s]", flush=True)

    def _still_works(self) -> bool:
        """Whether the device computes after an error; after an illegal access a GPU never does in this process."""
        try:
            return bool((torch.ones(2, device=self.device) + 1).sum().item() == 4)
        except RuntimeError:
            return False


def said_of(error: BaseException) -> dict[str, Any]:
    """An exception as it is written down: its type, its message and the last lines of its trace."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return {"type": type(error).__name__, "message": str(error)[:2000], "traceback": lines[-16:]}


def one_line(line: dict[str, Any], width: int = 150) -> str:
    """A line of the results for people: part, name, and the figures or what came instead of them."""
    if "error" in line:
        said = f"ERROR {line['error']['type']}: {line['error']['message']}"
    elif "skipped" in line:
        said = f"left out: {line['skipped']}"
    else:
        said = ", ".join(f"{name} {_short(value)}" for name, value in line["figures"].items() if _is_short(value))
    said = " ".join(said.split())
    return f"{line['part']:<10} {line['name']:<34} {said[:width]}"


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and len(str(value)) <= 60


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, seconds: float, warm_up: int = 2) -> float:
    """Seconds that a call takes on average, of as many calls as fill `seconds`; one at least."""
    for _ in range(warm_up):
        call()
    synchronize(device)
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        call()
        calls += 1
        if calls % 8 == 0:
            # The host must not run far ahead of the device: what is in its queue is waited for at the end.
            synchronize(device)
    synchronize(device)
    return (time.perf_counter() - began) / calls
