"""An index and photos that this account may read and not write, or not even list: as a service of its own account."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from colours import export_colours, save_photo

from vsrn.search.build import update_index

OTHER = 65534
SETPRIV = shutil.which("setpriv")
BEGIN = """
import sys
import colours
import vsrn
"""
ASK = """
from vsrn.search.overview import read_overview
with vsrn.open_index(sys.argv[1]) as index:
    for _ in sys.stdin:
        hits = index.search("red", 999)
        pictures = sum(index.thumbnail(hit.id).startswith(bytes([255, 216])) for hit in hits)
        regions = sum(len(index.regions(hit.id).features) == 4 for hit in hits)
        seen = read_overview(sys.argv[1])
        known = -1 if seen.damage else seen.num_photos
        print(len(index), len(index.latest(999)), len(hits), pictures, regions, known, flush=True)
"""
INDEX = """
from vsrn.search.build import update_index
report = update_index(*sys.argv[1:])
print(report.num_photos, [(file.id, file.kind) for file in report.skipped])
"""


@pytest.fixture(autouse=True)
def _setpriv() -> None:
    if SETPRIV is None or os.geteuid() != 0:
        pytest.skip("only root may take the rights of another account, by setpriv")


@contextmanager
def without_rights(program: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that may do no more with other people's files than their modes say."""
    assert SETPRIV is not None
    command = [SETPRIV, "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", BEGIN + program]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        yield process


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER)


def test_a_reader_without_rights_to_write_sees_each_commit_and_every_compaction(tmp_path: Path) -> None:
    photos, idx, model = tmp_path / "photos", tmp_path / "idx", export_colours(tmp_path / "model")
    for number in range(8):
        save_photo(photos / f"{number}.png", number)
    update_index(photos, idx, model)
    give_away(idx)

    def ask(reader: subprocess.Popen[str]) -> list[int]:
        assert reader.stdin is not None
        assert reader.stdout is not None
        print("?", file=reader.stdin, flush=True)
        return list(map(int, reader.stdout.readline().split()))

    with without_rights(ASK, idx) as reader:
        assert ask(reader) == [8] * 6
        for number in range(10, 20):
            save_photo(photos / f"{number}.png", number)
        update_index(photos, idx)
        give_away(idx)
        assert ask(reader) == [18] * 6
        for number in range(8):
            (photos / f"{number}.png").unlink()
        update_index(photos, idx, prune=True)
        give_away(idx)
        assert (idx / "vectors-2.f16").exists(), "no compaction happened"
        assert ask(reader) == [10] * 6
        assert reader.stdin is not None
        reader.stdin.close()


def test_a_killed_writer_s_index_is_read_where_nobody_may_write(tmp_path: Path) -> None:
    """The last commits of a killed writer stand in a file beside the records; a copy may lack what locks it."""
    photos, idx, model = tmp_path / "photos", tmp_path / "idx", export_colours(tmp_path / "model")
    for number in range(6):
        save_photo(photos / f"{number}.png", number)
    program = INDEX.replace("update_index(*sys.argv[1:])", "update_index(*sys.argv[1:], batch_size=2, progress=stop)")
    killed = "import os\ndef stop(done, total):\n    done >= 4 and os.kill(os.getpid(), 9)\n" + program
    with without_rights(killed, photos, idx, model) as writer:
        assert writer.wait() == -9
    assert (idx / "records.sqlite-wal").stat().st_size
    for with_lock in (True, False):
        copy = tmp_path / f"copy {with_lock}"
        shutil.copytree(idx, copy)
        if not with_lock:
            (copy / "records.sqlite-shm").unlink()
        give_away(copy)
        with without_rights(ASK, copy) as reader:
            answer, _ = reader.communicate("?\n")
        assert answer.split() == ["4"] * 6


@pytest.mark.parametrize("first_run", [True, False])
def test_a_folder_that_may_not_be_listed_is_one_skipped_entry(first_run: bool, tmp_path: Path) -> None:
    photos, idx, model = tmp_path / "photos", tmp_path / "idx", export_colours(tmp_path / "model")
    for number in range(6):
        save_photo(photos / ("private" if number < 2 else "") / f"{number}.png", number)
    if not first_run:
        update_index(photos, idx, model)
    os.chown(photos / "private", OTHER, OTHER)
    (photos / "private").chmod(0o700)
    with without_rights(INDEX, photos, idx, model) as indexer:
        answer, _ = indexer.communicate()
    # Photos that are known and cannot be seen stay.
    assert answer.strip() == f"{4 if first_run else 6} [('private/', 'unreadable')]"
