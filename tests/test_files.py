"""A file is the old one or the new one, never half of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vsrn.files import normal_name, printable, read_at, replacing, take_lock, write_all, write_atomically


def test_names_that_look_alike_are_one_name() -> None:
    assert normal_name("e\u0301te\u0301") == normal_name("\xe9t\xe9") == "\xe9t\xe9"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Straße 犬 🏖.jpg", "Straße 犬 🏖.jpg"),
        ("a\x1b[2J\nb\x7f\x9b", r"a\x1b[2J\x0ab\x7f\x9b"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("gpj\u202e.exe\u2028", r"gpj\u202e.exe\u2028"),
        (Path("a") / "b", "a/b"),
    ],
)
def test_a_printable_name_has_nothing_a_terminal_would_act_on(name: str | Path, expected: str) -> None:
    assert printable(name) == expected
    assert printable(name).isprintable()


def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_half(path, RuntimeError("in the middle"))
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_an_interrupt_leaves_nothing_where_there_was_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "file", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent, "a file can only take another's place on one file system"
        temporary.write_bytes(b"new and longer")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_finds_the_file_missing_or_half_written(tmp_path: Path) -> None:
    path, done, found = tmp_path / "file", threading.Event(), set[bytes]()
    contents = [bytes([number]) * 50_000 for number in range(4)]
    path.write_bytes(contents[0])

    def read_on() -> None:
        while not done.is_set():
            found.add(path.read_bytes() if path.exists() else b"missing")

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_on)
        for turn in range(200):
            write_atomically(path, contents[turn % 4])
        done.set()
        reader.result()
    assert found <= set(contents)


def test_whole_files_are_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"one", bytes(range(256)) * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_block_that_writes_nothing_does_not_remove_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new" * 10_000)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vsrn.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def write_half(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


HOLD = """
import sys, time
from pathlib import Path
from vsrn.files import take_lock
release = take_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_freed_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            take_lock(path)
        holder.kill()
        holder.wait()
    release = take_lock(path)
    with pytest.raises(BlockingIOError):
        take_lock(path)
    release()
    take_lock(path)()


@pytest.mark.parametrize("what", ["link", "link to nothing", "pipe", "folder"])
def test_what_lies_where_the_lock_should_be_is_left_alone(tmp_path: Path, what: str) -> None:
    precious, path = tmp_path / "precious", tmp_path / "lock"
    precious.write_bytes(b"precious")
    if what.startswith("link"):
        path.symlink_to(precious if what == "link" else tmp_path / "nothing")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match="lock"):
        take_lock(path)
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("posix", [True, False])
def test_threads_read_their_own_places_of_one_file(
    tmp_path: Path, posix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system has no pread, as Windows."""
    if not posix:
        monkeypatch.delattr(os, "pread")
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        pieces = [bytes([number]) * 4 for number in range(100)]
        write_all(file.fileno(), b"".join(pieces))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda at: read_at(file.fileno(), 4, 4 * at), range(100))) == pieces
