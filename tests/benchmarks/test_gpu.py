"""The measurements for a GPU, on the processor with small sizes: every line has figures, and they are right."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/run.py"
# What one part says at least.
NAMES = {
    "equal": {
        "recordings of VSRN",
        "recordings of SCAN",
        "recordings of pooling",
        "loss and gradients",
        "cut run bf16",
        "cut run fp32",
        "cut run dropping regions",
        "same seed twice",
        "recorded steps fp32",
        "recorded steps",
        "bf16 drift",
        "grid extraction",
        "torchrun",
        "collectives",
        "bottom-up extraction",
    },
    "training": {
        "joint bf16",
        "no captioner bf16",
        "parts of a step",
        "joint fp32",
        "joint bf16, dropping regions",
        "COCO joint bf16",
        "joint bf16, batch 256",
        "SCAN bf16",
        "VSE-infinity bf16",
    },
    "throughput": {
        "encoding images bf16",
        "encoding images fp32",
        "ranking COCO 5K",
        "grid extraction",
        "grid extraction by processes",
        "encoding captions bf16",
        "encoding captions fp32",
        "search of a million",
    },
}


def run(out: Path, *options: str) -> list[dict[str, Any]]:
    """The lines that a small run on the processor writes."""
    command = [sys.executable, str(SCRIPT), "--small", "--device", "cpu", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    # The table at the end has a row for each.
    assert all(f"{line['part']:<10} {line['name']}" in done.stdout for line in lines)
    return lines


def figures_of(lines: list[dict[str, Any]], part: str) -> dict[str, dict[str, Any]]:
    """The figures by name, after a look at what every line says."""
    for line in lines:
        assert "error" not in line, line
        assert {"part", "name", "figures", "seconds", "card", "driver", "torch", "command", "device"} <= line.keys()
        assert line["command"].startswith("python benchmarks/gpu/run.py --small")
        assert (line["part"], line["device"]) == (part, "cpu")
    found = {line["name"]: line["figures"] for line in lines}
    assert len(found) == len(lines)
    assert found.keys() >= NAMES[part]
    return found


@pytest.mark.slow
def test_the_processor_is_equal_to_itself_and_to_the_recordings(tmp_path: Path) -> None:
    found = figures_of(run(tmp_path, "--parts", "equal"), "equal")
    judged = {name: figures for name, figures in found.items() if "passed" in figures}
    assert all(figures["passed"] for figures in judged.values()), judged
    assert found["recordings of VSRN"]["checks"] > 500
    assert found["recordings of SCAN"]["checks"] == 2 + 40 + 8
    assert 0 < found["loss and gradients"]["worst_share"] < 1
    for name in ("cut run bf16", "cut run fp32", "cut run dropping regions", "same seed twice"):
        assert found[name]["bit_for_bit"], found[name]
    # Nothing is recorded on a processor.
    for name in ("recorded steps fp32", "recorded steps"):
        assert found[name]["bit_for_bit"]
        assert found[name]["largest_relative_difference"] == 0
    drift = found["bf16 drift"]
    assert 0 < drift["largest_relative_loss_difference"] < 0.01
    assert min(drift["image_cosine_least"], drift["caption_cosine_least"]) > 0.999
    assert drift["last_loss_fp32"] < drift["first_loss"]
    assert found["grid extraction"]["largest_difference"] == 0


def test_runs_are_apart_by_their_weights_and_not_by_counters_moments_or_random_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (SCRIPT.parent, SCRIPT.parents[1]):
        monkeypatch.syspath_prepend(folder)
    difference_of_runs = importlib.import_module("equal").difference_of_runs
    for run, shift in (("one", 0.0), ("other", 1.0)):
        (tmp_path / run / "state").mkdir(parents=True)
        state = {
            "model.same.weight": torch.ones(5),
            "model.gru.weight": torch.tensor([30.0, 40.0 + shift]),
            "model.norm.running_var": torch.tensor([4e6 + 1e6 * shift]),
            "model.norm.num_batches_tracked": torch.tensor(7 + int(shift)),
            "optimizer.exp_avg.gru.weight": torch.tensor([0.0, shift]),
            "optimizer.step.gru.weight": torch.tensor(9.0 + shift),
            "random.cpu.0": torch.tensor([int(shift)], dtype=torch.uint8),
        }
        save_file(state, tmp_path / run / "state/latest.safetensors")
        save_file({"gru.weight": torch.tensor([2.0 + shift])}, tmp_path / run / "model.safetensors")
        (tmp_path / run / "metrics.jsonl").write_text(
            f'{{"loss": 9.0}}\n{{"loss": {3 + shift}}}\n{{"validation": {{}}}}\n'
        )
    found = difference_of_runs(tmp_path / "one", tmp_path / "other")
    assert (found["bit_for_bit"], found["tensors_that_differ"], found["last_losses"]) == (False, 7, [3.0, 4.0])
    assert list(found["weights_that_differ_most"]) == [
        "model.safetensors: gru.weight",
        "latest.safetensors: model.norm.running_var",
        "latest.safetensors: model.gru.weight",
    ]
    assert list(found["weights_that_differ_most"].values()) == pytest.approx([1 / 3, 1 / 5, 1 / math.hypot(30, 41)])
    assert found["largest_relative_difference"] == pytest.approx(1 / 3)
    same = difference_of_runs(tmp_path / "one", tmp_path / "one")
    assert (same["bit_for_bit"], same["tensors_that_differ"], same["largest_relative_difference"]) == (True, 0, 0.0)


@pytest.mark.slow
def test_every_step_is_timed_and_profiled(tmp_path: Path) -> None:
    found = figures_of(run(tmp_path, "--parts", "training"), "training")
    steps = {name: figures for name, figures in found.items() if name != "parts of a step"}
    for figures in steps.values():
        assert figures["steps_per_second"] > 0
        assert 0 <= figures["loader_share"] < 1
    for name in ("joint bf16", "no captioner bf16"):
        assert "aten::" in (tmp_path / found[name]["profile"]).read_text()
        assert sum(found[name]["share_by_kind"].values()) == pytest.approx(1)
        assert found[name]["steps_per_second_of_one_batch"] > 0
    assert found["joint bf16"]["tflop_per_step"] > found["no captioner bf16"]["tflop_per_step"]


@pytest.mark.slow
def test_what_is_encoded_ranked_extracted_and_searched_is_counted(tmp_path: Path) -> None:
    found = figures_of(run(tmp_path, "--parts", "throughput"), "throughput")
    for figures in found.values():
        assert all(value > 0 for name, value in figures.items() if name.endswith(("_per_second", "seconds")))
    assert found["ranking COCO 5K"].get("passed", True)
    assert found["grid extraction"]["photos"] > 0


def test_a_run_without_time_says_what_it_leaves_out_and_keeps_earlier_lines(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(
        json.dumps({"part": "equal", "name": "recordings of VSRN", "figures": {}}) + "\n"
    )
    lines = run(tmp_path, "--parts", "equal,throughput", "--minutes", "0")
    assert lines[0]["figures"] == {}
    assert {line["name"] for line in lines if line["part"] == "equal"} == NAMES["equal"]
    assert len(lines) == len(NAMES["equal"]) + len(NAMES["throughput"])
    assert all("0 s left" in line["skipped"] for line in lines[1:])


def test_a_measurement_that_fails_or_hangs_or_kills_its_process_costs_itself_alone(tmp_path: Path) -> None:
    folder = tmp_path / "gpu"
    folder.mkdir()
    for file in SCRIPT.parent.glob("*.py"):
        if file.name != "equal.py":
            (folder / file.name).write_text(file.read_text())
    (folder / "equal.py").write_text(
        "import os, time\n"
        "def measure(part):\n"
        "    part.measure('fails', lambda: 1 / 0)\n"
        "    part.measure('is right', lambda: {'answer': 42})\n"
        "    part.measure('hangs', lambda: time.sleep(60), limit=1)\n"
        "    part.measure('dies', lambda: os._exit(3))\n"
        "    part.measure('comes last', lambda: {'answer': 43})\n"
    )
    command = [sys.executable, str(folder / "run.py"), "--device", "cpu", "--out", str(tmp_path), "--parts", "equal"]
    subprocess.run(command, check=True, timeout=300, env={"PYTHONPATH": str(ROOT / "src")})
    lines = {line["name"]: line for line in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert list(lines) == ["fails", "is right", "hangs", "dies", "comes last"]
    assert lines["fails"]["error"]["type"] == "ZeroDivisionError"
    assert "1 / 0" in "".join(lines["fails"]["error"]["traceback"])
    assert "did not come back" in lines["hangs"]["error"]["message"]
    assert "status 3" in lines["dies"]["error"]["message"]
    assert (lines["is right"]["figures"], lines["comes last"]["figures"]) == ({"answer": 42}, {"answer": 43})
