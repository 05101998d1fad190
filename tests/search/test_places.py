"""Where an index is kept when none is named, and which folders are offered."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vsrn.search.places import default_index, usual_folders


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def test_the_index_is_where_data_of_programs_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_index() == home / ".local/share/vsrn/index"
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    assert default_index() == home / ".local/share/vsrn/index"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_index() == Path("/data/vsrn/index")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_index() == home / "Library/Application Support/vsrn/index"


def test_folders_that_are_there_are_offered_once(home: Path) -> None:
    assert usual_folders() == []
    (home / "Pictures").mkdir()
    (home / "Bilder").mkdir()
    noted = home / ".config/user-dirs.dirs"
    noted.parent.mkdir()
    for line, offered in (
        ('XDG_PICTURES_DIR="$HOME/Bilder"', ["Pictures", "Bilder"]),
        ('XDG_PICTURES_DIR="$HOME/Pictures"', ["Pictures"]),
        ('XDG_PICTURES_DIR="$HOME/"', ["Pictures"]),
        ('XDG_PICTURES_DIR="/nowhere"', ["Pictures"]),
    ):
        noted.write_text(f'XDG_MUSIC_DIR="$HOME/Musik"\n{line}\n')
        assert usual_folders() == [home / name for name in offered]
    (home / "Bilder").rename(home / "Bil\nder")
    noted.write_text('XDG_PICTURES_DIR="$HOME/Bil\nder"')
    assert usual_folders() == [home / "Pictures"]
