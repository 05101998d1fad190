"""Train and evaluate every row of the Flickr8K comparison, and write the tables of docs/results.md.

    python experiments/flickr8k.py --jobs 2             # goes on where it was stopped
    python experiments/flickr8k.py --only mean-pooling  # some rows
    python experiments/flickr8k.py --table              # only the tables, from what is finished

Each job is one `vsrn train` on one thread, so that as many fit as there are cores. A finished run leaves
docs/results/flickr8k/NAME-SEED.json and the ranks of its queries beside it; a run whose command has not
changed is not made again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rows import COMBINATIONS, ROWS, Combination, Row
from safetensors import safe_open
from table import write_tables

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/flickr8k-rows")
RESULTS = ROOT / "docs/results/flickr8k"
SPLIT = "val"


@dataclass(frozen=True)
class Job:
    """One training run of one row."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """NAME-SEED."""
        return f"{self.row.name}-{self.seed}"

    @property
    def train(self) -> list[str]:
        """The command that trains it."""
        seed = ["--train.seed", str(self.seed)] if self.seed else []
        return ["vsrn", "train", self.row.config, *self.row.settings, *seed, "-o", str(RUNS / self.name)]


def main(*, jobs: int = 1, only: tuple[str, ...] = (), table: bool = False) -> None:
    """Run what is missing, then write the tables.

    Args:
        jobs: Runs at a time, each on one thread.
        only: Rows to run, by name.
        table: Run nothing.
    """
    os.chdir(ROOT)
    if not table:
        rows = [row for row in ROWS if not only or row.name in only]
        # The first seed of every row comes before the second of any.
        todo = sorted((Job(row, seed) for row in rows for seed in row.seeds), key=lambda job: job.seed)
        with ThreadPoolExecutor(jobs) as pool:
            failed = [name for name in pool.map(finish_run, todo) if name]
        for combination in COMBINATIONS:
            if not only or combination.name in only:
                finish_combination(combination)
        if failed:
            sys.exit(f"not finished: {', '.join(failed)}; the same command goes on.")
    write_tables(RESULTS, ROOT / "docs/results.md")


def finish_run(job: Job) -> str:
    """Train and evaluate one run, unless that is done; its name where it failed."""
    if is_done(job.name, job.train):
        return ""
    folder = RUNS / job.name
    resume = ["--resume"] if (folder / "state").exists() else []
    cost_file = folder / "cpu-seconds.txt"
    cost = float(cost_file.read_text()) if resume and cost_file.exists() else 0.0
    status, seconds, _ = run([*job.train, *resume])
    if folder.exists():
        cost_file.write_text(str(cost + seconds))
    if status != 0:
        return job.name
    evaluate(job.name, [str(folder)], [], job.train, train_cpu_seconds=round(cost + seconds))
    return ""


def finish_combination(combination: Combination) -> None:
    """Evaluate a combination whose runs are all there, unless that is done."""
    models = [str(RUNS / model) for model in combination.models]
    settings = [setting.format(runs=RUNS) for setting in combination.settings]
    needed = [*models, *(setting for setting in settings if setting.startswith(str(RUNS)))]
    command = evaluation_command(models, settings)
    name = f"{combination.name}-0"
    if all((RESULTS / f"{Path(run).name}.json").exists() for run in needed) and not is_done(name, command):
        evaluate(name, models, settings, command)


def evaluate(name: str, models: list[str], settings: list[str], command: list[str], **costs: Any) -> None:
    """Evaluate on val once, and keep the numbers, the ranks and the training curve."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    ranks = RESULTS / f"{name}.npz"
    evaluated = evaluation_command(models, settings)
    status, seconds, output = run([*evaluated, "--json", "--ranks", str(ranks)])
    if status != 0:
        sys.exit(f"{shlex.join(evaluated)} failed.")
    content = {
        "command": shlex.join(command),
        "evaluated_by": shlex.join(evaluated),
        "parameters": sum(count_parameters(Path(model)) for model in models),
        **costs,
        "evaluation_cpu_seconds": round(seconds, 1),
        "evaluation": json.loads(output),
        "validation": [validations(Path(model)) for model in models],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{name}: rsum {content['evaluation']['rsum']:.1f}", flush=True)


def evaluation_command(models: list[str], settings: list[str]) -> list[str]:
    """The command that evaluates."""
    return ["vsrn", "evaluate", *models, "--split", SPLIT, *settings]


def is_done(name: str, command: list[str]) -> bool:
    """Whether a run's numbers are there, made by this very command."""
    path = RESULTS / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["command"] == shlex.join(command)


def run(command: list[str]) -> tuple[int, float, str]:
    """Exit status, CPU seconds and standard output of a command on one thread.

    CPU seconds, since other work on the machine stretches the time on the wall.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "evaluate" in command else None,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime, output


def count_parameters(model: Path) -> int:
    """Numbers in a run's weights."""
    with safe_open(model / "model.safetensors", framework="numpy") as weights:
        return sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118 (not a dict)


def validations(model: Path) -> list[tuple[int, float]]:
    """(step, rsum) on the held-out photos, as training went on."""
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], round(row["validation"]["rsum"], 1)) for row in rows if "validation" in row]


if __name__ == "__main__":
    tyro.cli(main)
