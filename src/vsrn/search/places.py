"""Where an index is kept when none is named, and where photos usually are."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path


def default_index() -> Path:
    """The folder of the index that `vsrn index` and `vsrn serve` use when none is named, for instance
    `~/.local/share/vsrn/index`; it need not exist."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local")
    elif sys.platform == "darwin":
        base = home / "Library/Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", ""))
        if not base.is_absolute():  # as the XDG specification asks
            base = home / ".local/share"
    return base / "vsrn/index"


def usual_folders() -> list[Path]:
    """Folders of this account that are likely to hold photos and are there: Pictures, Photos, the desktop's own.

    Only those whose names are text, which a page can show and send back.
    """
    home = Path.home()
    named = [home / "Pictures", home / "Photos"]
    # The folder that a Linux desktop has noted, in the language of its user.
    configs = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (configs / "user-dirs.dirs").read_text(encoding="utf-8")
        found = re.findall(r'^XDG_PICTURES_DIR="(?:\$HOME/)?([^"]+)"', text, re.MULTILINE)
        named += [home / name for name in found if home / name != home]
    return [folder for folder in dict.fromkeys(named) if str(folder).isprintable() and folder.is_dir()]
