"""Runs a vsrn command and presses Ctrl-C, in the first process only, after a number of training steps.

python stop_after.py STEPS COMMAND [OPTIONS]
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from vsrn.cli import main
from vsrn.cli.train import TrainingReporter
from vsrn.training import distributed


def press_after(steps: int) -> None:
    """Make the reporter, which hears of every step, raise the signal."""
    stepped = TrainingReporter.stepped

    def stepped_and_stop(self: TrainingReporter, progress: Any, row: Any) -> None:
        stepped(self, progress, row)
        if progress.step == steps and distributed.rank() == 0:
            signal.raise_signal(signal.SIGINT)

    TrainingReporter.stepped = stepped_and_stop  # type: ignore[method-assign]


if __name__ == "__main__":
    press_after(int(sys.argv[1]))
    main(sys.argv[2:])
