"""The guides' code, run as it stands, block after block, in a folder that has what the guide asks for."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsrn.data.vocabulary import SPECIAL_WORDS
from vsrn.pretrained import MODELS
from vsrn.toy.world import draw_toy_world

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r'^```(sh|(?:python|toml)(?: title="([^"]+)")?)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos with captions, as a guide's reader has them."""
    draw_toy_world(tmp_path / "world", train=40, val=10, seed=3)
    (tmp_path / "world/images").rename(tmp_path / "photos")
    (tmp_path / "world/dataset.json").rename(tmp_path / "captions.json")
    return tmp_path


def run_guide(page: str, folder: Path, python_setup: str = "") -> None:
    """Run the blocks of a page in order; a block with a title is written to the file of its title."""
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


def test_a_first_hour_for_researchers(folder: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checkpoint in the format of 2019, features of its size, and captions of its words."""
    words = [
        *SPECIAL_WORDS,
        *[
            "a",
            "red",
            "blue",
            "green",
            "ball",
            "boat",
            "star",
            "box",
            "ring",
            "in",
            "on",
            "at",
            "inside",
            "small",
            "large",
            "sea",
        ],
    ]
    words += [f"word{number}" for number in range(57 - len(words))]
    shutil.copy(golden / "f30k/checkpoint.pth.tar", folder / "model_f30k_1.pth.tar")
    # The class of 2019, as it was called there.
    vocabulary = type("Vocabulary", (), {"__module__": "vocab"})
    monkeypatch.setitem(sys.modules, "vocab", types.SimpleNamespace(Vocabulary=vocabulary))
    pickled = vocabulary()
    vars(pickled).update(word2idx={word: place for place, word in enumerate(words)}, idx2word=dict(enumerate(words)))
    (folder / "f30k_precomp_vocab.pkl").write_bytes(pickle.dumps(pickled, protocol=2))
    (folder / "data/f30k_precomp").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, images in {"train": 30, "dev": 12, "test": 12}.items():
        features = generator.normal(size=(images, 36, 48)).astype(np.float32)
        # SCAN's layout repeats every image once for each of its captions.
        np.save(folder / f"data/f30k_precomp/{split}_ims.npy", features.repeat(5 if split != "train" else 1, axis=0))
        captions = [" ".join(generator.choice(words[4:20], size=5)) for _ in range(5 * images)]
        (folder / f"data/f30k_precomp/{split}_caps.txt").write_text("\n".join(captions) + "\n")
    run_guide("first-hour.md", folder)
    scores, vectors = np.load(folder / "out/vsrn.npy"), np.load(folder / "out/vsrn.npz")
    assert scores.shape == (12, 60)
    np.testing.assert_allclose(scores, vectors["images"] @ vectors["captions"].T, atol=1e-6)
    assert "rsum" in (folder / "shared/README.md").read_text(encoding="utf-8")
