"""`vsrn serve` as a process: how it begins, how it ends, and what it refuses in one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from serving import Place, make_place

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vsrn", "serve", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "VSRN_TOKEN"} | more


@contextlib.contextmanager
def running(*arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service on a free port, and its address."""
    process = subprocess.Popen(
        command(*arguments, "--port", "0"), stderr=subprocess.PIPE, text=True, env=environment(**more)
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"12 photos at (http://\S+/)", line)
        assert found is not None, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_without_torch_until_it_is_told_to_end(place: Place, ending: signal.Signals) -> None:
    with running(str(place.idx)) as (process, address):
        status, content = get(f"{address}api/search?sentence=a%20red%20light&k=3")
        assert status == 200
        assert len(json.loads(content)["hits"]) == 3
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "onnxruntime" in maps.read_text()
            assert "libtorch" not in maps.read_text()
        # A browser keeps its connection open; that must not keep the service alive.
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            process.send_signal(ending)
            assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_beyond_this_machine_it_asks_for_the_token(place: Place) -> None:
    with running(str(place.idx), "--host", "0.0.0.0", VSRN_TOKEN=TOKEN) as (process, address):
        assert process.stderr is not None
        assert TOKEN not in process.stderr.readline()
        assert get(f"{address}api/about")[0] == 401
        assert get(f"{address}api/about", {"Authorization": f"Bearer {TOKEN}"})[0] == 200


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["{photos}"], {}, "is not an index: it has no index.json; make one with"),
        (["{idx}/nowhere"], {}, "is not an index"),
        (["{idx}", "--port", "{port}"], {}, r"port \d+ is in use; end what uses it, or choose another --port"),
        (["{idx}", "--port", "70000"], {}, "--port is 70000; it must be 0 to 65535"),
        (["{idx}", "--host", "0.0.0.0"], {}, "lets others than this machine in; set VSRN_TOKEN"),
        (["{idx}", "--host", "::"], {}, "lets others than this machine in; set VSRN_TOKEN"),
        (["{idx}", "--host", "0.0.0.0"], {"VSRN_TOKEN": "short"}, "VSRN_TOKEN must be 16 plain characters or more"),
        (["{idx}", "--host", "no.such.host.invalid"], {"VSRN_TOKEN": TOKEN}, "no address of this machine"),
        (["{idx}", "--host", "203.0.113.9"], {"VSRN_TOKEN": TOKEN}, "cannot be served from"),
    ],
)
def test_a_mistake_is_one_sentence(
    place: Place, arguments: list[str], variables: dict[str, str], sentence: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"photos": place.photos, "idx": place.idx, "port": taken.getsockname()[1]}
        filled = [argument.format(**names) for argument in arguments]
        run = subprocess.run(
            command(*filled), capture_output=True, text=True, check=False, timeout=120, env=environment(**variables)
        )
    assert run.returncode == 2
    (error,) = run.stderr.splitlines()
    assert re.match(f"error: .*{sentence}", error)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_one_sentence(place: Place, missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\nfrom vsrn.cli import main\nmain(['serve', {str(place.idx)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    (error,) = run.stderr.splitlines()
    assert error.startswith(f"error: vsrn serve needs the package {missing}")
    assert "pip install 'vsrn[serve]'" in error
