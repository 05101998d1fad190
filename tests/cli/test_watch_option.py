"""`vsrn index --watch` as a process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from colours import export_colours, save_photo

import vsrn
from vsrn.cli import main


def test_it_indexes_again_what_changes_until_ctrl_c(tmp_path: Path) -> None:
    photos, idx = tmp_path / "photos", tmp_path / "idx"
    for number in range(3):
        save_photo(photos / f"{number}.png", number)
    command = [sys.executable, "-m", "vsrn", "index", str(photos), "-o", str(idx), "--watch"]
    command += ["--model", str(export_colours(tmp_path / "model")), "--plugin", "colour_extractor"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # Where the tests run in the background, Ctrl-C may be ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=heed,  # noqa: PLW1509
        ) as run,
        contextlib.ExitStack() as at_the_end,
    ):
        at_the_end.callback(run.kill)
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == f"{idx}: 3 photos (3 new, 0 read again, 0 gone)\n"
        while not (line := run.stderr.readline()).startswith("Watching"):
            assert line, "it ended"
        assert str(photos) in line
        save_photo(photos / "new/3.png", 3)
        (photos / "0.png").rename(photos / "new/0.png")
        new = moved = 0
        # On a busy machine the first look, which comes unasked, may fall between the two changes.
        while (new, moved) != (1, 1) and (line := run.stdout.readline()):
            counts = r"\((\d) new, 0 read again, (?:(\d) moved, )?0 gone\)"
            found = re.fullmatch(rf"\d{{4}}-\d\d-\d\d [\d:]{{8}} .*idx: [34] photos {counts}\n", line)
            assert found, line
            new, moved = new + int(found[1]), moved + int(found[2] or 0)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in said
    with vsrn.open_index(idx) as index:
        assert len(index) == 4


def test_it_is_refused_beside_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["index", str(tmp_path), "-o", str(tmp_path / "idx"), "--watch", "--ray", "local"])
    assert "--watch and --ray contradict each other" in capsys.readouterr().err
