"""Extraction and indexing on a Ray cluster, here one on this machine: what comes out is what one process writes."""

from __future__ import annotations

import importlib.util
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import export_colours
from PIL import Image
from shy import Shy, contents, vsrn

from vsrn.data.listing import PhotoFile
from vsrn.errors import PhotoError
from vsrn.extractors.batches import cut
from vsrn.extractors.extract import Extraction
from vsrn.search.build import update_index
from vsrn.search.database import Records

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed (500 MB, so not among what the tests need): pip install '.[ray]'",
)

# Two processors and, by its own word, two GPUs: who is given one of them finds no CUDA, and computes on the CPU.
CLUSTER = """
import sys, ray
ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster, which takes most of the time to start: one for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", CLUSTER], text=True, **pipes) as process:
            assert process.stdout is not None
            yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
            process.communicate()


def save_photos(folder: Path, number: int = 14) -> None:
    folder.mkdir()
    for seed in range(number):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{seed:02}.png")
    # Two batches of which nothing can be read, and a name that is no text.
    for seed in (1, 4, 5, 6, 7, 8, 9, 13):
        (folder / f"{seed:02}.png").write_bytes(b"no photo" * (seed % 3))
    (folder / "00.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# Relative paths must mean the same everywhere. With "cpu" an actor does everything; with "auto" the GPUs are used.
EXTRACT = """
import ray, sys, torch
from pathlib import Path
from vsrn.errors import DataError
from vsrn.extractors.extract import extract
from vsrn.extractors.base import make_extractor
from vsrn.extractors.ray import ray_batches
from vsrn.data.listing import find_photos

photos = find_photos("photos")

def interrupt(split, done, total):
    if done >= 6:
        raise KeyboardInterrupt

def watch(split, done, total):
    free.append(ray.available_resources().get("GPU", 0))

with ray_batches(sys.argv[1]) as batches:
    for device, threads in (("cpu", 1), ("auto", 1)):
        torch.set_num_threads(threads)
        grid, free = make_extractor("grid", device=device), []
        given = {"batch_size": 3, "float32": device == "auto"}
        extract(photos, grid, f"alone-{device}-{threads}", "photos", **given)
        extract(photos, grid, f"ray-{device}-{threads}", "photos", batches=batches, progress=watch, **given)
        print("GPUs", device, int(min(free)))
    try:
        extract(photos, grid, "broken", "photos", batches=batches, progress=interrupt, **given)
    except KeyboardInterrupt:
        assert not Path("broken/photos_ims.npy").exists()
    print("resumed", extract(photos, grid, "broken", "photos", batches=batches, **given).num_resumed)
    grid.fingerprint = "0" * 64
    try:
        extract(photos, grid, "foreign", "photos", batches=batches)
    except DataError as error:
        print("refused", error)
"""


@needs_ray
def test_ray_writes_the_store_that_one_process_writes_and_goes_on_where_it_was(cluster: str, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    ran = run(EXTRACT, tmp_path, cluster)
    assert ran.returncode == 0, ran.stderr
    files = ["photos.json", "photos_boxes.npy", "photos_ids.txt", "photos_ims.npy", "photos_skipped.json"]
    for way in ("cpu-1", "auto-1"):
        alone = contents(tmp_path / f"alone-{way}")
        assert sorted(alone) == files
        assert contents(tmp_path / f"ray-{way}") == alone
    assert len((tmp_path / "ray-cpu-1" / "photos_ids.txt").read_text().splitlines()) == 6
    assert np.load(tmp_path / "ray-auto-1" / "photos_ims.npy").dtype == np.float32
    assert contents(tmp_path / "broken") == contents(tmp_path / "alone-auto-1")
    # On a loaded machine Ray's own warnings come between.
    said = [line for line in ran.stdout.splitlines() if line.startswith(("GPUs", "resumed", "refused"))]
    assert said[:-1] == ["GPUs cpu 2", "GPUs auto 0", "resumed 6"]
    assert "has other weights of 'grid'; install the same vsrn everywhere" in said[-1]


# Called with an address, a device, the index and what is to be killed, with SIGKILL, after the third of 16 batches.
INDEX = """
import contextlib, os, signal, sys
from pathlib import Path
from vsrn.extractors.ray import ray_batches
from vsrn.search.build import update_index

address, device, index, victim = sys.argv[1:]

def progress(done, total):
    global victim
    if done >= 6 and victim == "driver":
        os.kill(os.getpid(), signal.SIGKILL)
    if done >= 6 and victim == "worker":
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            # Other processes may end between the one look and the other.
            with contextlib.suppress(OSError):
                if victim and path.read_bytes().startswith(b"ray::MapWorker(Map(_Actor))"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    victim = ""
                    print("killed")

with ray_batches(address) as batches:
    report = update_index("photos", index, batch_size=2, device=device, batches=batches, progress=progress)
print("new", report.num_added)
"""


def index_contents(folder: Path) -> tuple[dict[str, bytes], list[Any], list[Any]]:
    """The files of vectors, regions and thumbnails, and the records of photos and of skipped files."""
    files = {path.name: path.read_bytes() for kind in ("*.f16", "*.bin") for path in sorted(folder.glob(kind))}
    assert len(files) == 3
    with Records(folder) as records, records.read() as view:
        return files, list(view.photos()), list(view.skipped())


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 30 photos, of which 8 cannot be read, and the index that one process makes of them."""
    folder = tmp_path_factory.mktemp("indexed")
    save_photos(folder / "photos", 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        update_index("photos", "alone", batch_size=2, device="cpu")
    return folder


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="actors are found in /proc")
def test_a_killed_worker_costs_its_batch_and_the_index_is_that_of_one_process(cluster: str, indexed: Path) -> None:
    ran = run(INDEX, indexed, cluster, "auto", "one-dies", "worker")
    assert ran.returncode == 0, ran.stderr
    said = [line for line in ran.stdout.splitlines() if line.startswith(("killed", "new"))]
    assert said == ["killed", "new 22"]
    assert index_contents(indexed / "one-dies") == index_contents(indexed / "alone")


@pytest.mark.slow
@needs_ray
def test_a_killed_driver_goes_on_after_its_last_batch(cluster: str, indexed: Path) -> None:
    assert run(INDEX, indexed, cluster, "auto", "resumed", "driver").returncode == -9
    ran = run(INDEX, indexed, cluster, "auto", "resumed", "nobody")
    assert ran.returncode == 0, ran.stderr
    # Of the first six files two are photos.
    assert "new 20" in ran.stdout
    assert index_contents(indexed / "resumed") == index_contents(indexed / "alone")


@needs_ray
def test_the_command_on_ray(cluster: str, indexed: Path) -> None:
    command = [sys.executable, "-m", "vsrn"]
    task = ["index", "photos", "--no-explain", "--engine", "milvus", "--batch-size", "2", "--device", "cpu"]
    for name, way in (("one", []), ("many", ["--ray", cluster])):
        ran = subprocess.run(
            [*command, *task, "-o", f"index-{name}", *way], cwd=indexed, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "22 photos" in ran.stdout
    one, many = (
        subprocess.check_output([*command, "search", f"index-{name}", "a dog", "--json"], cwd=indexed)
        for name in ("one", "many")
    )
    assert one.replace(b"index-one", b"index-many") == many


@needs_ray
def test_an_address_where_nobody_answers_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_photos(tmp_path / "photos")
    for command in ("extract", "index"):
        assert vsrn(command, tmp_path / "photos", "-o", tmp_path / command, "--ray", "127.0.0.1:1") == 2
        assert "error: no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["extract", "index"])
def test_without_ray_one_sentence_says_how_to_get_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photos(tmp_path / "photos")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert vsrn(command, tmp_path / "photos", "-o", tmp_path / "made", "--ray", "local") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --ray needs Ray")
    assert said.endswith("run `pip install '.[ray]'` in the checkout.")
    assert not (tmp_path / "made").exists()


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
    refused = Extraction(Shy()).prepare(got[1])
    assert isinstance(refused, PhotoError)
    assert refused.kind == "link"


def strangers(work: Any, items: Sequence[Any], batch_size: int, workers: int | None) -> Iterator[Any]:
    """A `BatchMaker` as a cluster is one, without Ray: for each batch someone who knows nothing of the others."""
    make = pickle.dumps(work.elsewhere())
    for batch in cut(items, batch_size):
        other = pickle.loads(make)(work.device, True)
        assert workers is None
        yield pickle.loads(pickle.dumps(other.finish(batch, [other.prepare(item) for item in batch])))


def test_strangers_do_not_give_one_missing_photo_to_two_files(tmp_path: Path) -> None:
    """Needs no Ray: of three copies of two missing photos, each read by somebody else, none is lost."""
    photos, model = tmp_path / "photos", export_colours(tmp_path / "model")
    (photos / "old").mkdir(parents=True)
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue"), ("d", "green")):
        Image.new("RGB", (20, 20), colour).save(photos / "old" / f"{name}.png")
    index = tmp_path / "idx"
    assert update_index(photos, index, model, batches=strangers, batch_size=1).num_added == 4
    (photos / "new").mkdir()
    same = (photos / "old" / "a.png").read_bytes()
    for name in "abc":
        (photos / "new" / f"{name}.png").write_bytes(same)
    for name in "ab":
        (photos / "old" / f"{name}.png").unlink()
    report = update_index(photos, index, batches=strangers, batch_size=1, prune=True)
    assert (report.num_moved, report.num_added, report.num_photos) == (1, 2, 5)
    with Records(index) as records, records.read() as view:
        found = sorted(photo.id for photo in view.photos())
    assert found == ["new/a.png", "new/b.png", "new/c.png", "old/c.png", "old/d.png"]
