"""How long `vsrn --help` takes, as a whole process, next to Python doing nothing; and that it imports no torch.

python benchmarks/start_up.py
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from harness import interleave, record


def main() -> None:
    """Absolute seconds mean little here, so the bare interpreter is timed beside it."""
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vsrn", "--help"], capture_output=True, text=True, check=True
    ).stderr
    assert " torch" not in modules
    seconds: list[float] = []
    for _ in range(3):
        ratio = interleave(lambda: run("-c", "pass"), lambda: run("-m", "vsrn", "--help"), rounds=5)
        seconds.append(ratio.theirs_seconds)
    record(
        "vsrn --help",
        target="under 0.3 s",
        measured=f"{median(seconds):.2f} s, {ratio.median:.1f}x an empty Python process",
        reached=median(seconds) < 0.3,
        checked="torch is not imported",
        ratio=ratio,
    )


def run(*arguments: str) -> None:
    """One whole process."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
