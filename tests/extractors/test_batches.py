"""Photos that several processes prepare: what comes of them is what threads of one process make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vsrn.data.listing import find_photos
from vsrn.errors import ConfigError, DataError
from vsrn.extractors.base import make_extractor, may_be_gpu
from vsrn.extractors.batches import Work, batches_for, local_batches, process_batches
from vsrn.extractors.extract import Extraction, extract

processes = partial(process_batches, fewest=1)


def save_photos(folder: Path, number: int = 21) -> Path:
    folder.mkdir()
    for seed in range(number):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{seed:02}.png")
    (folder / "07.png").write_bytes(b"no photo")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_processes_write_the_same_store(tmp_path: Path) -> None:
    # Batches of ten are sent in two parts, the last of one photo in one.
    photos = find_photos(save_photos(tmp_path / "photos"))
    extractor = make_extractor("grid", device="cpu")
    reports = [
        extract(photos, extractor, tmp_path / name, "photos", batch_size=10, workers=2, batches=batches)
        for name, batches in (("threads", local_batches), ("processes", processes))
    ]
    assert [report.num_done for report in reports] == [20, 20]
    assert reports[0].skipped == reports[1].skipped
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


class OfNumbers:
    """Work on numbers instead of photos; what prepares the number 13 is killed, and 14 cannot be made elsewhere."""

    device = "cpu"

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def prepare(self, item: int) -> tuple[int, int]:
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return item, os.getpid()

    def finish(self, items: Sequence[int], ready: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        assert [item for item, _ in ready] == list(items)
        return list(ready)

    def path_of(self, item: int) -> None:  # noqa: ARG002
        return None

    def elsewhere(self) -> Callable[[str, bool], Work[Any, Any, Any]]:
        return partial(make_elsewhere, self.last)


def make_elsewhere(last: int, device: str, finishes: bool) -> Work[Any, Any, Any]:
    assert (device, finishes) == ("cpu", False), "the GPU belongs to the one that finishes"
    if last == 14:
        raise ConfigError("the weights are not here; name them.")
    return OfNumbers(last)


def test_other_processes_prepare_and_few_items_stay_here() -> None:
    items = list(range(12))
    there = [pair for done in processes(OfNumbers(), items, 5, 2) for pair in done]
    here = [pair for done in process_batches(OfNumbers(), items, 5, 2) for pair in done]
    assert [item for item, _ in there] == [item for item, _ in here] == items
    assert {process for _, process in here} == {os.getpid()}
    assert os.getpid() not in {process for _, process in there}


def test_a_killed_process_is_told_of() -> None:
    with pytest.raises(DataError, match="was killed.*run the same command again, with fewer --workers"):
        list(processes(OfNumbers(), list(range(16)), 4, 2))


def test_what_a_process_lacks_is_told_of() -> None:
    with pytest.raises(ConfigError, match="the weights are not here; name them"):
        list(processes(OfNumbers(14), list(range(4)), 4, 1))


def test_a_process_imports_the_plugins_that_a_person_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_an_extractor.py").write_text(
        "import vsrn\n"
        "from vsrn.extractors.base import make_extractor\n"
        "vsrn.register_extractor('mine', lambda _argument, files: make_extractor('grid', device=files.device))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    photos = find_photos(save_photos(tmp_path / "photos", 9))
    extractor = make_extractor("grid", device="cpu")
    monkeypatch.setattr(extractor, "name", "mine")
    (done,) = processes(Extraction(extractor), photos, 9, 1, plugins=["with_an_extractor"])
    assert len(done.ids) == 8
    with pytest.raises(ConfigError, match="mine"):
        list(processes(Extraction(extractor), photos, 9, 1))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_batches import OfNumbers, processes
if __name__ == "__main__":
    # A shell may have started all this in the background, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for done in processes(OfNumbers(), [0] * 8, 4, 2):
        print(*{process for _, process in done}, flush=True)
        # Ctrl-C reaches all processes of a terminal.
        os.killpg(0, signal.SIGINT) if sys.argv[2] == "SIGINT" else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_processes_end_with_the_one_that_started_them(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(Path(__file__).parent), how]
    run = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    others = [int(process) for process in run.stdout.split()]
    assert run.returncode != 0
    assert others
    assert run.stderr.count("Traceback") <= 1, "only the script itself may complain"
    for _ in range(600):
        if not any(map(runs, others)):
            break
        time.sleep(0.1)
    assert not any(map(runs, others))


def runs(process: int) -> bool:
    """Whether a process is there and is more than an entry that nobody has asked for yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_processes_are_for_gpus() -> None:
    assert may_be_gpu("cuda:1")
    assert not may_be_gpu("cpu")
    assert not may_be_gpu("mps")
    assert batches_for("cpu") is local_batches
    assert batches_for("cuda") is not local_batches
