"""The whole way, on drawn scenes and on real photos, through the same commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vsrn
from vsrn.cli import run_command
from vsrn.training.checkpoint import read_log


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_command("evaluate", [*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_demo_goes_from_drawing_to_a_report_and_can_be_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = tmp_path / "demo"
    arguments = ["-o", str(demo), "--train", "24", "--val", "12", "--epochs", "2"]
    assert run_command("demo", arguments) == 0
    validations = [row["validation"]["rsum"] for row in read_log(demo / "run") if "validation" in row]
    result = evaluate(capsys, str(demo / "run"), "--split", "val")
    assert result["rsum"] == pytest.approx(max(validations))
    assert (demo / "report.html").read_text().count("data:image/jpeg;base64,") >= 10
    weights = (demo / "run" / "model.safetensors").read_bytes()
    assert run_command("demo", arguments) == 0
    assert (demo / "run" / "model.safetensors").read_bytes() == weights


def test_real_photos_and_captions_are_learned(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty photos can be learned by heart; by chance R@1 would be 2.5."""
    dataset = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_text())
    dataset["images"] = [image for image in dataset["images"] if image["split"] == "val"][:40]
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    photos, store, run = shared / "flickr8k" / "images", tmp_path / "store", tmp_path / "run"
    captions = ["--captions", str(tmp_path / "dataset.json")]
    assert run_command("extract", [str(photos), "-o", str(store), *captions]) == 0
    config = Path(__file__).parent.parent / "src/vsrn/configs/flickr8k.toml"
    options = (
        f"--data.path {store} --data.train val --data.held-out= --data.min-count 1 --model.joint-dim 64"
        " --model.captioner.enabled False --train.batch-size 40 --train.epochs 12 --train.learning-rate-drop 10"
        " --train.learning-rate 0.002 --train.precision fp32 --loss.negatives all --loss.warm-up-epochs 0"
    )
    assert run_command("train", [str(config), "-o", str(run), *options.split()]) == 0
    result = evaluate(capsys, str(run), "--split", "val")
    assert result["text_to_image"]["recall_at_1"] > 25

    model = vsrn.load(run)
    ids = (store / "val_ids.txt").read_text().split()[:3]
    from_photos = model.encode_images([photos / name for name in ids])
    from_store = model.encode_regions(np.load(store / "val_ims.npy")[:3])
    np.testing.assert_allclose(from_photos, from_store, atol=2e-3)  # the store rounds to float16

    assert run_command("export", [str(run), "--onnx", str(tmp_path / "exported")]) == 0
    exported = vsrn.load(tmp_path / "exported")
    from_photos_again = exported.encode_images([photos / name for name in ids])
    np.testing.assert_allclose(from_photos_again, from_photos, atol=1e-5)
