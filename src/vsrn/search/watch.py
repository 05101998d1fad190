"""When to index again: something below the folders of an index has changed, and has been quiet for a while."""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vsrn.data.exclusion import Exclusion
from vsrn.data.listing import photo_id
from vsrn.errors import ConfigError

QUIET_SECONDS = 5.0
# Files that change all the time, such as a camera's live folder, are indexed all the same.
LONGEST_SECONDS = 60.0
# On a network drive the system tells nothing of what other machines write, so that each file is looked at.
POLL_SECONDS = 30.0
LOOK_SECONDS = 2.0
_NETWORK = re.compile(r"nfs|nfs4|cifs|smb.*|9p|afs|ceph|davfs|fuse\..*|glusterfs|lustre|ncpfs|virtiofs|vboxsf")
_MOUNTS = Path("/proc/self/mountinfo")


class _Place(NamedTuple):
    """A folder that is there now.

    identity  its device and number
    mounts    where file systems are mounted below it
    network   whether it, or one of them, is on another machine
    """

    identity: tuple[int, int]
    mounts: frozenset[Path]
    network: bool


def changes(
    folders: Sequence[Path],
    index: Path,
    exclude: Sequence[str] = (),
    *,
    quiet: float = QUIET_SECONDS,
    poll: bool | None = None,
    stop: threading.Event | None = None,
) -> Iterator[None]:
    """Yield whenever files below the folders were added, changed or deleted and none was for `quiet` seconds.

    Yields too at the beginning, when the folders are watched, and where a folder, or a disk that is mounted in one,
    has come back. One that goes away is no change. It needs the package watchfiles (`check_installed`).

    index    folder of the index, whose own files do not count
    exclude  globs of what does not count either (`Exclusion`), beside what is hidden
    quiet    seconds; where files keep changing, it yields after a minute
    poll     whether to look at every file each half minute, since the system does not tell what other machines do on a
             network drive; None for whether there is one
    stop     set to end it
    """
    from watchfiles import watch  # noqa: PLC0415 - an extra

    stop, folders = stop or threading.Event(), [folder.absolute() for folder in folders]
    before: dict[Path, _Place] = {}
    while not stop.is_set():
        places = _places(folders)
        polls = any(place.network for place in places.values()) if poll is None else poll
        due, before = _has_more(places, before), places
        if not places:
            stop.wait(LOOK_SECONDS)
            continue
        # When the changes began that nothing was yielded for, and when the last of them came.
        first, last = None, 0.0
        watching = watch(
            *places,
            watch_filter=_what_counts(folders, index.absolute(), exclude),
            step=100,
            rust_timeout=int(1000 * min(LOOK_SECONDS, max(quiet, 0.1))),
            yield_on_timeout=True,
            stop_event=stop,
            force_polling=polls,
            poll_delay_ms=int(1000 * POLL_SECONDS),
            ignore_permission_denied=True,
        )
        try:
            for changed in watching:
                now = time.monotonic()
                if changed:
                    first, last = first or now, now
                if due or (first is not None and (now - last >= quiet or now - first >= LONGEST_SECONDS)):
                    first, due = None, False
                    yield
                if _places(folders) != places:
                    break
        except OSError as error:
            # Linux watches so many folders and no more (fs.inotify.max_user_watches).
            poll = poll if isinstance(error, FileNotFoundError) else True
            stop.wait(LOOK_SECONDS)


def _what_counts(folders: Sequence[Path], index: Path, exclude: Sequence[str]) -> Callable[[object, str], bool]:
    """What says of a change, and the path of it, whether it counts; arguments as in `changes`."""
    left_out = {folder: Exclusion(folder, exclude) for folder in folders}

    def counts(_change: object, path: str) -> bool:
        changed = Path(path)
        ids = ((folder, photo_id(changed.relative_to(folder))) for folder in folders if changed.is_relative_to(folder))
        return not changed.is_relative_to(index) and not any(left_out[folder].has_photo(name) for folder, name in ids)

    return counts


def check_installed() -> None:
    """Raise `ConfigError` where the package that watches is not installed."""
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("watching needs the package watchfiles; run `pip install '.[watch]'` in the checkout.")


def on_network(folder: Path) -> bool:
    """Whether a folder, or a part of it, is on another machine, as far as the system tells (Linux alone does)."""
    return any(place.network for place in _places([folder.absolute()]).values())


def _has_more(now: dict[Path, _Place], before: dict[Path, _Place]) -> bool:
    """Whether a folder, or a disk in one, is there that was not, or that is another one."""
    pairs = [(place, before.get(folder)) for folder, place in now.items()]
    return any(was is None or place.identity != was.identity or not place.mounts <= was.mounts for place, was in pairs)


def _places(folders: Sequence[Path]) -> dict[Path, _Place]:
    """Those folders that are there, and what is at each."""
    kinds = _mounted()
    found = {}
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:
            continue
        real = folder.resolve()
        below = frozenset(place for place in kinds if place != real and place.is_relative_to(real))
        own = next((place for place in (real, *real.parents) if place in kinds), None)
        network = any(_NETWORK.fullmatch(kinds[place]) for place in (own, *below) if place is not None)
        found[folder] = _Place((status.st_dev, status.st_ino), below, network)
    return found


def _mounted() -> dict[Path, str]:
    """Where file systems are mounted -> of which kind they are; nothing where the system does not say."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    mounts = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        path = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        mounts[Path(path)] = after.split()[0]
    return mounts
