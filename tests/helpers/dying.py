"""Indexing that is killed: a process of its own, which forks the ones that die before any thread is started.

    python dying.py begin   MODEL FOLDER    at every write point of a first run
    python dying.py change  MODEL FOLDER    at every write point of a run that adds, changes, deletes and compacts
    python dying.py moments MODEL FOLDER    at random moments, again and again, on one folder

Prints how many were killed; whatever is wrong afterwards raises. A write point is a write, a sync, a renaming or a
deletion of a file, or an SQL statement. Every second death at a write point takes what was not yet synced with it,
as a power cut would, and a write that dies is torn in half.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from colours import save_photo

import vsrn
import vsrn.search.faiss  # otherwise loaded again by every child
from vsrn.search.build import update_index
from vsrn.search.writer import Changes, IndexWriter

Contents = dict[str, tuple[str, bytes]]
BATCH = 3
ENOUGH_KILLS, MOST_ROUNDS = 15, 40


class Death:
    """Counts write points and dies at one."""

    def __init__(self, at: int, index: Path, *, power_cut: bool) -> None:
        self.left, self.index, self.power_cut = at, index, power_cut
        self.synced = {str(path): path.stat().st_size for path in grown(index)}

    def install(self) -> None:
        for name in ("fsync", "replace", "rename", "unlink", "write", "pwrite"):
            setattr(os, name, self.before(name, getattr(os, name)))
        connect = sqlite3.connect

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(lambda _: self.come_nearer())
            return connection

        setattr(sqlite3, "connect", traced)  # noqa: B010 - mypy minds the plain way

    def before(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def die_or_do(*arguments: Any, **options: Any) -> Any:
            if name == "pwrite" and self.left == 1:
                handle, content, offset = arguments
                really(handle, content[: len(content) // 2], offset)
            self.come_nearer()
            result = really(*arguments, **options)
            if name == "fsync":
                path = str(Path(f"/proc/self/fd/{arguments[0]}").readlink())
                self.synced[path] = os.fstat(arguments[0]).st_size
            return result

        return die_or_do

    def come_nearer(self) -> None:
        self.left -= 1
        if self.left > 0:
            return
        if self.power_cut:
            for path in grown(self.index):
                os.truncate(path, min(path.stat().st_size, self.synced.get(str(path), 0)))
        os.kill(os.getpid(), signal.SIGKILL)


def grown(index: Path) -> list[Path]:
    return [*index.glob("*.f16"), *index.glob("*.bin")]


def forked(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Do it in a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "see above"
    return False


def index_and_tell(photos: Path, index: Path, model: Path, told: Path, death: Death | None = None) -> None:
    """Index, and append to `told` what has been acknowledged as soon as it has."""
    write, really_write = IndexWriter.write, os.write
    diary = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write_and_tell(self: IndexWriter, changes: Changes) -> tuple[int, int]:
        counts = write(self, changes)
        line = {"added": {photo.record.id: photo.record.sha256 for photo in changes.added}, "gone": list(changes.gone)}
        really_write(diary, json.dumps(line).encode() + b"\n")
        return counts

    IndexWriter.write = write_and_tell  # type: ignore[method-assign]
    if death is not None:
        death.install()
    update_index(photos, index, model, batch_size=BATCH, workers=1, prune=True)


def contents(index: Path) -> Contents:
    """Hash and vector of each photo; everything else that belongs to it must be readable."""
    with vsrn.open_index(index) as opened:
        found = opened.search("red", 99)
        assert len(found) == len(opened)
        for hit in found:
            assert opened.thumbnail(hit.id).startswith(b"\xff\xd8")
            assert len(opened.regions(hit.id).features) == 4
        return {hit.id: (opened.photo(hit.id).sha256, opened.vector(hit.id).tobytes()) for hit in found}


def check(index: Path, told: Path, before: Contents, expected: Contents) -> None:
    """After a death: it opens, holds what was acknowledged, and nothing that is not so."""
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    assert (index / "index.json").exists() or not lines, "acknowledged, and no index"
    if not (index / "index.json").exists():
        return
    held = contents(index)
    acknowledged = {name: sha256 for name, (sha256, _) in before.items()}
    for line in lines:
        acknowledged |= line["added"]
        for name in line["gone"]:
            del acknowledged[name]
    for name, sha256 in acknowledged.items():
        # The batch that was dying may have been committed without having been told.
        late = name not in expected if name not in held else held[name][0] == expected.get(name, ("",))[0]
        assert late or held[name][0] == sha256, f"{name} was acknowledged and is lost"
    right = set(before.items()) | set(expected.items())
    assert set(held.items()) <= right, "a vector belongs to another photo"


def finish_and_check(photos: Path, index: Path, model: Path, expected: Contents) -> None:
    """The next run makes it what an unbroken run would have made."""
    update_index(photos, index, model, batch_size=BATCH, workers=1, prune=True)
    assert contents(index) == expected
    left = {path.name.partition("-")[0] for path in index.iterdir() if not path.name.startswith(".")}
    assert left == {"index.json", "lock", "model", "records.sqlite", "regions", "thumbnails", "vectors"}, left
    assert len(grown(index)) == 3


def told_by_a_child(index: Path) -> Contents:
    """What an index holds, read in a process of its own."""
    reader, writer = os.pipe()

    def tell() -> None:
        found = {name: (sha256, vector.hex()) for name, (sha256, vector) in contents(index).items()}
        with os.fdopen(writer, "w") as pipe:
            json.dump(found, pipe)

    assert not forked(tell)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return {name: (sha256, bytes.fromhex(vector)) for name, (sha256, vector) in json.load(pipe).items()}


def die_at_every_point(photos: Path, model: Path, folder: Path, start: Path | None) -> int:
    """Kill one run at its first write point, another at its second, and so on until one survives."""
    before = {} if start is None else told_by_a_child(start)
    unbroken = folder / "unbroken"
    if start is not None:
        shutil.copytree(start, unbroken)
    assert not forked(lambda: index_and_tell(photos, unbroken, model, folder / "told"))
    expected = told_by_a_child(unbroken)
    for point in count(1):
        index, told = folder / f"{point}", folder / f"{point}.told"
        if start is not None:
            shutil.copytree(start, index)
        death = Death(point, index, power_cut=point % 2 == 0)
        if not forked(lambda: index_and_tell(photos, index, model, told, death)):  # noqa: B023 - done at once
            return point - 1

        def see(index: Path = index, told: Path = told) -> None:
            check(index, told, before, expected)
            finish_and_check(photos, index, model, expected)

        assert not forked(see), f"point {point}"
        shutil.rmtree(index, ignore_errors=True)
    raise AssertionError("it never survives")


def begin(model: Path, folder: Path) -> None:
    """A first run."""
    save_photos(folder / "photos")
    print(die_at_every_point(folder / "photos", model, folder, None))


def change(model: Path, folder: Path) -> None:
    """One photo stays, one changes, two go, one comes: three of four old rows are dead, so that it compacts."""
    photos = folder / "photos"
    save_photos(photos)
    assert not forked(lambda: index_and_tell(photos, folder / "start", model, folder / "ignored"))
    save_photo(photos / "1.png", 101)
    (photos / "2.png").unlink()
    (photos / "3.png").unlink()
    save_photo(photos / "4.png", 104)
    print(die_at_every_point(photos, model, folder, folder / "start"))


def save_photos(photos: Path) -> None:
    for number in range(4):
        save_photo(photos / f"{number}.png", number)


def moments(model: Path, folder: Path) -> None:
    """Change the photos, kill the runs that follow them at moments of their own length, and let the last one finish."""
    photos, index = folder / "photos", folder / "index"
    chance, killed, numbers = random.Random(5), 0, count()
    before: Contents = {}
    for round_ in range(MOST_ROUNDS):
        for _ in range(4):
            save_photo(photos / f"{chance.randrange(12)}.png", next(numbers))
        if round_:
            chance.choice(sorted(photos.iterdir())).unlink()
        fresh, told, began = folder / f"fresh{round_}", folder / f"told{round_}", time.monotonic()
        assert not forked(lambda: index_and_tell(photos, fresh, model, folder / "ignored"))  # noqa: B023 - done at once
        takes, expected = time.monotonic() - began, told_by_a_child(fresh)
        for _ in range(3):
            killed += forked(lambda: index_and_tell(photos, index, model, told), kill_after=chance.uniform(0, takes))  # noqa: B023
            assert not forked(lambda: check(index, told, before, expected))  # noqa: B023
        assert not forked(lambda: finish_and_check(photos, index, model, expected))  # noqa: B023
        before = expected
        if killed >= ENOUGH_KILLS:
            break
    print(killed)


if __name__ == "__main__":
    {"begin": begin, "change": change, "moments": moments}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
