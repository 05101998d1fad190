"""When a watched folder is indexed again: by the real notices of the system, and by looking where it gives none."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vsrn.search import watch

SHORT, LONG = 0.2, 20.0


@contextmanager
def watching(*folders: Path, index: Path, poll: bool | None = None) -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds for the next time that indexing is due, and says whether it came."""
    due: queue.SimpleQueue[None] = queue.SimpleQueue()
    stop = threading.Event()

    def follow() -> None:
        for _ in watch.changes(folders, index, quiet=SHORT, poll=poll, stop=stop):
            due.put(None)

    def comes(seconds: float) -> bool:
        try:
            due.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield comes
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("poll", [None, True])
def test_it_is_due_at_the_beginning_and_after_each_change(
    photos: Path, poll: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.2)
    with watching(photos, index=photos / "idx", poll=poll) as comes:
        assert comes(LONG)
        (photos / "deep/a.jpg").write_bytes(b"x")
        assert comes(LONG)
        (photos / "new").mkdir()
        assert comes(LONG)
        (photos / "new/b.jpg").write_bytes(b"x")
        assert comes(LONG)
        (photos / "deep/a.jpg").unlink()
        assert comes(LONG)
        assert not comes(5 * SHORT)


def test_the_index_s_own_files_and_hidden_ones_are_no_change(photos: Path) -> None:
    index = photos / "idx"
    index.mkdir()
    with watching(photos, index=index) as comes:
        assert comes(LONG)
        (index / "records.sqlite").write_bytes(b"x")
        (photos / ".cache").mkdir()
        (photos / ".cache/a.jpg").write_bytes(b"x")
        assert not comes(10 * SHORT)


def test_a_folder_that_goes_away_is_waited_for(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", SHORT)
    other = tmp_path / "other"
    other.mkdir()
    with watching(photos, other, index=tmp_path / "idx") as comes:
        assert comes(LONG)
        other.rename(tmp_path / "away")
        assert not comes(5 * SHORT)
        (photos / "a.jpg").write_bytes(b"x")
        assert comes(LONG)
        (tmp_path / "away").rename(other)
        assert comes(LONG)
        (other / "b.jpg").write_bytes(b"x")
        assert comes(LONG)


def test_a_network_drive_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lines of Linux, where such a drive is mounted, also below the folder, and with a blank in its name."""
    nas = tmp_path / "my nas"
    nas.mkdir()
    mounts = tmp_path / "mountinfo"
    root = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
    there = str(nas).replace(" ", "\\040")
    mounts.write_text(f"{root}\n98 22 0:51 / {there} rw - nfs4 nas:/photos rw\n")
    monkeypatch.setattr(watch, "_MOUNTS", mounts)
    assert [watch.on_network(path) for path in (nas, nas / "..", tmp_path / "nowhere")] == [True, True, False]
    mounts.write_text(root)
    assert not watch.on_network(nas)
