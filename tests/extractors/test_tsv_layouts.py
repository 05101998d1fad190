"""Tables of features in the layouts of LXMERT, VinVL and Oscar, and the slips that people's tables have."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shy import vsrn

from vsrn.data.region_store import open_region_store

N, F = 3, 5
WIDTH, HEIGHT = 640, 480


def b64(values: Any, kind: str = "<f4") -> str:
    return base64.b64encode(np.asarray(values, kind).tobytes()).decode()


def image(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    fractions = np.sort(generator.uniform(0, 1, (N, 2, 2)), axis=1).reshape(N, 4).astype(np.float32)
    return {
        "features": generator.integers(-99, 99, (N, F)) / 2,
        "boxes": fractions * [WIDTH, HEIGHT, WIDTH, HEIGHT],
        "classes": generator.integers(0, 1600, N),
        "attributes": generator.integers(0, 400, N),
        "scores": generator.uniform(0, 1, N).astype(np.float32),
    }


def lxmert_fields(name: str, number: int, integers: str = "<i8") -> list[str]:
    said = image(number)
    return [
        *(name, str(HEIGHT), str(WIDTH), b64(said["classes"], integers), b64(said["scores"])),
        *(b64(said["attributes"], integers), b64(said["scores"]), str(N), b64(said["boxes"]), b64(said["features"])),
    ]


def bottom_up_fields(name: str, number: int) -> list[str]:
    said = image(number)
    return [name, str(WIDTH), str(HEIGHT), str(N), b64(said["boxes"]), b64(said["features"])]


def write(path: Path, *lines: list[str] | str, end: str = "\n", start: str = "") -> Path:
    content = start + "".join((line if isinstance(line, str) else "\t".join(line)) + end for line in lines)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("integers", ["<i8", "<i4"])
def test_lxmerts_table_gives_classes_attributes_and_confidence(tmp_path: Path, integers: str) -> None:
    lines = [lxmert_fields(f"COCO_val2014_{number:012}", number, integers) for number in (7, 8)]
    table = write(tmp_path / "val2014_obj36.tsv", *lines)
    for option, content in (("--classes", "thing"), ("--attributes", "kind")):
        names = "".join(f"{content} {number}\n" for number in range(1600 if option == "--classes" else 400))
        (tmp_path / option).write_text(names)
    options = [each for option in ("--classes", "--attributes") for each in (option, tmp_path / option)]
    assert vsrn("import", table, "-o", tmp_path / "store", *options) == 0
    store = open_region_store(tmp_path / "store", "photos")
    assert store.ids == ["COCO_val2014_000000000007", "COCO_val2014_000000000008"]
    for row, number in enumerate((7, 8)):
        regions, said = store.read_regions(row), image(number)
        assert np.array_equal(regions.features, said["features"].astype(np.float16))
        assert np.allclose(regions.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT], said["boxes"], atol=1e-2)
        assert regions.classes is not None
        assert regions.attributes is not None
        assert regions.scores is not None
        assert regions.classes.tolist() == said["classes"].tolist()
        assert regions.attributes.tolist() == said["attributes"].tolist()
        assert regions.scores.tolist() == said["scores"].tolist()
        pairs = zip(said["attributes"], said["classes"], strict=True)
        assert store.names.labels_of(regions) == [f"kind {how} thing {what}" for how, what in pairs]


def vinvl_objects(number: int) -> list[dict[str, Any]]:
    said = image(number)
    names = ["dog", "tree", "sky"]
    return [
        {
            "rect": said["boxes"][place].tolist(),
            "class": names[(number + place) % 3],
            "conf": float(said["scores"][place]),
            "feature": b64(said["features"][place]),
            "attributes": ["old", "brown"],
            "attr_scores": [0.2, 0.7],
        }
        for place in range(N)
    ]


@pytest.mark.parametrize("sized", [True, False])
def test_vinvls_predictions_give_boxes_and_names(
    tmp_path: Path, sized: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def content(number: int) -> str:
        objects = vinvl_objects(number)
        return json.dumps({"image_h": HEIGHT, "image_w": WIDTH, "objects": objects} if sized else objects)

    table = write(tmp_path / "predictions.tsv", *[[str(number), content(number)] for number in (11, 12)])
    assert vsrn("import", table, "-o", tmp_path / "store") == 0
    assert ("no boxes are kept" in capsys.readouterr().err) == (not sized)
    store = open_region_store(tmp_path / "store", "photos")
    assert store.names.classes == ["dog", "sky", "tree"]
    for row, number in enumerate((11, 12)):
        regions, said = store.read_regions(row), image(number)
        assert np.array_equal(regions.features, said["features"].astype(np.float16))
        names = [("dog", "tree", "sky")[(number + place) % 3] for place in range(N)]
        assert store.names.labels_of(regions) == [f"brown {name}" for name in names]
        if sized:
            assert np.allclose(regions.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT], said["boxes"], atol=1e-2)
    assert (store.boxes is not None) == sized


def test_vinvls_and_oscars_tables_of_features_alone(tmp_path: Path) -> None:
    features = b64(image(1)["features"])
    as_json = write(tmp_path / "features.tsv", ["1", json.dumps({"num_boxes": N, "features": features})])
    as_fields = write(tmp_path / "oscar.tsv", ["2", str(N), b64(image(2)["features"])])
    assert vsrn("import", as_json, as_fields, "-o", tmp_path / "store") == 0
    store = open_region_store(tmp_path / "store", "photos")
    assert store.ids == ["1", "2"]
    assert store.boxes is None
    for row in (0, 1):
        assert np.array_equal(store.features[row], image(row + 1)["features"].astype(np.float16))


def as_python_3_wrote(fields: list[str]) -> list[str]:
    return [*fields[:4], *(f"b'{field}'" for field in fields[4:])]


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
@pytest.mark.parametrize(
    ("lines", "start", "end", "says"),
    [
        ([as_python_3_wrote(bottom_up_fields("5", 5))], "", "\n", ""),
        ([bottom_up_fields("b'5'", 5)], "", "\n", ""),
        ([bottom_up_fields("5", 5)], "\ufeff", "\r\n", ""),
        ([["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"], bottom_up_fields("5", 5)], "", "\n",
         "line 1 names the fields"),
        ([["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"], bottom_up_fields("5", 5)], "\ufeff",
         "\r\n", "line 1 names the fields"),
        # A head line tells the order, whatever it is.
        ([["features", "num_boxes", "image_h", "image_w", "image_id", "boxes"],
          [bottom_up_fields("5", 5)[place] for place in (5, 3, 2, 1, 0, 4)]], "", "\n", "names the fields"),
        ([bottom_up_fields("5", 5), bottom_up_fields("5", 5)], "", "\n", "1 images have a second line"),
        ([lxmert_fields("5", 5), lxmert_fields("5", 5)], "\ufeff", "\r\n", "1 images have a second line"),
    ],
)  # fmt: skip
def test_slips_of_tables_are_read(
    tmp_path: Path, lines: list[list[str]], start: str, end: str, says: str, ending: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table = write(tmp_path / f"table{ending}", *lines, start=start, end=end)
    assert vsrn("import", table, "-o", tmp_path / "store") == 0
    assert says in capsys.readouterr().err
    store = open_region_store(tmp_path / "store", "photos")
    assert store.ids == ["5"]
    regions, said = store.read_regions(0), image(5)
    assert np.array_equal(regions.features, said["features"].astype(np.float16))
    assert np.allclose(regions.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT], said["boxes"], atol=1e-2)


def test_an_image_without_boxes_is_skipped_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ["6", str(WIDTH), str(HEIGHT), "0", "", ""]
    table = write(tmp_path / "table.tsv", empty, bottom_up_fields("5", 5))
    assert vsrn("import", table, "-o", tmp_path / "store") == 0
    assert "line 1: image 6 has no regions" in capsys.readouterr().out
    assert open_region_store(tmp_path / "store", "photos").ids == ["5"]
    (skipped,) = json.loads((tmp_path / "store" / "photos_skipped.json").read_text())
    assert skipped["id"] == "6"
    assert vsrn("import", write(tmp_path / "none.tsv", empty), "-o", tmp_path / "other") == 2
    assert "no image has any region" in capsys.readouterr().err


def test_two_lines_that_differ_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "table.tsv", bottom_up_fields("5", 5), bottom_up_fields("5", 6))
    assert vsrn("import", table, "-o", tmp_path / "store") == 2
    assert "line 2: image 5 has a line already (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "its JSON cannot be read"),
        ("[" * 100_000, "its JSON cannot be read"),
        ('{"num_boxes": 2, "features": "AAAA"}', "which 2 boxes of float32 do not fill"),
        ('{"num_boxes": -2, "features": "AAAA"}', "speaks of -2 boxes"),
        ('{"num_boxes": 1, "features": "\u00e4"}', "not base64"),
        (json.dumps([{"feature": b64([1, 2])}, {"feature": b64([1])}]), "different sizes"),
        (json.dumps({"image_w": 9, "image_h": 9, "objects": [{"feature": b64([1]), "rect": [0, 0, 50, 5]}]}),
         "does not lie in a photo of 9 x 9"),
    ],
)  # fmt: skip
def test_a_wrong_json_is_named_by_its_line(
    tmp_path: Path, content: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "table.tsv", ["5", content])
    assert vsrn("import", table, "-o", tmp_path / "store") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {table}, line 1")
    assert says in said


def test_old_spellings_run_and_say_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "table.tsv", bottom_up_fields("5", 5))
    more = write(tmp_path / "more.tsv", bottom_up_fields("6", 6))
    assert vsrn("extract", "-o", tmp_path / "a", "--splits", "train", "--from-tsv", table, more) == 0
    assert capsys.readouterr().err.count("`vsrn import`") == 1
    assert vsrn("import-tsv", table, more, "-o", tmp_path / "b", "--splits", "train") == 0
    for name in ("a", "b"):
        assert open_region_store(tmp_path / name, "train").ids == ["5", "6"]
