"""The guides' code, run as it stands, block after block, in a folder that has what the guide asks for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsrn.pretrained import MODELS
from vsrn.toy.world import draw_toy_world

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r'^```(sh|python|toml title="([^"]+)")\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos with captions, as a guide's reader has them."""
    draw_toy_world(tmp_path / "world", train=40, val=10, seed=3)
    (tmp_path / "world/images").rename(tmp_path / "photos")
    (tmp_path / "world/dataset.json").rename(tmp_path / "captions.json")
    return tmp_path


def run_guide(page: str, folder: Path, python_setup: str = "") -> None:
    """Run the blocks of a page in order; a TOML block is written to the file of its title."""
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks, page
    script = "set -euo pipefail\n"
    for number, (kind, title, content) in enumerate(blocks):
        if kind == "sh":
            script += content
        else:
            name = title or f"block{number}.py"
            (folder / name).write_text(content if title else python_setup + content, encoding="utf-8")
            script += "" if title else f"python {name}\n"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(not (MODELS / "flickr8k-small").is_dir(), reason="the packaged model is not in this checkout")
def test_start_here(folder: Path) -> None:
    run_guide("index.md", folder)
    with Image.open(folder / "why.png") as picture:
        colours = np.asarray(picture.convert("RGB"))
    assert colours.std() > 1, "the picture shows something"


def test_train_on_your_own_captions(folder: Path) -> None:
    names = [image["filename"] for image in json.loads((folder / "captions.json").read_text())["images"]][:3]
    checks = "assert similarities.shape == (3, 1), similarities.shape\nassert abs(similarities).max() <= 1.001\n"
    page = "train.md"
    run_guide(page, folder, f"NAMES = {names}\n")
    (folder / "check.py").write_text(
        f"NAMES = {names}\n" + BLOCK.findall((ROOT / "docs" / page).read_text())[-1][2] + checks
    )
    subprocess.run([sys.executable, "check.py"], cwd=folder, check=True)
    assert "rsum" in (folder / "report.html").read_text(encoding="utf-8")
