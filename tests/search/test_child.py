"""An index updated by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from colours import export_colours, save_photo

import vsrn
from vsrn.errors import SearchError
from vsrn.search.child import Child

SLEEPER = """import os, pathlib, time
pathlib.Path(os.environ["SLEEPER"]).write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds what this process finds, and a plugin that sleeps for ever."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(tmp_path)]))
    monkeypatch.setenv("SLEEPER", str(tmp_path / "pid"))


def pid_of_the_sleeper(folder: Path) -> int:
    begun = time.monotonic()
    while not (folder / "pid").is_file() or not (folder / "pid").read_text():
        assert time.monotonic() < begun + 120, "the child did not begin"
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that nobody has waited for yet has ended all the same.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def ends(pid: int) -> bool:
    begun = time.monotonic()
    while is_running(pid):
        if time.monotonic() > begun + 60:
            return False
        time.sleep(0.02)
    return True


def test_it_does_what_a_call_does_and_tells_how_far_it_is(tmp_path: Path) -> None:
    for number in range(5):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    steps: list[tuple[int, int]] = []
    child = Child(
        tmp_path / "idx",
        ["colour_extractor"],
        niceness=0,
        photos=tmp_path / "photos",
        model=export_colours(tmp_path / "model"),
        batch_size=2,
    )
    report = child.report(lambda done, total: steps.append((done, total)))
    assert steps == [(0, 6), (2, 6), (4, 6), (6, 6)]
    assert (report.num_photos, report.num_added) == (5, 5)
    assert [(file.id, file.kind) for file in report.skipped] == [("broken.jpg", "damaged")]
    with vsrn.open_index(tmp_path / "idx") as index:
        assert len(index) == 5
        assert report.skipped == index.skipped()


def test_its_error_is_one_sentence_and_it_imports_nothing_of_the_folder_it_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of photos may hold a file that is called as a module of ours."""
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("vsrn", "msgspec", "json", "PIL"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    with pytest.raises(SearchError, match=r"^there is no folder .*nowhere; name the folder that holds the photos\.$"):
        Child(tmp_path / "idx", photos=tmp_path / "nowhere").report(lambda _done, _total: None)
    assert not (tmp_path / "ran").exists()


def test_it_is_stopped(tmp_path: Path) -> None:
    child = Child(tmp_path / "idx", ["sleeper"], photos=tmp_path)
    pid = pid_of_the_sleeper(tmp_path)
    child.stop()
    assert not is_running(pid)
    with pytest.raises(SearchError, match="indexing was stopped; all finished photos are kept"):
        child.report(lambda _done, _total: None)


def test_it_ends_with_its_parent_and_does_not_know_the_token(tmp_path: Path) -> None:
    program = f"""
import time
from vsrn.search.child import Child
child = Child({str(tmp_path / "idx")!r}, ["sleeper"], photos={str(tmp_path)!r})
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"VSRN_TOKEN": "secret"}) as parent:
        pid = pid_of_the_sleeper(tmp_path)
        if Path("/proc/self/environ").exists():
            assert b"VSRN_TOKEN" not in Path(f"/proc/{pid}/environ").read_bytes()
        if hasattr(os, "getpriority"):
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
        parent.kill()
    assert ends(pid)
