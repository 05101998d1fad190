"""Object regions of detectors in ONNX files: small ones made here against slow code, and a real one on real photos."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from fine_tuned_grid import save_captioned_photos, save_fine_tuned
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file

import vsrn
from vsrn.cli import main
from vsrn.data.region_store import open_region_store
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.base import make_extractor
from vsrn.metrics import FloatArray

SIDE, CLASSES = 64, 3
CELLS = 8 * 8 + 4 * 4 + 2 * 2


def save_detector(path: Path, nodes: list[Any], constants: dict[str, Any], classes: int = CLASSES) -> Path:
    """A file with YOLOX's input and output, and these operators between `images` and `output`."""
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, CELLS, 5 + classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def saying(path: Path, output: FloatArray) -> Path:
    """A detector that gives this (A, 5 + C), whatever it reads."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["said", "nothing"], ["output"]),
    ]
    zero = np.zeros((1, 1, 1), np.float32)
    return save_detector(path, nodes, {"zero": zero, "said": output[None]}, output.shape[1] - 5)


def seeing_red(path: Path) -> Path:
    """A detector that finds each 8 x 8 cell in so far as it is red: a box as large as the cell, of class 1."""
    rest = np.zeros((1, CELLS - 64, 5 + CLASSES), np.float32)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["cells", "flat"], ["levels"]),
        helper.make_node("Transpose", ["levels"], ["rows"], perm=[0, 2, 1]),
        # Rows are blue, green, red; red without green and blue says how much of a thing is here.
        helper.make_node("MatMul", ["rows", "matrix"], ["weighed"]),
        helper.make_node("Relu", ["weighed"], ["objectness"]),
        helper.make_node("Concat", ["middle", "size", "objectness", "classes"], ["found"], axis=2),
        helper.make_node("Concat", ["found", "rest"], ["output"], axis=1),
    ]
    constants = {
        "flat": np.array([1, 3, 64]),
        "matrix": np.array([[-0.5], [-0.5], [1]], np.float32) / 255,
        "middle": np.full((1, 64, 2), 0.5, np.float32),
        "size": np.zeros((1, 64, 2), np.float32),
        "classes": np.tile(np.array([0, 1, 0], np.float32), (1, 64, 1)),
        "rest": rest,
    }
    return save_detector(path, nodes, constants)


def overlap(one: FloatArray, other: FloatArray) -> float:
    """Intersection over union of two xyxy boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(both / (sum(areas) - both))


def slow_boxes(output: FloatArray, height: int, width: int) -> list[tuple[float, int, FloatArray]]:
    """Score, class and xyxy fractions of what a photo of this size in pixels holds, by loops, most confident first."""
    found, row = [], 0
    for stride in (8, 16, 32):
        for y in range(SIDE // stride):
            for x in range(SIDE // stride):
                centre_x, centre_y = (output[row, 0] + x) * stride, (output[row, 1] + y) * stride
                wide, high = math.exp(output[row, 2]) * stride, math.exp(output[row, 3]) * stride
                box = np.array(
                    [
                        min(max(centre_x - wide / 2, 0), width),
                        min(max(centre_y - high / 2, 0), height),
                        min(max(centre_x + wide / 2, 0), width),
                        min(max(centre_y + high / 2, 0), height),
                    ]
                )
                scores = [float(output[row, 4] * output[row, 5 + number]) for number in range(CLASSES)]
                best = scores.index(max(scores))
                if scores[best] >= 0.05 and box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
                    found.append((scores[best], best, box))
                row += 1
    found.sort(key=lambda one: -one[0])
    kept: list[tuple[float, int, FloatArray]] = []
    for score, number, box in found:
        if all(number != other or overlap(box, taken) <= 0.45 for _, other, taken in kept):
            kept.append((score, number, box))
    return [(score, number, box / [width, height, width, height]) for score, number, box in kept[:35]]


def drawn(seed: int, width: int, height: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 120), (20, 64)])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_those_of_slow_decoding_and_suppression(tmp_path: Path, seed: int, width: int, height: int) -> None:
    generator = np.random.default_rng(seed)
    output = generator.uniform(0, 1, (CELLS, 5 + CLASSES)).astype(np.float32)
    output[:, 2:4] = generator.normal(0.5, 0.7, (CELLS, 2))
    # Some are as good as nothing.
    output[:, 4] *= generator.choice([0.01, 1], CELLS)
    extractor = make_extractor(f"onnx:{saying(tmp_path / 'said.onnx', output)}", device="cpu")
    prepared = extractor.prepare(drawn(0, width, height))
    shape = prepared["photo"].shape
    assert max(shape[:2]) == SIDE
    (regions,) = extractor([prepared])
    wanted = slow_boxes(output, *shape[:2])
    assert len(wanted) > 10
    assert regions.scores is not None
    np.testing.assert_allclose(regions.boxes[:-1], [box for _, _, box in wanted], atol=1e-5)
    np.testing.assert_allclose(regions.scores[:-1], [score for score, _, _ in wanted], atol=1e-6)
    # Three classes have no names, but numbers.
    assert regions.classes is not None
    assert regions.classes.tolist() == [*(number for _, number, _ in wanted), -1]
    assert extractor.names.classes == []


def test_the_whole_photo_is_the_last_region_and_the_only_one_where_nothing_is_found(tmp_path: Path) -> None:
    output = np.zeros((CELLS, 5 + CLASSES), np.float32)
    output[3] = np.nan
    output[5, 2:] = np.inf
    output[6, 3:] = 1e4
    extractor = make_extractor(f"onnx:{saying(tmp_path / 'empty.onnx', output)}", device="cpu")
    assert (extractor.num_regions, extractor.feature_dim, extractor.has_scores) == (36, 1280, True)
    (regions,) = extractor([extractor.prepare(drawn(1, 90, 70))])
    assert regions.boxes.tolist() == [[0, 0, 1, 1]]
    assert regions.scores is not None
    assert regions.scores.tolist() == [0]
    assert regions.features.shape == (1, 1280)
    assert np.isfinite(regions.features).all()
    assert extractor([]) == []


@pytest.mark.parametrize(("width", "height"), [(320, 160), (160, 320), (640, 640), (32, 64)])
def test_a_box_is_where_its_thing_is_in_the_photo(tmp_path: Path, width: int, height: int) -> None:
    extractor = make_extractor(f"onnx:{seeing_red(tmp_path / 'red.onnx')}", device="cpu")
    photo = Image.new("RGB", (width, height), (0, 0, 0))
    # One cell of the detector, third from the left and second from the top.
    cell = 8 * max(width, height) // SIDE
    photo.paste((255, 0, 0), (2 * cell, cell, 3 * cell, 2 * cell))
    # Blue would be found were channels in another order.
    photo.paste((0, 0, 255), (0, 2 * cell, cell, 3 * cell))
    (regions,) = extractor([extractor.prepare(photo)])
    wanted = np.array([2 * cell / width, cell / height, 3 * cell / width, 2 * cell / height])
    np.testing.assert_allclose(regions.boxes[0], wanted, atol=1e-6)
    assert regions.scores is not None
    assert regions.scores[0] > 0.8
    assert regions.classes is not None
    assert regions.classes[0] == 1


def mean_of_samples(cells: FloatArray, box: FloatArray) -> FloatArray:
    """(F, H, W) map, xyxy fractions -> (F,): mean of samples between the cells' centres, a cell apart at most."""
    height, width = cells.shape[1:]
    left, top, right, bottom = box.astype(float) * [width, height, width, height]
    rows, columns = math.ceil(bottom - top), math.ceil(right - left)
    samples = []
    for row in range(rows):
        for column in range(columns):
            y = min(max(top + (row + 0.5) * (bottom - top) / rows - 0.5, 0), height - 1)
            x = min(max(left + (column + 0.5) * (right - left) / columns - 0.5, 0), width - 1)
            above, before = int(y), int(x)
            below, after = min(above + 1, height - 1), min(before + 1, width - 1)
            upper = cells[:, above, before] * (1 - x + before) + cells[:, above, after] * (x - before)
            lower = cells[:, below, before] * (1 - x + before) + cells[:, below, after] * (x - before)
            samples.append(upper * (1 - y + above) + lower * (y - above))
    return np.asarray(np.mean(samples, axis=0))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 200)])
def test_features_are_the_mean_of_the_backbones_map_in_a_box(tmp_path: Path, width: int, height: int) -> None:
    weights = save_fine_tuned(tmp_path / "tuned.safetensors")
    detector = seeing_red(tmp_path / "red.onnx")
    extractor = make_extractor(f"onnx:{detector}", weights, device="cpu")
    prepared = extractor.prepare(drawn(4, width, height))
    (regions,), photo = extractor([prepared]), prepared["photo"]
    assert len(regions.features) > 3
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict({key: value.float() for key, value in load_file(weights).items()}, strict=False)
    # Channel by channel Pillow resizes without rounding.
    colours = [Image.fromarray(np.asarray(photo[:, :, colour], np.float32)) for colour in range(3)]
    squashed = np.stack([np.asarray(colour.resize((320, 320), Image.Resampling.BILINEAR)) for colour in colours])
    with torch.inference_mode():
        cells = network.forward_features((torch.from_numpy(squashed)[None] - 127) / 128)[0].numpy()
    assert cells.shape == (1280, 10, 10)
    wanted = np.stack([mean_of_samples(cells, box) for box in regions.boxes])
    np.testing.assert_allclose(regions.features, wanted, atol=2e-3)
    np.testing.assert_allclose(wanted[-1], cells.mean(axis=(1, 2)), atol=1e-4)
    untuned = make_extractor(f"onnx:{detector}", device="cpu")
    assert len({extractor.fingerprint, untuned.fingerprint, make_extractor("grid", weights).fingerprint}) == 3


def test_a_photos_regions_depend_neither_on_its_batch_nor_on_the_process_that_prepared_it(tmp_path: Path) -> None:
    extractor = make_extractor(f"onnx:{seeing_red(tmp_path / 'red.onnx')}", device="cpu")
    prepared = [extractor.prepare(drawn(seed, 60 + 30 * seed, 90)) for seed in range(5)]
    together = extractor(prepared)
    assert len({len(regions.features) for regions in together}) > 1
    for array, regions in zip(prepared, together, strict=True):
        # What another process prepared comes pickled.
        (alone,) = extractor([pickle.loads(pickle.dumps(array))])
        np.testing.assert_array_equal(alone.boxes, regions.boxes)
        np.testing.assert_allclose(alone.features, regions.features, rtol=1e-3, atol=1e-4)


def test_what_is_no_detector_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'onnx:' wants the file of a detector, as in onnx:yolox_nano\.onnx"):
        make_extractor("onnx:")
    with pytest.raises(ConfigError, match=r"there is no file .*none\.onnx"):
        make_extractor(f"onnx:{tmp_path / 'none.onnx'}")
    (tmp_path / "bad.onnx").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"bad\.onnx cannot be read by onnxruntime"):
        make_extractor(f"onnx:{tmp_path / 'bad.onnx'}")
    node = [helper.make_node("ReduceMean", ["images"], ["output"], axes=[1], keepdims=0)]
    save_detector(tmp_path / "mean.onnx", node, {}).write_bytes(mean_of_a_photo())
    with pytest.raises(ConfigError, match=r"reads \[\[1, 3, 64, 64\]\].*no detector of a known kind: YOLOX \("):
        make_extractor(f"onnx:{tmp_path / 'mean.onnx'}")
    red = seeing_red(tmp_path / "red.onnx")
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    with pytest.raises(ConfigError, match=r"names\.txt names 2 classes, but the detector has 3"):
        make_extractor(f"onnx:{red}", classes=tmp_path / "names.txt")
    with pytest.raises(ConfigError, match="--attributes"):
        make_extractor(f"onnx:{red}", attributes=tmp_path / "names.txt")


def mean_of_a_photo() -> bytes:
    """A model that is whole, and no detector."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, SIDE, SIDE])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def test_weights_outside_the_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saying(tmp_path / "said.onnx", np.full((CELLS, 5 + CLASSES), 0.5, np.float32))
    make_extractor(f"onnx:{path}", device="cpu")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="beside.bin", size_threshold=16)
    assert (tmp_path / "beside.bin").exists()
    with pytest.raises(CheckpointError, match=r"said\.onnx cannot be read by onnxruntime"):
        make_extractor("onnx:said.onnx", device="cpu")


@pytest.fixture
def shared_detector(shared: Path) -> Path:
    """A real detector of COCO's 80 classes."""
    path = shared / "detector" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip("the detector is not here (../shared/detector)")
    return path


def test_a_real_detector_finds_what_is_in_real_photos(shared_detector: Path, shared: Path) -> None:
    things = json.loads((shared / "pointing" / "val.json").read_text())[:40]
    extractor = make_extractor(f"onnx:{shared_detector}", device="cpu")
    assert (shared / "detector" / "coco_classes.txt").read_text().split()[:3] == extractor.names.classes[:3]
    photos = [Image.open(shared / "flickr8k" / "images" / thing["photo"]) for thing in things]
    missed = 0
    for thing, photo in zip(things, photos, strict=True):
        prepared = extractor.prepare(photo)
        boxes, classes = prepared["boxes"], prepared["classes"]
        of_kind = boxes[classes == extractor.names.classes.index(thing["thing"])]
        for box in thing["boxes"]:
            missed += max((overlap(np.array(box), one) for one in of_kind), default=0) < 0.7
    assert missed == 0


SMALL_RUN = """
[data]
path = "{store}"
held_out = ""
validation = "val"
[model]
joint_dim = 8
word_dim = 4
reasoning_layers = 1
[model.captioner]
enabled = false
[train]
epochs = 1
learning_rate_drop = []
batch_size = 2
"""


def command(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    assert left.value.code == 0


@pytest.mark.parametrize("exported_first", [False, True])
def test_a_model_and_an_index_keep_the_detector(tmp_path: Path, exported_first: bool) -> None:
    dataset = save_captioned_photos(tmp_path / "photos")
    detector, names = seeing_red(tmp_path / "red.onnx"), tmp_path / "names.txt"
    names.write_text("green\nred\nblue\n")
    made: list[str | Path] = ["--extractor", f"onnx:{detector}", "--classes", names]
    command("extract", tmp_path / "photos", "--captions", dataset, "-o", tmp_path / "store", *made)
    regions = open_region_store(tmp_path / "store", "train")
    assert (regions.info.extractor, regions.names.classes) == ("onnx:red.onnx", ["green", "red", "blue"])
    assert (tmp_path / "store" / "extractor.onnx").read_bytes() == detector.read_bytes()
    (tmp_path / "config.toml").write_text(SMALL_RUN.format(store=tmp_path / "store"))
    command("train", tmp_path / "config.toml", "-o", tmp_path / "run")
    detector.unlink()
    model = tmp_path / "run"
    if exported_first:
        command("export", model, "--onnx", tmp_path / "exported")
        model = tmp_path / "exported"
    command("index", tmp_path / "photos", "-o", tmp_path / "index", "--model", model)
    shutil.rmtree(tmp_path / "run")
    index = vsrn.open_index(tmp_path / "index")
    for photo in sorted((tmp_path / "photos").glob("*.png")):
        assert index.search_image(photo, k=1)[0].id == photo.name


def test_with_weights_of_its_own_the_detector_stays_where_it_is(tmp_path: Path) -> None:
    save_captioned_photos(tmp_path / "photos")
    detector, weights = seeing_red(tmp_path / "red.onnx"), save_fine_tuned(tmp_path / "tuned.safetensors")
    made: list[str | Path] = ["--extractor", f"onnx:{detector}", "--weights", weights]
    command("extract", tmp_path / "photos", "-o", tmp_path / "store", *made)
    assert open_region_store(tmp_path / "store", "photos").info.extractor == f"onnx:{detector}"
    kept = tmp_path / "store" / "extractor.safetensors"
    again = make_extractor(f"onnx:{detector}", kept, device="cpu")
    assert again.fingerprint == open_region_store(tmp_path / "store", "photos").info.fingerprint
