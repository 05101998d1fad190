"""CxC and ECCV Caption on their own ground truth, with similarities drawn by chance: what the package says when it is
given whole sorted rankings is what we say."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from worlds import make_model, make_store

from vsrn.cli import main
from vsrn.data.splits import open_split
from vsrn.errors import DataError, SimilarityError
from vsrn.evaluation.eccv import coco_ids, extended_evaluation
from vsrn.metrics import EncodedSplit

NUM_IMAGES = 5000


@pytest.fixture(scope="module")
def judge() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("eccv_caption", reason="the extra `eval` is not installed")
    return package.Metrics()


def captions_by_image(judge: Any) -> dict[int, list[int]]:
    of_image: dict[int, list[int]] = {}
    for caption in judge.coco_ids.tolist():
        of_image.setdefault(judge.coco_gts["t2i"][caption][0], []).append(caption)
    return of_image


def write_store(folder: Path, ids: list[str] | None, captions: list[int], split: str = "testall") -> Path:
    """Images of one region each, with so many captions."""
    folder.mkdir()
    np.save(folder / f"{split}_ims.npy", np.arange(len(captions) * 2, dtype=np.float16).reshape(-1, 1, 2) % 2000)
    lines = [f"caption {place} of {image}" for image, number in enumerate(captions) for place in range(number)]
    (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    (folder / f"{split}.json").write_text(json.dumps({"captions_per_image": captions}))
    if ids is not None:
        (folder / f"{split}_ids.txt").write_text("\n".join(ids) + "\n")
    return folder


def embeddings(seed: int, owners: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Images, and captions near their own image: right now and then."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(NUM_IMAGES, 12)).astype(np.float32)
    return images, images[owners] + generator.normal(size=(len(owners), 12)).astype(np.float32)


def test_shortened_rankings_are_judged_as_whole_ones(judge: Any, tmp_path: Path) -> None:
    of_image = captions_by_image(judge)
    numbers = list(of_image)
    np.random.default_rng(0).shuffle(numbers)
    counts = [5 + place % 3 // 2 for place in range(NUM_IMAGES)]  # every third image has a sixth caption
    store = write_store(tmp_path / "store", [f"val2014/COCO_val2014_{number:012}.jpg" for number in numbers], counts)
    split = open_split(store, "testall")
    images, captions = embeddings(1, split.image_of_caption)
    ours = extended_evaluation(split, [EncodedSplit(images, captions)])

    # The obvious way: every query's whole ranking, of which the metrics read the head.
    known = np.array([of_image[numbers[owner]][place] if place < 5 else -1 for owner, place in _places(counts)])
    kept, image_ids = np.flatnonzero(known >= 0), np.array(numbers)
    of_images = {
        number: known[kept][np.argsort(-(captions[kept] @ images[row]), kind="stable")][:1000]
        for row, number in enumerate(numbers)
    }
    of_captions = {
        int(known[place]): image_ids[np.argsort(-(images @ captions[place]), kind="stable")][:1000] for place in kept
    }
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = judge.compute_all_metrics(
            of_images, of_captions, ("cxc_recalls", "eccv_map_at_r", "eccv_rprecision", "eccv_r1"), (1, 5, 10)
        )
    for way, direction in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        for k in (1, 5, 10):
            assert ours["cxc"][direction][f"recall_at_{k}"] == pytest.approx(100 * theirs[f"cxc_r{k}"][way], abs=0.02)
        assert ours["eccv_caption"][direction]["map_at_r"] == pytest.approx(
            100 * theirs["eccv_map_at_r"][way], abs=0.02
        )
        assert ours["eccv_caption"][direction]["r_precision"] == pytest.approx(
            100 * theirs["eccv_rprecision"][way], abs=0.02
        )
        assert ours["eccv_caption"][direction]["recall_at_1"] == pytest.approx(100 * theirs["eccv_r1"][way], abs=0.02)
        assert 5 < ours["cxc"][direction]["recall_at_1"] < 95


def _places(counts: list[int]) -> list[tuple[int, int]]:
    return [(image, place) for image, number in enumerate(counts) for place in range(number)]


def test_images_are_told_by_number_or_by_the_fields_order(judge: Any, tmp_path: Path) -> None:
    of_image = captions_by_image(judge)
    numbers, five = list(of_image), [5] * NUM_IMAGES
    stores = {
        "named": write_store(tmp_path / "named", [str(number) for number in numbers[::-1]], five),
        "bare": write_store(tmp_path / "bare", None, five),
        "others": write_store(tmp_path / "others", [str(row) for row in range(NUM_IMAGES)], five),
    }
    for name, store in stores.items():
        images, captions = coco_ids(open_split(store, "testall"), judge)
        assert images.tolist() == (numbers[::-1] if name == "named" else numbers)
        assert all(judge.coco_gts["t2i"][caption] == [images[place // 5]] for place, caption in enumerate(captions))
        if name != "named":
            assert captions.tolist() == judge.coco_ids.tolist()


def test_other_splits_are_refused(judge: Any, tmp_path: Path) -> None:
    numbers = list(captions_by_image(judge))
    named = [f"COCO_val2014_{number:012}.jpg" for number in numbers]
    few = write_store(tmp_path / "few", named[:40], [5] * 40)
    other = write_store(tmp_path / "other", ["COCO_val2014_000000000001.jpg", *named[1:]], [5] * NUM_IMAGES)
    lacking = write_store(tmp_path / "lacking", named, [4, *[5] * (NUM_IMAGES - 1)])
    for store, says in [
        (few, "has 40 images, 40 of them among those"),
        (other, "has 5,000 images, 4,999 of them among those"),
        (lacking, "has 4 captions; .* want COCO's first five"),
    ]:
        with pytest.raises(DataError, match=says):
            coco_ids(open_split(store, "testall"), judge)


def test_nan_is_refused(judge: Any, tmp_path: Path) -> None:
    assert judge is not None
    split = open_split(write_store(tmp_path / "store", None, [5] * NUM_IMAGES), "testall")
    images, captions = embeddings(1, split.image_of_caption)
    captions[-1, 3] = np.nan
    with pytest.raises(SimilarityError, match="NaN"):
        extended_evaluation(split, [EncodedSplit(images, captions)])


def test_the_command_judges_a_model(judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge is not None
    store = make_store(tmp_path / "store", {"testall": NUM_IMAGES, "dev": 10}, captions_per_image=5)
    model = make_model(tmp_path / "model", store)
    assert vsrn("evaluate", model, "--split", "testall", "--eccv", "--json") == 0
    extended = json.loads(capsys.readouterr().out)["extended"]
    assert extended["caveat"].startswith("VSRN was one of the five models")
    for judged, metrics in (
        ("cxc", {"recall_at_1", "recall_at_5", "recall_at_10"}),
        ("eccv_caption", {"map_at_r", "r_precision", "recall_at_1"}),
    ):
        assert extended[judged].keys() == {"image_to_text", "text_to_image"}
        for values in extended[judged].values():
            assert values.keys() == metrics
            # A model without training finds next to nothing among 5,000 images.
            assert all(0 <= value < 5 for value in values.values())
    assert vsrn("evaluate", model, "--split", "dev", "--eccv") == 2
    assert "has 10 images" in capsys.readouterr().err


def vsrn(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code
