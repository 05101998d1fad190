"""Extraction on a Ray cluster, here one started on this machine: the store is the one that a process alone writes."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shy import Shy, contents, vsrn_extract

from vsrn.data.listing import PhotoFile
from vsrn.data.region_store import SkippedPhoto
from vsrn.errors import PhotoError
from vsrn.extractors.extract import ExtractedBatch, prepare_or_refuse
from vsrn.extractors.ray import batch_of_columns, columns_of_batch

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed (500 MB, so not among what the tests need): pip install '.[ray]'",
)


def save_photos(folder: Path) -> None:
    folder.mkdir()
    for number in range(14):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    # Two batches of which nothing can be read, and a name that is no text.
    for number in (1, 4, 5, 6, 7, 8, 9, 13):
        (folder / f"{number:02}.png").write_bytes(b"no photo" * (number % 3))
    (folder / "00.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))


# One cluster for all, since starting it takes most of the time. Relative paths must mean the same everywhere.
ON_RAY = """
import torch
from pathlib import Path
from vsrn.errors import DataError
from vsrn.extractors.extract import extract
from vsrn.extractors.base import make_extractor
from vsrn.extractors.ray import ray_batches
from vsrn.data.listing import find_photos

photos, grid = find_photos("photos"), make_extractor("grid")

def interrupt(split, done, total):
    if done >= 6:
        raise KeyboardInterrupt

with ray_batches("local") as batches:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for folder, way in ((f"alone-{threads}", {}), (f"ray-{threads}", {"batches": batches})):
            extract(photos, grid, folder, "photos", batch_size=3, **way)
    try:
        extract(photos, grid, "broken", "photos", batch_size=3, batches=batches, progress=interrupt)
    except KeyboardInterrupt:
        assert not Path("broken/photos_ims.npy").exists()
    print("resumed", extract(photos, grid, "broken", "photos", batch_size=3, batches=batches).num_resumed)
    grid.fingerprint = "0" * 64
    try:
        extract(photos, grid, "foreign", "photos", batches=batches)
    except DataError as error:
        print("refused", error)
"""


@needs_ray
def test_ray_writes_the_store_that_one_process_writes_and_goes_on_where_it_was(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    run = subprocess.run([sys.executable, "-c", ON_RAY], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for threads in (1, 2):
        alone = contents(tmp_path / f"alone-{threads}")
        assert sorted(alone) == [
            "photos.json",
            "photos_boxes.npy",
            "photos_ids.txt",
            "photos_ims.npy",
            "photos_skipped.json",
        ]
        assert contents(tmp_path / f"ray-{threads}") == alone
    assert len((tmp_path / "ray-1" / "photos_ids.txt").read_text().splitlines()) == 6
    assert contents(tmp_path / "broken") == contents(tmp_path / "alone-2")
    # On a loaded machine Ray's own warnings come between.
    resumed, foreign = [line for line in run.stdout.splitlines() if line.startswith(("resumed", "refused"))]
    assert resumed == "resumed 6"
    assert "has other weights of 'grid'; install the same vsrn everywhere" in foreign


@needs_ray
def test_the_command_on_ray(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    command = [sys.executable, "-m", "vsrn", "extract", "photos", "--batch-size", "3", "-o"]
    subprocess.run([*command, "alone"], cwd=tmp_path, capture_output=True, check=True)
    run = subprocess.run([*command, "ray", "--ray", "local"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "split 'photos': 6 photos" in run.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


@needs_ray
def test_an_address_where_nobody_answers_is_named(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    run = subprocess.run(
        [sys.executable, "-m", "vsrn", "extract", "photos", "-o", "store", "--ray", "127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "error: no Ray cluster answers at '127.0.0.1:1'" in run.stderr.splitlines()[-1]


def test_without_ray_one_sentence_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photos(tmp_path / "photos")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert vsrn_extract(tmp_path / "photos", "-o", tmp_path / "store", "--ray", "local") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --ray needs Ray")
    assert said.endswith("run `pip install '.[ray]'` in the checkout.")
    assert not (tmp_path / "store").exists()


def test_a_list_of_photos_survives_the_journey() -> None:
    """Needs no Ray, which pickles: names that are no UTF-8 and reasons not to open a file reach the actor."""
    sent = [
        PhotoFile("caf\\xe9.jpg", Path(os.fsdecode(b"photos/caf\xe9.jpg"))),
        PhotoFile("out.jpg", Path("photos/out.jpg"), PhotoError("out.jpg is a link that leads out.", "link")),
    ]
    got = pickle.loads(pickle.dumps(sent))
    assert [(photo.id, photo.path) for photo in got] == [(photo.id, photo.path) for photo in sent]
    assert got[0].refusal is None
    assert (str(got[1].refusal), got[1].refusal.kind) == ("out.jpg is a link that leads out.", "link")
    refused = prepare_or_refuse(Shy(), got[1])
    assert isinstance(refused, PhotoError)
    assert refused.kind == "link"


@pytest.mark.parametrize("num_photos", [0, 1, 5])
def test_a_finished_batch_survives_the_journey_as_columns(num_photos: int) -> None:
    """Needs no Ray: what an actor sends is what the writer gets, photos of one and of two regions alike."""
    shy = Shy()
    photos = [np.full(3, number, np.float32) for number in range(num_photos)]
    ids = [f"{number}.png" for number in range(num_photos)]
    sent = ExtractedBatch(ids, shy(photos), [SkippedPhoto("x.png", "it is no photo", "no-photo")])
    got = batch_of_columns(columns_of_batch(sent))
    assert (got.ids, got.skipped) == (sent.ids, sent.skipped)
    for one, other in zip(sent.regions, got.regions, strict=True):
        assert one.scores is not None
        assert other.scores is not None
        assert np.array_equal(one.features, other.features)
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
