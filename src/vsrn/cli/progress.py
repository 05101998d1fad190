"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vsrn.files import printable

SECONDS_BETWEEN_LINES = 15.0

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the person who watches; standard output stays free for results.

    What a terminal would act on, in a name of a file for instance, is escaped; only empty lines before it are kept.
    """
    line = message.lstrip("\n")
    _console.print("\n" * (len(message) - len(line)) + printable(line), markup=False)


def mute() -> None:
    """Say nothing more in this process: of several that work as one, the first speaks."""
    _console.quiet = True


class ProgressBar:
    """How far a long job is: a count, a rate, the time left, and a few words."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.done, self.total = 0, 0
        self._start, self._start_done = time.monotonic(), 0
        self._last_line = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=_console,
            transient=True,
        )
        self._task = self._progress.add_task(what, total=None, rate="", words="")

    @contextlib.contextmanager
    def of(self, total: int) -> Iterator[ProgressBar]:
        """Show the bar for a job of `total` units."""
        self.total = total
        self._progress.update(self._task, total=total)
        if sys.stderr.isatty():
            with self._progress:
                yield self
        else:
            yield self

    def at(self, done: int, words: str = "") -> None:
        """The job has reached `done` units."""
        now = time.monotonic()
        if self.done == 0 and done > 0:
            # A resumed job starts in the middle; its rate is that of what it did now.
            self._start, self._start_done = now, done
        self.done = done
        rate = (done - self._start_done) / max(1e-9, now - self._start)
        spoken = f"{rate:.1f} {self.unit}/s" if done > self._start_done else ""
        self._progress.update(self._task, completed=done, rate=spoken, words=words)
        if not sys.stderr.isatty() and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {_duration((self.total - done) / rate)} left" if rate > 0 else ""
            say(f"{self.what}: {done:,} of {self.total:,} {self.unit} {spoken}{left} {words}".rstrip())

    def advance(self, units: int) -> None:
        """The job has gone `units` further."""
        self.at(self.done + units)

    def line(self, message: str) -> None:
        """A line that stays on the screen above the bar."""
        say(message)


def progress_bar(what: str, unit: str) -> ProgressBar:
    """A bar for a job described by a verb, counted in `unit`."""
    return ProgressBar(what, unit)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
