"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from vsrn.files import printable

SECONDS_BETWEEN_LINES = 15.0

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line on standard error, above a bar if there is one; standard output is for results alone.

    Control characters, which a name of a file may hold, are escaped; only empty lines before the message are kept.
    """
    line = message.lstrip("\n")
    _console.print("\n" * (len(message) - len(line)) + printable(line), markup=False)


def mute() -> None:
    """Print nothing more in this process: of several processes that work as one, the first prints."""
    _console.quiet = True


class ProgressBar:
    """How far a long job is: a count, a rate, the time left, and a few words.

    what   the job as a verb, such as "indexing"
    unit   what is counted, such as "photos"
    total  how many there are; None where that is known only later (`at`)

    It is a context. A terminal shows the bar inside of it; elsewhere `at` prints a line every 15 seconds.
    """

    def __init__(self, what: str, unit: str = "photos", total: int | None = None) -> None:
        self._last_line = -SECONDS_BETWEEN_LINES
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=_console,
            transient=True,
            disable=not _console.is_terminal,
        )
        self._id = self._progress.add_task(what, total=total, unit=unit, rate="", words="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, what: str, unit: str = "photos") -> ProgressBar:
        """Begin another job on the same bar, unless it is the one that is shown already; returns the bar."""
        if self._task.description != what:
            self._progress.reset(self._id, description=what, unit=unit, rate="", words="")
            self._task.total = None
        return self

    def at(self, done: int, total: int | None = None, words: str = "") -> None:
        """Show that `done` units are finished, of `total` where it is known by now."""
        self._progress.update(self._id, completed=done, total=total, words=words)
        task, now = self._task, time.monotonic()
        # Rich leaves out the first step, so a resumed job does not count what it found done.
        task.fields["rate"] = rate = f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else ""
        if not _console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            most = "?" if task.total is None else f"{task.total:,.0f}"
            left = "" if task.time_remaining is None else f", {timedelta(seconds=int(task.time_remaining))} left"
            say(f"{task.description}: {done:,} of {most} {task.fields['unit']} {rate}{left} {words}".rstrip())

    def advance(self, units: int) -> None:
        """Show that `units` more are finished."""
        self.at(int(self._task.completed) + units)

    @property
    def _task(self) -> Task:
        return self._progress.tasks[0]
