"""Features in every form that people keep them in become the same store."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from shy import vsrn

from vsrn.data.region_store import open_region_store
from vsrn.data.region_writer import GrowingArray
from vsrn.data.splits import open_split
from vsrn.errors import DataError
from vsrn.extractors.published_arrays import open_published_arrays

Floats = npt.NDArray[np.float32]
ROWS, N, F = 7, 3, 5
# Halves, which every kind of float holds exactly.
FEATURES = (np.random.default_rng(0).integers(-200, 200, (ROWS, N, F)) / 2).astype(np.float32)
BOXES = np.tile(np.array([0.0, 0.25, 0.5, 0.75], np.float32), (ROWS, N, 1))
IDS = ["COCO_val2014_000000000042", "17", "b/c", "été", "100", "7", "photo_x"]


def save_hdf5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def save_tensors(path: Path, arrays: dict[str, Any]) -> None:
    save_file({name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}, path)


def save_bfloat16(path: Path, arrays: dict[str, Any]) -> None:
    save_file({name: torch.from_numpy(np.array(values)).bfloat16() for name, values in arrays.items()}, path)


SAVERS: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None]]] = {
    "npz": (".npz", lambda path, arrays: np.savez(path, **arrays)),
    "compressed npz": (".npz", lambda path, arrays: np.savez_compressed(path, **arrays)),
    "hdf5": (".h5", save_hdf5),
    "safetensors": (".safetensors", save_tensors),
    "bfloat16": (".safetensors", save_bfloat16),
}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_one_array_becomes_the_split_with_the_captions_beside_it(tmp_path: Path, kind: str, dtype: str) -> None:
    ending, save = SAVERS[kind]
    values = FEATURES.astype(dtype if ending != ".safetensors" else dtype.replace(">", "<"))
    save(tmp_path / f"test_ims{ending}", {"whatever": values})
    captions = "".join(f"caption {number}\n" for number in range(2 * ROWS))
    (tmp_path / "test_caps.txt").write_text(captions)
    np.save(tmp_path / "test_boxes.npy", BOXES)
    assert vsrn("import", tmp_path / f"test_ims{ending}", "-o", tmp_path / "store", "--batch-size", "3") == 0
    split = open_split(tmp_path / "store", "test")
    assert np.array_equal(split.regions.features, FEATURES.astype(np.float16))
    assert split.regions.boxes is not None
    assert np.array_equal(split.regions.boxes, BOXES)
    assert split.captions == captions.splitlines()
    assert split.image_of_caption.tolist() == [number // 2 for number in range(2 * ROWS)]
    assert not (tmp_path / "store" / "test_ids.txt").exists(), "numbers of rows are no ids"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {
        *("test_ims.npy", "test_boxes.npy", "test_caps.txt", "test.json")
    }


def test_rows_repeated_for_each_caption_are_one_image_still(tmp_path: Path) -> None:
    np.savez(tmp_path / "dev_ims.npz", np.repeat(FEATURES, 5, axis=0))
    (tmp_path / "dev_caps.txt").write_text("".join(f"caption {number}\n" for number in range(5 * ROWS)))
    assert vsrn("import", tmp_path, "-o", tmp_path / "store") == 0
    split = open_split(tmp_path / "store", "dev")
    assert split.image_of_caption.tolist() == [number // 5 for number in range(5 * ROWS)]
    assert np.array_equal(split.regions.features, FEATURES.astype(np.float16))


@pytest.mark.parametrize("kind", SAVERS)
def test_ids_of_captions_beside_the_features_say_whose_they_are(tmp_path: Path, kind: str) -> None:
    ending, save = SAVERS[kind]
    save(tmp_path / f"test_ims{ending}", {"whatever": FEATURES[:3]})
    whose = ["a.jpg", "b.jpg", "a.jpg", "c.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "test_ids.txt").write_text("".join(f"{name}\n" for name in whose))
    (tmp_path / "test_caps.txt").write_text("".join(f"{place} of {name}\n" for place, name in enumerate(whose)))
    assert vsrn("import", tmp_path / f"test_ims{ending}", "-o", tmp_path / "store") == 0
    split = open_split(tmp_path / "store", "test")
    assert split.image_ids() == ["a.jpg", "b.jpg", "c.jpg"]
    assert np.array_equal(split.read_images(np.arange(3))[0], FEATURES[:3].astype(np.float16))
    for image, name in enumerate(split.image_ids()):
        own = [split.captions[at] for at in np.flatnonzero(split.image_of_caption == image)]
        assert own == [f"{place} of {other}" for place, other in enumerate(whose) if other == name]


def each_of(name: str) -> dict[str, Floats]:
    return {name.format(image_id): FEATURES[row, : 1 + row % N] for row, image_id in enumerate(IDS)}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("name", ["{}", "{}/features", "{}/x", "{}_features"])
def test_an_array_an_image_keeps_its_id_and_its_number_of_regions(tmp_path: Path, kind: str, name: str) -> None:
    ending, save = SAVERS[kind]
    arrays = each_of(name)
    if name == "{}" and ending == ".h5":
        arrays = {key.replace("/", "-"): values for key, values in arrays.items()}
    save(tmp_path / f"features{ending}", arrays)
    assert vsrn("import", tmp_path / f"features{ending}", "-o", tmp_path / "store") == 0
    store = open_region_store(tmp_path / "store", "photos")
    assert store.boxes is None
    assert store.counts is not None
    found = {image_id.replace("-", "/"): store.read_regions(row) for row, image_id in enumerate(store.ids)}
    assert found.keys() == set(IDS)
    for row, image_id in enumerate(IDS):
        assert np.array_equal(found[image_id].features, FEATURES[row, : 1 + row % N])


def test_captions_find_an_image_by_the_mapping_of_its_id(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"p17": FEATURES[0], "p23": FEATURES[1]}
    np.savez(tmp_path / "features.npz", **arrays)
    (tmp_path / "id_mapping.json").write_text(json.dumps({"p17": "beach.jpg", "p23": "snow.jpg"}))
    (tmp_path / "captions.csv").write_text("image,caption\nsnow.jpg,a dog in snow\nbeach.jpg,a ball\n")
    captions: list[str | Path] = ["--captions", tmp_path / "captions.csv"]
    assert vsrn("import", tmp_path / "features.npz", *captions, "-o", tmp_path / "store") == 0
    split = open_split(tmp_path / "store", "train")
    assert (split.image_ids(), split.captions) == (["snow.jpg", "beach.jpg"], ["a dog in snow", "a ball"])
    assert np.array_equal(split.read_images(np.arange(2))[0], FEATURES[[1, 0]].astype(np.float16))


def test_ragged_rows_without_names_stay_rows(tmp_path: Path) -> None:
    # More than ten: "arr_10" comes after "arr_9", not after "arr_1".
    rows = [np.full((1 + row % 3, F), row, np.float32) for row in range(12)]
    np.savez(tmp_path / "test_ims.npz", *rows)
    (tmp_path / "test_caps.txt").write_text("".join(f"caption {number}\n" for number in range(12)))
    assert vsrn("import", tmp_path / "test_ims.npz", "-o", tmp_path / "store") == 0
    split = open_split(tmp_path / "store", "test")
    assert split.regions.features[:, 0, 0].tolist() == list(range(12))
    assert split.regions.counts is not None
    assert split.regions.counts.tolist() == [1 + row % 3 for row in range(12)]
    assert len(split.captions) == 12


@pytest.mark.parametrize("across", [False, True], ids=["regions first", "numbers first"])
def test_a_file_an_image_with_what_the_detector_said(tmp_path: Path, across: bool) -> None:
    folder = tmp_path / "features"
    (folder / "b").mkdir(parents=True)
    info = np.array({"objects_id": [1]}, object)
    for row, image_id in enumerate(IDS):
        features = FEATURES[row].T if across else FEATURES[row]
        pixels = BOXES[row] * [640, 480, 640, 480]
        more: dict[str, Any] = {"image_w": 640, "image_h": 480, "objects_id": np.arange(N)}
        more |= {"objects_conf": np.full(N, 0.5, "f4"), "bbox": pixels, "num_bbox": N - 1, "info": info}
        np.savez(folder / f"{image_id}.npz", x=features, **more)
    np.save(folder / "17_info.npy", info, allow_pickle=True)
    names = tmp_path / "objects_vocab.txt"
    names.write_text("".join(f"thing {number}\n" for number in range(1600)))
    images = [
        {"filename": f"{image_id}.jpg", "split": "val", "sentences": [{"raw": f"of {image_id}"}]}
        for image_id in [*IDS[1:], IDS[0], "nowhere"]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    options: list[str | Path] = ["--captions", tmp_path / "dataset.json", "--classes", names, "--float32"]
    assert vsrn("import", folder, "-o", tmp_path / "store", *options) == 0
    split = open_split(tmp_path / "store", "val")
    assert split.image_ids() == [f"{image_id}.jpg" for image_id in [*IDS[1:], IDS[0]]]
    assert split.regions.features.dtype == np.float32
    for row, at in enumerate([*range(1, ROWS), 0]):
        regions = split.regions.read_regions(row)
        assert np.array_equal(regions.features, FEATURES[at, : N - 1])
        assert np.allclose(regions.boxes, BOXES[at, : N - 1])
        assert split.regions.names.labels_of(regions) == ["thing 0", "thing 1"]
        assert regions.scores is not None
        assert regions.scores.tolist() == [0.5, 0.5]
    skipped = json.loads((tmp_path / "store" / "val_skipped.json").read_text())
    assert [photo["id"] for photo in skipped] == ["nowhere.jpg"]


def test_arrays_of_all_images_beside_their_ids(tmp_path: Path) -> None:
    sizes = {"image_w": np.full(ROWS, 200), "image_h": np.full(ROWS, 100)}
    numbers = np.arange(10, 10 + ROWS)
    pixels = BOXES * [200, 100, 200, 100]
    save_hdf5(
        tmp_path / "trainval.hdf5", {"image_features": FEATURES, "image_bb": pixels, "image_ids": numbers, **sizes}
    )
    assert vsrn("import", tmp_path / "trainval.hdf5", "-o", tmp_path / "store") == 0
    store = open_region_store(tmp_path / "store", "photos")
    assert store.ids == [str(number) for number in numbers]
    assert np.array_equal(store.features, FEATURES.astype(np.float16))
    assert store.boxes is not None
    assert np.allclose(store.boxes, BOXES)


def test_regions_one_after_another_with_spans(tmp_path: Path) -> None:
    flat = FEATURES.reshape(-1, F)
    spans = np.array([[0, 3], [3, 4], [4, 9]])
    save_hdf5(tmp_path / "val.hdf5", {"image_features": flat, "pos_boxes": spans})
    assert vsrn("import", tmp_path / "val.hdf5", "-o", tmp_path / "store", "--splits", "dev") == 0
    store = open_region_store(tmp_path / "store", "dev")
    assert [len(store.read_regions(row).features) for row in range(3)] == [3, 1, 5]
    assert np.array_equal(store.read_regions(2).features, flat[4:9])


def test_objects_are_read_by_the_command_that_the_sentence_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ragged = np.empty(ROWS, object)
    ragged[:] = [FEATURES[row, : 1 + row % N] for row in range(ROWS)]
    np.save(tmp_path / "test_ims.npy", ragged, allow_pickle=True)
    (tmp_path / "test_caps.txt").write_text("one\n" * ROWS)
    with pytest.raises(DataError, match="Python objects") as refused:
        open_split(tmp_path, "test")
    assert vsrn("import", tmp_path / "test_ims.npy", "-o", tmp_path / "store") == 2
    assert "holds Python objects" in capsys.readouterr().err
    commands = str(refused.value).split("`")[1::2]
    assert len(commands) == 2
    subprocess.run(commands[0], shell=True, check=True)
    assert vsrn(*commands[1].replace("STORE", str(tmp_path / "store")).split()[1:]) == 0
    split = open_split(tmp_path / "store", "test")
    assert np.array_equal(split.regions.read_regions(4).features, FEATURES[4, :2])
    assert len(split.captions) == ROWS


def test_stopped_anywhere_it_goes_on_to_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "test_ims.npz", FEATURES)
    command: list[str | Path] = ["import", tmp_path / "test_ims.npz", "--batch-size", "2", "-o"]
    assert vsrn(*command, tmp_path / "whole") == 0
    append = GrowingArray.append

    def stop(self: GrowingArray, rows: npt.NDArray[Any]) -> None:
        if self.rows >= 4:
            raise KeyboardInterrupt
        append(self, rows)

    with monkeypatch.context() as broken:
        broken.setattr(GrowingArray, "append", stop)
        assert vsrn(*command, tmp_path / "broken") == 130
    assert not (tmp_path / "broken" / "test_ims.npy").exists()
    assert vsrn(*command, tmp_path / "broken") == 0
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "broken")]
    assert contents[0] == contents[1]


def test_other_features_do_not_pass_for_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in (("a", FEATURES), ("b", FEATURES + 1)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "test_ims.npz", values)
    assert vsrn("import", tmp_path / "a" / "test_ims.npz", "-o", tmp_path / "store") == 0
    assert vsrn("import", tmp_path / "a" / "test_ims.npz", "-o", tmp_path / "store") == 0
    assert "finished before" in capsys.readouterr().out
    assert vsrn("import", tmp_path / "a" / "test_ims.npz", "-o", tmp_path / "store", "--float32") == 2
    assert "made as float16" in capsys.readouterr().err
    assert vsrn("import", tmp_path / "b" / "test_ims.npz", "-o", tmp_path / "store") == 2
    assert "made from other features" in capsys.readouterr().err


def link_out(path: Path) -> None:
    save_hdf5(path.with_name("secret.h5"), {"a": FEATURES})
    with h5py.File(path, "w") as file:
        file["17"] = h5py.ExternalLink("secret.h5", "/a")


def store_outside(path: Path) -> None:
    path.with_name("secret").write_bytes(FEATURES.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("17", FEATURES.shape, "<f4", external=[(str(path.with_name("secret")), 0, FEATURES.nbytes)])


def write_bytes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


HOSTILE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "links of HDF5": ("a.h5", link_out, "holds no images"),
    "storage of HDF5": ("a.h5", store_outside, "keeps its numbers in another file"),
    "not HDF5": ("a.h5", write_bytes(b"\x89HDF and so on"), "a.h5 cannot be read"),
    "a cut archive": ("a.npz", write_bytes(b"PK\x03\x04 and so on"), "a.npz cannot be read"),
    "no tensors": ("a.safetensors", write_bytes(b"12345678"), "cannot be read"),
    "an empty archive": ("a.npz", np.savez, "a.npz (cannot be read|holds no images)"),
    "whole numbers": ("a.npz", lambda path: np.savez(path, np.ones((2, 3, 4), int)), "floats"),
    "axes the other way round": ("a.npz", lambda path: np.savez(path, np.ones((2, 2048, 36), "f2")), "swapaxes"),
    "NaN": ("a.npz", lambda path: np.savez(path, a=np.full((2, 3), np.nan), b=np.ones((2, 3))), "NaN or infinite"),
    "one dimension too many": ("a.npz", lambda path: np.savez(path, a=np.ones((2, 3, 4, 5)), b=np.ones(3)), "shape"),
    "objects": ("a.npz", lambda path: np.savez(path, a=np.array([{}]), b=np.ones((1, 2))), "Python objects"),
    "too large for half": ("a.npz", lambda path: np.savez(path, np.full((2, 3, 4), 1e5)), "--float32"),
    "other sizes": ("a.npz", lambda path: np.savez(path, a=np.ones((2, 3)), b=np.ones((2, 4))), "do not mix"),
    "no regions at all": ("a.npz", lambda path: np.savez(path, a=np.ones((0, 3)), b=np.ones((0, 3))), "any region"),
    "boxes out of the photo": (
        "a.npz",
        lambda path: np.savez(path, features=np.ones((1, 3)), boxes=[[0, 0, 90, 90]], image_w=50, image_h=99),
        r"box \(0, 0, 90, 90\) does not lie in a photo of 50 x 99",
    ),
}


@pytest.mark.parametrize(("name", "write", "says"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_wrong_file_is_one_sentence(
    tmp_path: Path, name: str, write: Callable[[Path], None], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    assert vsrn("import", tmp_path / name, "-o", tmp_path / "store") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert re.search(says, said), said
    assert not (tmp_path / "store" / "photos_ims.npy").exists()


HARMFUL = "a'); open('ran', 'w');$(touch ran) #"


@pytest.mark.parametrize("name", ["a.pt", "a.pkl", f"{HARMFUL}.pt", f"{HARMFUL}.pkl"])
def test_a_pickle_is_read_by_the_commands_that_the_sentence_names(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"1.jpg": np.ones((2, 3), np.float32), "2.jpg": np.full((2, 3), 2, np.float32)}
    if name.endswith(".pt"):
        torch.save({key: torch.from_numpy(value) for key, value in table.items()}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(table))
    assert vsrn("import", tmp_path / name, "-o", tmp_path / "store") == 2
    first, second = re.findall("`([^`]*)`", capsys.readouterr().err.splitlines()[-1])
    subprocess.run(f"{sys.executable} {first.removeprefix('python ')}", shell=True, check=True, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    assert vsrn(*shlex.split(second)[1:-1], tmp_path / "store") == 0
    assert (tmp_path / "store" / "photos_ids.txt").read_text().split() == list(table)
    np.testing.assert_array_equal(np.load(tmp_path / "store" / "photos_ims.npy"), np.stack(list(table.values())))


def test_an_archive_without_compression_is_read_in_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "test_ims.npz", FEATURES)
    (tmp_path / "scratch").mkdir()
    with contextlib.ExitStack() as opened:
        published = open_published_arrays(tmp_path / "test_ims.npz", tmp_path / "scratch", opened)
        assert published is not None
        assert np.array_equal(published.images[3][1].read().features, FEATURES[3])
        assert not [*(tmp_path / "scratch").iterdir()]
