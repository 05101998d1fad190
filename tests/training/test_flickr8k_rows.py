"""The script of the Flickr8K comparison on a store made in a moment: failures, going on, combinations, tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import make_store

from vsrn.metrics import IntArray, Ranks, retrieval_metrics

SCRIPT = Path(__file__).parent.parent.parent / "experiments" / "flickr8k.py"
SETTINGS = ["model.joint_dim=8", "model.word_dim=4", "train.batch_size=16", "train.epochs=2", 'train.precision="fp32"']
# An image has five regions, which are no square grid, so the third row fails.
ROWS = ["mean", "scan", "gru-centre-out", "mean-ensemble", "mean-scan", "scan-ensemble"]
TRIALS = ["contrastive", "hardest", "contrastive-long"]


class Comparison:
    """The folder of a comparison, and the command that makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.work = folder, folder / "out", folder / "work"
        make_store(folder / "features" / "windows", {"train": 40, "val": 20}, captions_per_image=5)
        held_out = folder / "held-out.txt"
        held_out.write_text("\n".join(map(str, range(8))) + "\n")
        self.command = [
            *("--features", str(folder / "features"), "--out", str(self.out), "--work", str(self.work)),
            *("--device", "cpu", "--lanes", "2", "--regions", "windows", "--only", *ROWS),
            *("--settings", *SETTINGS, "data.min_count=1", f'data.held_out="{held_out}"'),
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The script with these arguments."""
        command = [sys.executable, str(SCRIPT), *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)

    def lines(self) -> dict[str, dict[str, Any]]:
        """What became of each job."""
        lines = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        assert len({line["key"] for line in lines}) == len(lines)
        return {line["key"]: line for line in lines}

    def similarities(self, key: str) -> Any:
        """What a run that is part of a combination said of val: (20, 100)."""
        return np.load(self.work / "similarities" / key / "val.npy")

    def ranks(self, line: dict[str, Any]) -> Ranks:
        """The ranks of a line, from the bytes that the documentation of the file describes."""
        start, images, captions = line["ranks"]
        found = np.frombuffer((self.out / "ranks.bin").read_bytes(), "<i2")[start : start + images + captions]
        return Ranks(found[:images].astype(np.int64), found[images:].astype(np.int64))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    made = Comparison(tmp_path_factory.mktemp("flickr8k"))
    first = made.run(*made.command)
    assert "failed: windows/gru-centre-out/contrastive" in first.stderr, first.stderr
    return made


def chosen(lines: dict[str, dict[str, Any]], row: str) -> str:
    return max(TRIALS, key=lambda trial: float(lines[f"windows/{row}/{trial}/0"]["held_out"]["rsum"]))


def by_hand(similarities: Any) -> Ranks:
    """Ranks of images and of captions, five captions an image, one query after the other."""
    owners = np.arange(100) // 5
    images = [int((row[owners != i] >= row[owners == i].max()).sum()) for i, row in enumerate(similarities)]
    captions = [int((column >= column[owner]).sum() - 1) for column, owner in zip(similarities.T, owners, strict=True)]
    return Ranks(np.array(images), np.array(captions))


def same(ours: IntArray, wanted: IntArray) -> bool:
    return ours.tolist() == wanted.tolist()


def test_a_failure_costs_its_own_job_alone(comparison: Comparison) -> None:
    lines = comparison.lines()
    failed = {key: line["error"] for key, line in lines.items() if "error" in line}
    assert set(failed) == {f"windows/gru-centre-out/{trial}/0" for trial in TRIALS}
    assert all("no square grid" in error for error in failed.values())
    trained = {f"windows/{row}/{trial}/0" for row in ("mean", "scan") for trial in TRIALS}
    # The trial that the held-out photos choose has two more seeds.
    best = f"windows/mean/{chosen(lines, 'mean')}"
    combined = {"windows/mean-ensemble", "windows/mean-scan"}
    assert set(lines) - set(failed) == trained | {f"{best}/1", f"{best}/2"} | combined
    assert all(lines[key]["finished"] and lines[key]["epochs"] == 2 for key in trained)


def test_metrics_and_ranks_are_those_of_the_similarities(comparison: Comparison) -> None:
    lines = comparison.lines()
    mean, scan = (f"windows/{row}/{chosen(lines, row)}/0" for row in ("mean", "scan"))
    second = mean.removesuffix("0") + "1"
    both = (comparison.similarities(mean) + comparison.similarities(second)) / 2
    for key, similarities in ((mean, comparison.similarities(mean)), ("windows/mean-ensemble", both)):
        ranks, wanted = comparison.ranks(lines[key]), by_hand(similarities)
        assert same(ranks.image_to_text, wanted.image_to_text)
        assert same(ranks.text_to_image, wanted.text_to_image)
        assert lines[key]["val"] == retrieval_metrics(ranks).to_json()
    # All images are candidates, so that the second model alone orders them for a caption; of an image, 20 captions are.
    reranked = comparison.ranks(lines["windows/mean-scan"])
    assert same(reranked.text_to_image, by_hand(comparison.similarities(scan)).text_to_image)


def test_going_on_trains_nothing_twice_and_reads_a_file_that_was_cut(comparison: Comparison) -> None:
    before = comparison.lines()
    results, ranks = comparison.out / "results.jsonl", comparison.out / "ranks.bin"
    whole = results.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    results.write_bytes(whole[:-5])
    ranks.write_bytes(ranks.read_bytes() + b"\1")
    comparison.run(*comparison.command)
    made = results.read_bytes()[len(whole) - 5 :].splitlines()
    # The failures were tried again, and what the cut line said was made again; its ranks are elsewhere.
    again = [json.loads(line) for line in made if line]
    cut = json.loads(last)
    assert sorted(line["key"] for line in again if "error" not in line) == [cut["key"]]
    (remade,) = [line for line in again if "error" not in line]
    assert remade["val"] == cut["val"]
    assert same(comparison.ranks(remade).text_to_image, comparison.ranks(cut).text_to_image)
    results.write_bytes(whole)
    assert comparison.lines() == before


def test_the_page_says_what_the_lines_say(comparison: Comparison) -> None:
    page = comparison.folder / "results.md"
    page.write_text("before\n<!-- flickr8k -->\nold\n<!-- /flickr8k -->\nafter\n")
    assert comparison.run("table", "--out", str(comparison.out), "--page", str(page)).returncode == 0
    text, lines = page.read_text(), comparison.lines()
    assert text.startswith("before\n<!-- flickr8k -->\n")
    assert text.endswith("<!-- /flickr8k -->\nafter\n")
    assert "old" not in text
    best = chosen(lines, "mean")
    title = "| mean pooling (VSE++ on regions) |"
    row, by_recipe = (line for line in text.splitlines() if line.startswith(title))
    rsums = [lines[f"windows/mean/{best}/{seed}"]["val"]["rsum"] for seed in range(3)]
    assert f"| {best}, of 3 | 3 |" in row
    assert f"| {np.mean(rsums):.1f} ({', '.join(f'{rsum:.1f}' for rsum in rsums)}) |" in row
    assert "| two mean pooling − mean pooling (VSE++ on regions) | 1 |" in text
    trials = [lines[f"windows/mean/{trial}/0"]["val"]["rsum"] for trial in TRIALS]
    assert by_recipe == f"{title} {' | '.join(f'{rsum:.1f}' for rsum in trials)} |"
    (answer,) = [line for line in text.splitlines() if line.startswith("| two mean pooling are ahead of one |")]
    apart, low, high = map(float, re.findall(r"[+-][\d.]+", answer))
    assert apart == pytest.approx(lines["windows/mean-ensemble"]["val"]["rsum"] - rsums[0], abs=0.1)
    verdict = "yes" if low > 0 else "**the reverse**" if high < 0 else "no difference found"
    assert f"| {verdict}: " in answer


def test_runs_that_were_cut_count_only_where_none_finished(comparison: Comparison, tmp_path: Path) -> None:
    # The trial that the held-out photos chose is cut, and so is a second seed of the trial that comes after it; no
    # trial of SCAN finished.
    lines = comparison.lines()
    best = chosen(lines, "mean")
    left = [trial for trial in TRIALS if trial != best]
    second = max(left, key=lambda trial: float(lines[f"windows/mean/{trial}/0"]["held_out"]["rsum"]))
    seed_1 = lines[f"windows/mean/{best}/1"] | {"key": f"windows/mean/{second}/1", "trial": second}
    kept = [lines[f"windows/{row}/{trial}/0"] for row in ("mean", "scan") for trial in TRIALS]
    cut = {f"windows/mean/{best}/0", seed_1["key"], *(f"windows/scan/{trial}/0" for trial in TRIALS)}
    written = [line | {"finished": line["key"] not in cut, "epochs": 1} for line in (*kept, seed_1)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    (tmp_path / "ranks.bin").write_bytes((comparison.out / "ranks.bin").read_bytes())
    page = tmp_path / "results.md"
    page.write_text("<!-- flickr8k --><!-- /flickr8k -->")
    made = comparison.run("table", "--out", str(tmp_path), "--page", str(page))
    assert made.returncode == 0, made.stderr
    rows = {line.split("|")[1].strip(): line for line in page.read_text().splitlines() if ", of " in line}
    rsum = lines[f"windows/mean/{second}/0"]["val"]["rsum"]
    assert f"| {second}, of 2 | 1 |" in rows["mean pooling (VSE++ on regions)"]
    assert f"| {rsum:.1f} |" in rows["mean pooling (VSE++ on regions)"]
    assert f"| {chosen(lines, 'scan')}, of 3, cut after 1 epochs | 1 |" in rows["SCAN, text-to-image"]
    # What was cut is compared with nothing.
    assert "SCAN, text-to-image − " not in page.read_text()
