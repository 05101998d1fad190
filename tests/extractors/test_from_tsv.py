"""Published features to a store: tables that the test writes, read once more by an obvious reader."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import json
import random
import sys
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from shy import vsrn

from vsrn.data.region_store import open_region_store
from vsrn.data.splits import open_split
from vsrn.errors import DataError
from vsrn.extractors import published_tsv as tsv_module
from vsrn.extractors.published import import_images
from vsrn.extractors.published_tsv import find_lines

Floats = npt.NDArray[np.float32]
FIELDS = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
F = 7


@dataclass(frozen=True)
class Row:
    image_id: str
    width: int
    height: int
    boxes: Floats
    features: Floats

    def line(self, **other: str) -> str:
        fields = {
            "image_id": self.image_id,
            "image_w": str(self.width),
            "image_h": str(self.height),
            "num_boxes": str(len(self.boxes)),
            "boxes": base64.b64encode(self.boxes.tobytes()).decode(),
            "features": base64.b64encode(self.features.tobytes()).decode(),
        }
        return "\t".join((fields | other).values()) + "\n"


def make_row(image_id: str, seed: int, *, boxes: int = 4, dim: int = F) -> Row:
    generator = np.random.default_rng(seed)
    width, height = (int(side) for side in generator.integers(200, 640, 2))
    corners = np.sort(generator.uniform(0, 1, (boxes, 2, 2)), axis=1) * [width, height]
    features = generator.exponential(2.0, (boxes, dim)).astype(np.float32)
    return Row(image_id, width, height, corners.reshape(boxes, 4).astype(np.float32), features)


def write_tsv(path: Path, rows: Sequence[Row | str]) -> Path:
    content = "".join(row if isinstance(row, str) else row.line() for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def read_obviously(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """Image -> features and boxes as fractions, the way everybody reads these files."""
    csv.field_size_limit(sys.maxsize)
    found = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for item in csv.DictReader(file, delimiter="\t", fieldnames=FIELDS):
            number, wide, high = (int(item[name]) for name in ("num_boxes", "image_w", "image_h"))
            boxes, features = (
                np.frombuffer(base64.decodebytes(item[name].encode()), np.float32).reshape(number, -1)
                for name in ("boxes", "features")
            )
            fractions = [[x / wide, y / high, x2 / wide, y2 / high] for x, y, x2, y2 in boxes.tolist()]
            found[item["image_id"]] = (features, np.array(fractions, np.float32))
    return found


def coco_json(path: Path, splits: dict[str, list[int]], *, with_numbers: bool = True) -> Path:
    images = [
        {
            "filename": f"COCO_val2014_{number:012}.jpg",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": f"caption {place} of {number}"} for place in range(2 + number % 2)],
        }
        | ({"cocoid": number} if with_numbers else {})
        for split, numbers in splits.items()
        for number in numbers
    ]
    path.write_text(json.dumps({"images": images}))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz"])
def test_a_store_holds_what_an_obvious_reader_finds(tmp_path: Path, ending: str) -> None:
    sizes = [10, 36, 17, 100, 11, 10, 42]
    rows = [make_row(f"{40 + place}", place, boxes=number) for place, number in enumerate(sizes)]
    first, second = write_tsv(tmp_path / f"0.{ending}", rows[:4]), write_tsv(tmp_path / f"1.{ending}", rows[4:])
    assert vsrn("import", first, second, "-o", tmp_path / "store", "--batch-size", "3") == 0
    store = open_region_store(tmp_path / "store", "photos")
    obvious = read_obviously(first) | read_obviously(second)
    assert store.ids == list(obvious) == [row.image_id for row in rows]
    assert store.features.shape == (7, 100, F)
    assert store.counts is not None
    assert store.counts.tolist() == sizes
    assert store.boxes is not None
    assert (store.info.extractor, store.info.fingerprint) == ("", "")
    for row, (features, boxes) in enumerate(obvious.values()):
        number = len(features)
        assert np.array_equal(store.features[row, :number], features.astype(np.float16))
        assert np.abs(store.boxes[row, :number] - boxes).max() < 1e-6
        assert not store.features[row, number:].any()


def test_where_all_photos_have_36_regions_there_are_no_counts(tmp_path: Path) -> None:
    table = write_tsv(tmp_path / "fix36.tsv", [make_row(str(n), n, boxes=36) for n in range(1, 6)])
    with find_lines([table], tmp_path) as lines:
        assert import_images(lines, tmp_path / "store", splits=["train"])[0].num_done == 5
    store = open_region_store(tmp_path / "store", "train")
    assert (store.counts, store.num_regions) == (None, 36)


@pytest.mark.parametrize("with_numbers", [True, False], ids=["cocoid", "name only"])
def test_a_karpathy_json_lays_out_splits_whatever_the_order_of_the_lines(tmp_path: Path, with_numbers: bool) -> None:
    splits = {"train": [9, 4, 581921], "restval": [7, 12], "test": [391895, 5, 22]}
    path = coco_json(tmp_path / "dataset.json", splits, with_numbers=with_numbers)
    numbers = [number for listed in splits.values() for number in listed if number != 5]
    random.Random(0).shuffle(numbers)
    table = write_tsv(tmp_path / "trainval.tsv", [make_row(str(number), number) for number in [*numbers, 1000]])
    store = tmp_path / "store"
    assert vsrn("import", table, "-o", store, "--captions", path, "--restval", "--batch-size", "2") == 0
    obvious = read_obviously(table)
    for split, listed in {"train": [9, 4, 581921, 7, 12], "test": [391895, 22]}.items():
        opened = open_split(store, split)
        assert opened.image_ids() == [f"val2014/COCO_val2014_{number:012}.jpg" for number in listed]
        for row, number in enumerate(listed):
            assert np.array_equal(opened.regions.features[row], obvious[str(number)][0].astype(np.float16))
            own = [opened.captions[place] for place in np.flatnonzero(opened.image_of_caption == row)]
            assert own == [f"caption {place} of {number}" for place in range(2 + number % 2)]
    skipped = json.loads((store / "test_skipped.json").read_text())
    assert [photo["id"] for photo in skipped] == ["val2014/COCO_val2014_000000000005.jpg"]
    assert "is not in the files" in skipped[0]["reason"]


def test_photos_are_found_by_file_name_and_splits_without_photos_are_left_out(tmp_path: Path) -> None:
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": f"a {name}"}]}
        for split, name in [("train", "1000092795"), ("val", "36979"), ("val", "667626_18933d713e")]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    names = ["667626_18933d713e.jpg", "0036979"]
    table = write_tsv(tmp_path / "val.tsv", [make_row(name, n) for n, name in enumerate(names)])
    with find_lines([table], tmp_path) as lines:
        (report,) = import_images(lines, tmp_path / "store", dataset=tmp_path / "dataset.json")
        assert (report.split, report.num_done, report.skipped) == ("val", 2, [])
        with pytest.raises(DataError, match=r"split 'train': it has photos such as 1000092795\.jpg, .* 667626"):
            import_images(lines, tmp_path / "store", dataset=tmp_path / "dataset.json", splits=["train"])
    assert open_split(tmp_path / "store", "val").image_ids() == ["36979.jpg", "667626_18933d713e.jpg"]


def test_lines_are_found_in_any_unicode_form(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": "summer"}]}
        for split, name in [("train", composed), ("val", apart)]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    for number, name in enumerate((composed, apart)):
        with find_lines([write_tsv(tmp_path / f"{number}.tsv", [make_row(name, number)])], tmp_path) as lines:
            reports = import_images(lines, tmp_path / f"store{number}", dataset=tmp_path / "dataset.json")
        assert [(report.split, report.num_done) for report in reports] == [("train", 1), ("val", 1)]


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz"])
def test_interrupted_anywhere_it_goes_on_to_the_same_store(tmp_path: Path, ending: str) -> None:
    table = write_tsv(tmp_path / f"many.{ending}", [make_row(str(n), n, boxes=2 + n % 3) for n in range(1, 10)])

    def interrupt(stop: int, split: str, done: int, total: int) -> None:
        assert (split, total) == ("photos", 9)
        if done >= stop:
            raise KeyboardInterrupt

    with find_lines([table], tmp_path / "whole") as lines:
        import_images(lines, tmp_path / "whole", batch_size=2)
    for stop in (0, 2, 6, 9):
        stopping = functools.partial(interrupt, stop)
        with pytest.raises(KeyboardInterrupt), find_lines([table], tmp_path / "broken") as lines:
            import_images(lines, tmp_path / "broken", batch_size=2, progress=stopping)
        assert not (tmp_path / "broken" / "photos_ims.npy").exists()
    with find_lines([table], tmp_path / "broken") as lines:
        assert import_images(lines, tmp_path / "broken", batch_size=2)[0].num_resumed == 9
        assert import_images(lines, tmp_path / "broken")[0].already_done
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def floats(*shape: int, value: float = 1.0) -> str:
    return base64.b64encode(np.full(shape, value, np.float32).tobytes()).decode()


GOOD = make_row("3", 3)
HOSTILE: list[tuple[str, str]] = [
    (GOOD.line(boxes="not base64!"), r"line 3: its boxes are not base64"),
    (GOOD.line(features=floats(4, F)[:-5]), r"line 3: its features are not base64"),
    (
        GOOD.line(features=floats(4, F)[:-4]),
        r"line 3: its features are \d+ bytes, which 4 boxes of float32 do not",
    ),
    (GOOD.line(features=""), r"line 3: its features are 0 bytes"),
    (GOOD.line(num_boxes="3"), r"line 3: its (boxes|features) are \d+ bytes, which 3 boxes"),
    (GOOD.line(num_boxes="2"), r"line 3: its boxes have 8 numbers each, not 4"),
    (
        GOOD.line(features=floats(4, 5)),
        r"line 3 has boxes and features of 5 numbers, but .*line 1 boxes and features of 7",
    ),
    (GOOD.line(features=floats(4, F, value=float("nan"))), r"line 3: its features hold NaN"),
    (GOOD.line(features=floats(4, F, value=7e4)), r"line 3: its features reach beyond 65,504"),
    (GOOD.line(boxes=floats(4, 4, value=float("inf"))), r"line 3: its boxes hold NaN or infinite"),
    (GOOD.line(boxes=floats(4, 4, value=900.0)), r"line 3: box \(900, 900, 900, 900\) does not lie in a photo of"),
    (GOOD.line(image_w="0"), r"line 3: image_w is '0', not a whole number"),
    (GOOD.line(image_h="4\u0663"), r"line 3: image_h is '4\u0663', not a whole number"),
    (GOOD.line(num_boxes="-4"), r"line 3: num_boxes is '-4'"),
    (GOOD.line(num_boxes="1000000"), r"line 3 speaks of 1,000,000 boxes"),
    (GOOD.line(image_id="0001"), r"line 3: image 1 has a line already \(.*line 1\)"),
    (GOOD.line(image_id=""), r"line 3 does not begin with the name"),
    (GOOD.line(image_id="\x1b[31m"), r"line 3 does not begin with the name"),
    (GOOD.line(image_id="x" * 500), r"line 3 does not begin with the name"),
    ("3\t500\t37", r"line 3 has 3 fields, not 6"),
    (GOOD.line().rpartition("\t")[0], r"line 3 has 5 fields, not 6"),
    (GOOD.line().rstrip() + "\tmore\n", r"line 3 has 7 fields, not 6"),
    (GOOD.line(features="A" * 9000), r"line 3 is longer than 0 MB"),
]


@pytest.mark.parametrize(("line", "says"), HOSTILE)
def test_a_wrong_line_is_named(
    tmp_path: Path, line: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tsv_module, "MAX_LINE_BYTES", 8000)
    table = write_tsv(tmp_path / "table.tsv", [make_row("1", 1), make_row("2", 2), line])
    assert vsrn("import", table, "-o", tmp_path / "store") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {table}, line 3")
    with pytest.raises(DataError, match=says), find_lines([table], tmp_path) as lines:
        import_images(lines, tmp_path / "other")
    assert said.isprintable()
    assert not (tmp_path / "store" / "photos_ims.npy").exists()


def test_files_that_are_no_tables_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress("".join(make_row(str(n), n).line() for n in range(1, 50)).encode())
    (tmp_path / "cut.tsv.gz").write_bytes(whole[:-200])
    (tmp_path / "empty.tsv").write_bytes(b"\n\n")
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.writestr("trainval_36.tsv", make_row("1", 1).line())
    (tmp_path / "photo.tsv").write_bytes(bytes(range(256)) * 50)
    good = write_tsv(tmp_path / "good.tsv", [make_row("1", 1)])
    other = write_tsv(tmp_path / "other.tsv", [make_row("1", 2)])
    mistakes: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "cut.tsv.gz"], "is damaged behind line"),
        ([tmp_path / "empty.tsv"], "holds no lines"),
        ([tmp_path / "table.zip"], "is a zip archive"),
        ([tmp_path / "photo.tsv"], "line 1 does not begin with the name"),
        ([tmp_path / "nowhere.tsv"], "cannot be read (No such file"),
        ([tmp_path], "holds no .npy and .npz files"),
        ([good, other], "image 1 has a line already"),
        ([], "no files are named"),
        ([good, "--splits", "test", "val"], "with --captions"),
        ([good, "--restval"], "with --captions"),
    ]
    for arguments, says in mistakes:
        assert vsrn("import", *arguments, "-o", tmp_path / "store") == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert says in last
    assert not list((tmp_path / "store").glob("*"))


def test_a_repaired_file_is_gone_on_with(tmp_path: Path) -> None:
    rows: list[Row | str] = [make_row(str(n), n) for n in range(1, 9)]
    broken = write_tsv(tmp_path / "table.tsv", [*rows[:7], make_row("8", 8).line(features="AAAA")])
    with pytest.raises(DataError, match="line 8"), find_lines([broken], tmp_path) as lines:
        import_images(lines, tmp_path / "store", batch_size=2)
    write_tsv(broken, rows)
    with find_lines([broken], tmp_path) as lines:
        (report,) = import_images(lines, tmp_path / "store", batch_size=2)
    assert (report.num_resumed, report.num_done) == (6, 8)
