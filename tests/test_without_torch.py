"""The model in the box at work as a person runs it: no command of photos loads torch, and memory stays small."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RESIDENT_MB = 200
HEAVY = ("torch", "torchvision", "timm")
RUN = f"""
import sys
from vsrn.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
assert not code, code
loaded = set({HEAVY!r}) & set(sys.modules)
assert not loaded, loaded
"""


def save_large_photo(path: Path, seed: int) -> None:
    """A JPEG of 12 megapixels."""
    few = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(few).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=85)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three large photos and their index, which a process without torch has made."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    for number in range(3):
        save_large_photo(folder / "photos" / f"{number}.jpg", number)
    without_torch(["index", str(folder / "photos"), "-o", str(folder / "idx")])
    return folder


def without_torch(arguments: list[str]) -> str:
    """What a command says, run in a process of its own, which fails where it loads torch."""
    run = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_no_command_of_photos_loads_torch(world: Path) -> None:
    photo, index = str(world / "photos/1.jpg"), str(world / "idx")
    found = json.loads(without_torch(["search", index, "--image", photo, "--json"]))
    # Features are kept as float16, and decoding is the same.
    assert found["hits"][0]["id"] == "1.jpg"
    assert found["hits"][0]["score"] > 0.999
    assert json.loads(without_torch(["caption", photo, "--json"]))["captions"][0]["caption"]
    assert without_torch(["caption", "--index", index, "--id", "1.jpg"]).strip()
    explained = json.loads(without_torch(["explain", photo, "a man in the snow", "--json"]))
    # The cells of a finer map than the 36 windows.
    assert len(explained["regions"]) > 36
    without_torch(["extract", str(world / "photos"), "--model", "flickr8k-small", "-o", str(world / "store")])


@contextlib.contextmanager
def service(index: Path) -> Iterator[tuple[str, int]]:
    """The address of the real service, in a process of its own, and that process's number."""
    command = [sys.executable, "-m", "vsrn", "serve", str(index), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://\S+/", process.stderr.readline())
        assert found is not None
        try:
            yield found[0], process.pid
        finally:
            process.terminate()


def resident_mb(process: int) -> float:
    """Megabytes of memory that a process holds."""
    said = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    assert said is not None
    return int(said[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process holds")
def test_the_service_holds_little_memory_whatever_was_asked(world: Path) -> None:
    photo, sentence = (world / "photos/0.jpg").read_bytes(), urllib.parse.quote("a man and two dogs in the snow")

    def ask(address: str, content: bytes | None) -> None:
        headers = {} if content is None else {"Content-Type": "image/jpeg"}
        with urllib.request.urlopen(urllib.request.Request(address, content, headers)) as answer:
            assert answer.status == 200
            answer.read()

    with service(world / "idx") as (address, process):
        at_start, after = resident_mb(process), dict[str, float]()
        for kind, path, content in (
            ("search", f"api/search?sentence={sentence}", None),
            ("upload", "api/search/photo", photo),
            ("explanation", f"api/explain?id=1.jpg&sentence={sentence}", None),
            ("caption", "api/caption?id=2.jpg", None),
            ("original", "api/photo?id=1.jpg", None),
        ):
            together = [threading.Thread(target=ask, args=(address + path, content)) for _ in range(4)]
            for thread in together:
                thread.start()
            for thread in together:
                thread.join()
            after[kind] = resident_mb(process)
        assert max(after.values()) < RESIDENT_MB, (at_start, after)
