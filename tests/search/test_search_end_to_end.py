"""The commands a user types, with the real extractor and a model trained on drawn scenes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from vsrn.cli import main, run_command
from vsrn.toy.world import draw_toy_world

SCENES = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, a model that learned their captions by heart, and an index of them."""
    folder = tmp_path_factory.mktemp("world")
    draw_toy_world(folder / "world", train=SCENES, val=4)
    dataset, images = folder / "world" / "dataset.json", folder / "world" / "images"
    assert run_command("extract", [str(images), "-o", str(folder / "store"), "--captions", str(dataset)]) == 0
    config = Path(__file__).parent.parent.parent / "src/vsrn/configs/flickr8k.toml"
    options = (
        f"--data.path {folder / 'store'} --data.validation train --data.held-out= --data.min-count 1"
        " --model.joint-dim 64 --model.captioner.enabled False --train.batch-size 40 --train.epochs 14"
        " --train.learning-rate-drop 12 --train.learning-rate 0.002 --train.precision fp32"
        " --loss.negatives all --loss.warm-up-epochs 0"
    )
    assert run_command("train", [str(config), "-o", str(folder / "run"), *options.split()]) == 0
    assert run_command("export", [str(folder / "run"), "--onnx", str(folder / "exported")]) == 0
    arguments = [str(images), "-o", str(folder / "idx"), "--model", str(folder / "exported")]
    assert run_command("index", arguments) == 0
    return folder


def search(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run_command("search", [*arguments, "--json"]) == 0
    hits: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["hits"]
    return hits


def test_sentences_find_their_scenes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By chance one of a hundred sentences would find its scene among the first of 44 twice."""
    images = json.loads((world / "world" / "dataset.json").read_text())["images"]
    learned = [image for image in images if image["split"] == "train"][:20]
    found = 0
    for image in learned:
        hits = search(capsys, str(world / "idx"), image["sentences"][0]["raw"], "-k", "5")
        assert len(hits) == 5
        found += image["filename"] in [hit["id"] for hit in hits]
    assert found >= 10
    own = learned[0]["filename"]
    by_photo = search(capsys, str(world / "idx"), "--image", str(world / "world" / "images" / own), "-k", "1")
    assert by_photo[0]["id"] == own
    assert by_photo[0]["score"] == pytest.approx(1, abs=2e-3)
    assert own not in [hit["id"] for hit in search(capsys, str(world / "idx"), "--like", own)]


def test_indexing_again_says_what_changed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(world / "world" / "images"), "-o", str(world / "idx")]
    broken = world / "world" / "images" / "broken.jpg"
    broken.write_text("no photo")
    capsys.readouterr()
    assert run_command("index", [*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    broken.unlink()
    assert [file["id"] for file in report.pop("skipped")] == ["broken.jpg"]
    assert report == {
        "index": str(world / "idx"),
        "num_photos": SCENES + 4,
        "num_added": 0,
        "num_changed": 0,
        "num_removed": 0,
        "num_moved": 0,
        "num_mended": 0,
        "missing": [],
        "num_folders_left_out": 0,
        "num_files_left_out": 0,
        "folders": [arguments[0]],
        "away": [],
        "exclude": [],
    }


def test_hits_are_lines_and_pictures_where_there_is_a_terminal(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(world / "idx"), "a red tree", "-k", "3"]
    assert run_command("search", arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(Path(line.partition("  ")[2]).is_file() for line in lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert run_command("search", arguments) == 0
    assert len(re.findall(r"\x1b_Ga=T,f=100,", capsys.readouterr().out)) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "ask one thing"),
        (["--image", "a.jpg", "--like", "b.jpg"], "ask one thing"),
        (["  "], "the sentence is empty"),
        (["a dog", "--since", "May"], "--since May is no date; write it as 2024-05-17"),
        (["a dog", "-k", "0"], "k is 0"),
        (["--like", "nope.jpg"], "holds no photo 'nope.jpg'"),
        (["--image", "nope.jpg"], "nope.jpg does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str], sentence: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", str(world / "idx"), *options])
    assert ended.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence in error
