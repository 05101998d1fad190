"""What vsrn does on a GPU: whether it is right, and how fast. benchmarks/README.md says what each part tells.

python benchmarks/gpu/run.py --minutes 9 --out DIR [--parts equal,training,throughput] [--small] [--device cpu]

It needs this checkout and the packages that vsrn needs, no data and no network. Each measurement becomes a line
of DIR/results.jsonl as soon as it is made, so whatever cuts a run off, what was measured is there.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT / "tests/helpers"), str(ROOT / "src")]

from recording import GPU_LOST, RUNNING, STACKS, Part, append_line, card_of, one_line, read_lines, said_of  # noqa: E402

# The parts in order of their value, and the seconds that each may begin measurements in.
PARTS = {"equal": 150.0, "training": 260.0, "throughput": 130.0}
# Times that a part is started again after its process ended.
STARTS = 6


def main() -> None:
    """Run the parts one after the other, each in a process of its own, and print the table of all lines."""
    given = arguments()
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if given.child:
        run_part(given, folder)
        return
    until = time.time() + 60 * given.minutes
    facts = card_of(given.device)
    print(f"{facts['card']}, driver {facts['driver'] or 'none'}, torch {facts['torch']}", flush=True)
    for name in given.parts.split(","):
        part_until = min(until, time.time() + PARTS[name])
        print(f"{name}: {max(0.0, part_until - time.time()):.0f} s", flush=True)
        for _ in range(STARTS):
            if start(name, folder, part_until, facts) == 0:
                break
    print("\n" + "\n".join(one_line(line) for line in read_lines(folder)))


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement begins after these")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in the order in which they run")
    parser.add_argument("--small", action="store_true", help="sizes of a test: all lines, in a minute or two")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, default=Path(), help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = [name for name in given.parts.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; there is {', '.join(PARTS)}")
    return given


def start(name: str, folder: Path, until: float, facts: dict[str, str]) -> int:
    """Run a part, or what is left of it, in a process of its own; what ended the process becomes a line.

    Returns 0 where the part needs no further start.
    """
    shared = Path("/dev/shm")  # memory, where there is such a folder
    with tempfile.TemporaryDirectory(prefix="vsrn-gpu-", dir=shared if _has_room(shared) else None) as scratch:
        path = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        if "--small" in sys.argv:
            # What is as small as that is slower on several threads, and many times slower where they share processors.
            environment.setdefault("OMP_NUM_THREADS", "1")
        child = ["--child", name, "--until", str(until), "--scratch", scratch]
        status = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], *child], env=environment, check=False
        ).returncode
    running, stacks = folder / RUNNING, folder / STACKS
    if status in (0, GPU_LOST):
        return status
    during = running.read_text(encoding="utf-8") if running.exists() else "process"
    trace = stacks.read_text(encoding="utf-8").splitlines() if stacks.exists() else []
    what = "did not come back in time" if trace else f"the process ended with status {status}"
    error = {"type": "Ended", "message": what, "traceback": trace[:40]}
    line = {"part": name, "name": during, "error": error, "seconds": 0.0} | facts
    append_line(folder, line)
    print(f"  {one_line(line)}", flush=True)
    # Between two measurements nothing says where to go on, so the same would end it again.
    went_on = running.exists()
    running.unlink(missing_ok=True)
    return status if went_on else 0


def run_part(given: argparse.Namespace, folder: Path) -> None:
    """Make the measurements of one part in this process."""
    facts = card_of(given.device) | {"device": given.device, "command": shlex.join(["python", *said()])}
    device = torch.device(given.device)
    part = Part(given.child, folder, given.scratch, device, given.small, given.until, facts)
    try:
        module = importlib.import_module(given.child)
    except ImportError as error:
        append_line(folder, {"part": part.name, "name": "import", "error": said_of(error), "seconds": 0.0} | facts)
        return
    module.measure(part)


def said() -> list[str]:
    """The command of the whole run, as it was typed."""
    words = sys.argv[1 : sys.argv.index("--child")] if "--child" in sys.argv else sys.argv[1:]
    return ["benchmarks/gpu/run.py", *words]


def _has_room(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 12 * 2**30


if __name__ == "__main__":
    main()
