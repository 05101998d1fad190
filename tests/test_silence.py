"""Nothing leaves the machine: no command opens a connection to another one, and no report waits in a cache."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from listening import Ear, listening
from PIL import Image

import vsrn

SECONDS_OF_SERVICE = 25
OWN_CLOUD = r"GET http://(169\.254\.169\.254|metadata\.google\.internal)/\S* HTTP/1\.1$"
CONFIG = """
[data]
path = "store"
min_count = 1

[model]
joint_dim = 16
word_dim = 8
captioner = {hidden_dim = 8, word_dim = 8}

[train]
epochs = 2
batch_size = 4
learning_rate_drop = []
"""


@pytest.fixture(scope="module")
def ear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ear]:
    with listening(tmp_path_factory.mktemp("listening")) as ear:
        yield ear


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of 64 pixels, captions of them in two splits, and a config to learn from them."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    images = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
        name = f"{number:02}.png"
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(folder / "photos" / name)
        sentences = [{"raw": f"a {('red', 'blue', 'green')[number % 3]} dog runs"}, {"raw": "a boat"}]
        images.append({"filename": name, "split": "train" if number < 8 else "val", "sentences": sentences})
    (folder / "captions.json").write_text(json.dumps({"dataset": "ours", "images": images}))
    (folder / "config.toml").write_text(CONFIG)
    return folder


def run(ear: Ear, place: Path, *command: str) -> str:
    """Run a program in `place`; gives what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=place, env=ear.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def vsrn_does(ear: Ear, place: Path, *arguments: str) -> str:
    return run(ear, place, "-m", "vsrn", *arguments)


@contextlib.contextmanager
def serving(ear: Ear, place: Path) -> Iterator[str]:
    """`vsrn serve` for 25 seconds or more; gives its address."""
    command = [sys.executable, "-m", "vsrn", "serve", "idx", "--port", "0"]
    with subprocess.Popen(command, cwd=place, env=ear.environment, stderr=subprocess.PIPE, text=True) as service:
        began = time.monotonic()
        try:
            assert service.stderr is not None
            line = service.stderr.readline()
            found = re.search(r"photos at (http://\S+/)", line)
            assert found is not None, line
            yield found[1]
            time.sleep(max(0.0, SECONDS_OF_SERVICE - (time.monotonic() - began)))
            service.send_signal(signal.SIGTERM)
            assert service.wait(60) == 0
        finally:
            service.kill()


def ask(address: str, path: str, body: bytes | None = None) -> bytes:
    """Ask the service past all proxies."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {} if body is None else {"Content-Type": "image/png"}
    with opener.open(urllib.request.Request(address + path, body, headers), timeout=60) as answer:
        return bytes(answer.read())


def test_a_connection_would_be_heard(tmp_path: Path) -> None:
    through = "import urllib.request as r\ntry: r.urlopen('http://example.invalid/a')\nexcept OSError: pass"
    past = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=0.01)\nexcept OSError: pass"
    name = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
    with listening(tmp_path) as ear:
        for program in (through, past, name):
            run(ear, tmp_path, "-c", program)
        assert ear.heard[0] == "GET http://example.invalid/a HTTP/1.1"
        assert "socket.connect 192.0.2.1" in ear.heard
        assert "socket.getaddrinfo example.invalid" in ear.heard


def test_no_command_opens_a_connection(ear: Ear, place: Path) -> None:
    vsrn_does(ear, place, "index", "photos", "-o", "idx")
    with serving(ear, place) as address:
        assert json.loads(ask(address, f"api/search?sentence={urllib.parse.quote('two dogs')}"))["hits"]
        assert json.loads(ask(address, "api/search/photo", (place / "photos/00.png").read_bytes()))["hits"]
        assert vsrn_does(ear, place, "search", "idx", "two dogs play")
        assert vsrn_does(ear, place, "search", "idx", "--image", "photos/03.png")
        vsrn_does(ear, place, "caption", "photos/00.png")
        vsrn_does(ear, place, "explain", "photos/00.png", "two dogs", "-o", "why.png")
        vsrn_does(ear, place, "extract", "photos", "-o", "store", "--captions", "captions.json")
        vsrn_does(ear, place, "train", "config.toml", "-o", "run")
        vsrn_does(ear, place, "evaluate", "run", "--split", "val")
        vsrn_does(ear, place, "export", "run", "--onnx", "exported")
    assert ear.heard == []
    assert reports_in(ear.home) == []


@pytest.mark.parametrize("program", ["from vsrn.encoders.onnx_backend import OnnxEncoder", "import vsrn, onnxruntime"])
def test_the_library_is_as_silent(program: str, ear: Ear, place: Path) -> None:
    photo = repr(str(place / "photos/00.png"))
    run(ear, place, "-c", f"{program}\nimport vsrn\nvsrn.load('flickr8k-small').encode_images([{photo}])")
    assert ear.heard == []
    assert reports_in(ear.home) == []


def test_milvus_lite_is_as_silent(ear: Ear, place: Path) -> None:
    vsrn_does(ear, place, "index", "photos", "-o", "kept-by-milvus", "--engine", "milvus")
    assert vsrn_does(ear, place, "search", "kept-by-milvus", "two dogs play")
    assert ear.heard == []


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install '.[ray]')")
def test_rays_workers_report_nothing(tmp_path: Path, place: Path) -> None:
    with listening(tmp_path) as ear:
        vsrn_does(ear, place, "extract", "photos", "-o", "by-ray", "--ray", "local")
        # Ray's head asks the address at which a cloud tells a machine about itself, with or without usage statistics.
        assert [line for line in ear.heard if not re.match(OWN_CLOUD, line)] == []
        assert reports_in(ear.home) == []


@pytest.mark.parametrize("variable", vsrn.SWITCHED_OFF)
def test_a_users_own_setting_is_kept(variable: str, ear: Ear, tmp_path: Path) -> None:
    program = f"import os, vsrn; print(os.environ[{variable!r}])"
    assert run(ear, tmp_path, "-c", program).strip() == vsrn.SWITCHED_OFF[variable]
    own = ear.environment | {variable: "mine"}
    kept = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert kept.stdout.strip() == "mine"


def reports_in(home: Path) -> list[Path]:
    """Files below a HOME that a reporting package left there."""
    return [path for path in home.rglob("*") if re.search("microsoft|onnxruntime|telemetry", str(path), re.IGNORECASE)]
