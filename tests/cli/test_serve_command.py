"""`vsrn serve` as a process: how it begins, how it ends, and what it refuses in one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
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
def running(
    *arguments: str, files: str = "", log: Path | None = None, **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service on a free port, and its address.

    files  what its shell is told of the number of files it may open, such as `ulimit -n 256`
    log    where its standard error goes, and not to the test
    """
    with contextlib.ExitStack() as stack:
        error = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
        shell = ["sh", "-c", f'{files}; exec "$@"', "sh"] if files else []
        served = [*shell, *command(*arguments, "--port", "0")]
        process = subprocess.Popen(served, stderr=error, text=True, env=environment(**more))
        try:
            line = process.stderr.readline() if process.stderr is not None else first_line(log, process)
            found = re.search(r"12 photos at (http://\S+/)", line)
            assert found is not None, line
            yield process, found[1]
        finally:
            process.kill()
            process.communicate()


def first_line(log: Path | None, process: subprocess.Popen[str]) -> str:
    assert log is not None
    while process.poll() is None and "\n" not in log.read_text():
        time.sleep(0.05)
    return log.read_text()


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


def test_idle_connections_do_not_keep_others_out(place: Place, tmp_path: Path) -> None:
    """400 that each send half a request, to a service that may open 256 files."""
    with running(str(place.idx), files="ulimit -n 256", log=tmp_path / "log") as (_, address):
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            for _ in range(400):
                idle = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
                idle.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: ")
            for _ in range(5):
                assert healthy_within_a_second(address)
            assert get(f"{address}api/thumbnail?id=00.png")[0] == 200
            assert get(f"{address}api/search?sentence=red")[0] == 200
        assert get(f"{address}api/photos")[0] == 200
        written = (tmp_path / "log").read_text().splitlines()[1:]
    # A line a second at the most, and one for the second that had begun.
    assert 1 <= len(written) <= time.monotonic() - begun + 1
    assert all(re.match("an idle connection was closed for a new one: 96 are allowed", line) for line in written)


def healthy_within_a_second(address: str) -> bool:
    """Ten tries, since the machine that tests run on may be busy with something else for a second."""
    for _ in range(10):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}healthz", timeout=1) as answer:
            return bool(answer.status == 200)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the limits of another process")
def test_the_soft_limit_of_files_is_raised(place: Place) -> None:
    import resource

    with running(str(place.idx), files="ulimit -S -n 128") as (process, _):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 65_536)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the limits of another process")
def test_where_files_run_out_all_the_same_an_idle_connection_gives_its_own(place: Place, tmp_path: Path) -> None:
    """As where the whole system has no more: the limit is put to what the running service has open."""
    import resource

    with running(str(place.idx), log=tmp_path / "log") as (process, address):
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        without_connections = first_free(process.pid)
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as idle:
            idle.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\nGET / HTTP/1.1\r\n".encode())
            assert idle.recv(12) == b"HTTP/1.1 200"
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (first_free(process.pid), before[1]))
            assert get(f"{address}healthz")[0] == 200
        begun = time.monotonic()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (without_connections, before[1]))
        with socket.create_connection((host, int(port)), timeout=60) as waiting:
            waiting.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            while "a connection waits: " not in (tmp_path / "log").read_text():
                assert time.monotonic() < begun + 60, "the log does not say that a connection waits"
                time.sleep(0.05)
            written = (tmp_path / "log").read_text().splitlines()[1:]
            assert len(written) <= time.monotonic() - begun + 2
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
            assert waiting.recv(12) == b"HTTP/1.1 200"
    assert "Traceback" not in (tmp_path / "log").read_text()


def first_free(pid: int) -> int:
    """The number that the next file of a process gets; a limit at it allows no further file."""
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return min(set(range(len(used) + 1)) - used)


def test_bad_requests_write_a_line_a_second_at_most(place: Place, tmp_path: Path) -> None:
    upgrade = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    bad = [(b"no request\r\n\r\n", b"HTTP/1.1 400"), (upgrade, b"HTTP/1.1 200")]
    with running(str(place.idx), log=tmp_path / "log") as (_, address):
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        begun = time.monotonic()
        for request, status in bad * 50:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(request)
                assert connection.recv(12) == status
        written = (tmp_path / "log").read_text().splitlines()[1:]
    assert len(written) <= time.monotonic() - begun + 1
    assert "websockets" not in "".join(written)


def test_without_an_index_it_offers_to_make_one_and_finds_it_the_next_time(place: Place, tmp_path: Path) -> None:
    index = tmp_path / "vsrn/index"
    with waiting_for_an_index(XDG_DATA_HOME=str(tmp_path)) as (address, token, said):
        assert f"will be kept in {index}" in said
        assert get(f"{address}api/indexing")[0] == 401
        status, content = get(f"{address}api/indexing", {"Authorization": f"Bearer {token}"})
        assert (status, json.loads(content)["choice"]["index"]) == (200, str(index))
        # Somebody else makes it meanwhile.
        shutil.copytree(place.idx, index)
        status, content = get(f"{address}api/about", {"Authorization": f"Bearer {token}"})
        assert (status, json.loads(content)["num_photos"]) == (200, 12)
    with running(XDG_DATA_HOME=str(tmp_path)) as (_, address):
        status, content = get(f"{address}api/indexing")
        assert (status, json.loads(content)["choice"]) == (200, None)


@pytest.mark.parametrize("flags", [[], ["--choose-folder"]])
def test_beyond_this_machine_a_folder_is_chosen_only_where_it_was_started_to_let_them(
    flags: list[str], tmp_path: Path
) -> None:
    others = {"XDG_DATA_HOME": str(tmp_path), "VSRN_TOKEN": TOKEN}
    with waiting_for_an_index("--host", "0.0.0.0", *flags, **others) as (address, token, said):
        assert TOKEN not in said
        assert token == ("..." if flags else "")
        state = json.loads(get(f"{address}api/indexing", {"Authorization": f"Bearer {TOKEN}"})[1])
        assert (state["choice"] is not None) is bool(flags)
        assert ("--choose-folder" in state["refusal"]) is not bool(flags)


@contextlib.contextmanager
def waiting_for_an_index(*arguments: str, **more: str) -> Iterator[tuple[str, str, str]]:
    """A service without an index, on a free port: its address, the token in what it says, and what it says."""
    served = command(*arguments, "--port", "0")
    with subprocess.Popen(served, stderr=subprocess.PIPE, text=True, env=environment(**more)) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"There is no index yet.*(http://[\d.:]+/)(?:#token=(\S+))?", said)
            assert found is not None, said
            yield found[1], found[2] or "", said + (process.stderr.readline() if found[2] else "")
        finally:
            process.kill()
            process.communicate()


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


def test_an_index_without_vectors_is_one_sentence_too(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.idx, tmp_path / "idx")
    (tmp_path / "idx/vectors-1.f16").unlink()
    run = subprocess.run(
        command(str(tmp_path / "idx"), "--port", "0"), capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 2
    (error,) = run.stderr.splitlines()
    assert re.match("error: .*vectors-1.f16", error)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_one_sentence(place: Place, missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\nfrom vsrn.cli import main\nmain(['serve', {str(place.idx)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    (error,) = run.stderr.splitlines()
    assert error.startswith(f"error: vsrn serve needs the package {missing}")
    assert "pip install '.[serve]'" in error
