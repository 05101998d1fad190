"""Programs that write step by step, and die in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time


def killed_in_a_batch(program: list[str], batches: int, seconds: float) -> bool:
    """Let a program that waits for a line before each batch do so many, and kill it in the next; whether it lived."""
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        # One that ended before reads no more lines.
        with contextlib.suppress(BrokenPipeError):
            for _ in range(batches):
                process.stdin.write("on\n")
                process.stdout.readline()
            process.stdin.write("on\n")
        time.sleep(seconds)
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait() == -signal.SIGKILL
