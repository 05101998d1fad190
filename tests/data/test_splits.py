"""The layouts of a split on disk, and every way its files can be wrong."""

from __future__ import annotations

import json
import struct
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsrn.data.region_store import open_region_store
from vsrn.data.splits import Split, hold_out, open_split
from vsrn.errors import DataError
from vsrn.metrics import FloatArray

N, F = 3, 4


def write_split(folder: Path, features: FloatArray, captions: list[str], split: str = "train") -> Path:
    np.save(folder / f"{split}_ims.npy", features)
    (folder / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    return folder


def features_of(rows: int, dtype: str = "float32", seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(rows, N, F)).astype(dtype)


def numbered(count: int) -> list[str]:
    return [f"caption {number}" for number in range(count)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_five_captions_a_row_are_read_as_they_lie(tmp_path: Path, dtype: str) -> None:
    features = features_of(4, dtype)
    split = open_split(write_split(tmp_path, features, numbered(20)), "train")
    assert (split.num_images, len(split.captions)) == (4, 20)
    assert split.image_of_caption.tolist() == [number // 5 for number in range(20)]
    read, counts = split.read_images(np.array([3, 0, 3]))
    assert read.dtype == dtype
    assert counts is None
    np.testing.assert_array_equal(read, features[[3, 0, 3]])


@pytest.mark.parametrize("dtype", [">f2", ">f4", "<f8", ">f8", "longdouble"])
def test_every_size_and_byte_order_of_floats_is_read_by_the_row(tmp_path: Path, dtype: str) -> None:
    features = features_of(40).astype(dtype)
    write_split(tmp_path, features, numbered(40))
    np.save(tmp_path / "train_boxes.npy", np.full((40, N, 4), 0.25, ">f8"))
    split = open_split(tmp_path, "train")
    assert isinstance(split.regions.features, np.memmap)
    read, _ = split.read_images(np.array([30, 7]))
    assert read.dtype == (np.float16 if features.itemsize == 2 else np.float32)
    assert torch.from_numpy(read).tolist() == features[[30, 7]].astype(read.dtype).tolist()
    regions = split.regions.read_regions(7)
    assert torch.from_numpy(regions.boxes).tolist() == [[0.25] * 4] * N


def test_a_wide_float_beyond_float32_is_named_by_its_row(tmp_path: Path) -> None:
    features = features_of(3).astype(np.float64)
    features[1, 0, 0] = 1e300
    split = open_split(write_split(tmp_path, features, numbered(3)), "train")
    with pytest.raises(DataError, match="row 1 holds NaN or infinite"):
        split.read_images(np.arange(3))


def test_a_folder_whose_splits_lie_in_precomp_is_that_folder(tmp_path: Path) -> None:
    write_split(made(tmp_path / "precomp"), features_of(2), numbered(4))
    split = open_split(tmp_path, "train")
    assert (split.folder, len(split.captions)) == (tmp_path / "precomp", 4)


@settings(max_examples=60, deadline=None)
@given(captions_of=st.lists(st.integers(1, 4), min_size=1, max_size=6), alike=st.booleans())
def test_rows_repeated_for_each_caption_are_one_image(
    tmp_path_factory: pytest.TempPathFactory, captions_of: list[int], alike: bool
) -> None:
    images = features_of(len(captions_of))
    if alike:
        # Different images may begin alike: only the whole row tells.
        images[:, 0] = images[0, 0]
    features = np.concatenate([np.repeat(image[None], n, axis=0) for image, n in zip(images, captions_of, strict=True)])
    folder = write_split(tmp_path_factory.mktemp("repeats"), features, numbered(len(features)))
    split = open_split(folder, "train")
    owners = [image for image, n in enumerate(captions_of) for _ in range(n)]
    assert split.num_images == len(captions_of)
    assert split.image_of_caption.tolist() == owners
    np.testing.assert_array_equal(split.read_images(np.arange(split.num_images))[0], images)


@pytest.mark.parametrize("stated", [[2, 1, 4], 2])
def test_json_says_how_many_captions_each_image_has(tmp_path: Path, stated: int | list[int]) -> None:
    per_image = [stated] * 3 if isinstance(stated, int) else stated
    write_split(tmp_path, features_of(3), numbered(sum(per_image)))
    (tmp_path / "train.json").write_text(json.dumps({"extractor": "grid", "captions_per_image": stated}))
    split = open_split(tmp_path, "train")
    assert split.image_of_caption.tolist() == [image for image, n in enumerate(per_image) for _ in range(n)]
    assert split.regions.info.extractor == "grid"


def test_equal_neighbours_stay_two_images_where_the_json_says_so(tmp_path: Path) -> None:
    write_split(tmp_path, np.repeat(features_of(1), 2, axis=0), numbered(2))
    assert open_split(tmp_path, "train").num_images == 1
    (tmp_path / "train.json").write_text('{"captions_per_image": 1}')
    assert open_split(tmp_path, "train").num_images == 2


def test_ten_crop_rows_are_one_region(tmp_path: Path) -> None:
    features = features_of(4)[:, 0]
    split = open_split(write_split(tmp_path, features, numbered(8)), "train")
    assert (split.regions.num_regions, split.regions.feature_dim) == (1, F)
    np.testing.assert_array_equal(split.read_images(np.arange(4))[0], features[:, None])


def test_counts_say_how_many_regions_of_a_row_are_real(tmp_path: Path) -> None:
    np.save(
        write_split(tmp_path, features_of(3), numbered(6)) / "train_counts.npy", np.array([1, 3, 2], dtype=np.int16)
    )
    _, counts = open_split(tmp_path, "train").read_images(np.array([2, 0]))
    assert counts is not None
    assert counts.tolist() == [2, 1]


def test_ids_of_rows_are_kept_and_ids_of_captions_say_nothing(tmp_path: Path) -> None:
    write_split(tmp_path, features_of(3), numbered(6))
    assert open_split(tmp_path, "train").image_ids() == ["0", "1", "2"]
    (tmp_path / "train_ids.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    assert open_split(tmp_path, "train").image_ids() == ["a.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "train_ids.txt").write_text("".join(f"{number}\n" for number in range(6)))
    assert open_split(tmp_path, "train").image_ids() == ["0", "1", "2"]


def held_out(tmp_path: Path, ids: str, listed: bytes) -> list[str]:
    write_split(tmp_path, features_of(3), numbered(6))
    (tmp_path / "train_ids.txt").write_text(ids)
    (tmp_path / "held-out.txt").write_bytes(listed)
    return hold_out(open_split(tmp_path, "train"), tmp_path / "held-out.txt")[1].image_ids()


COCO = ["val2014/COCO_val2014_000000391895.jpg", "b.jpg", "c d.jpg"]


@pytest.mark.parametrize(
    "listed",
    [b"391895\nb", b"\xef\xbb\xbfCOCO_val2014_000000391895.jpg\r\nphotos/b.JPG\r\n\r\n", b"391895\n\nb.jpg\nb\n"],
)
def test_a_list_of_held_out_images_may_use_any_of_their_names(tmp_path: Path, listed: bytes) -> None:
    assert held_out(tmp_path, "\n".join(COCO), listed) == COCO[:2]
    assert held_out(tmp_path, "391895\nb\nc d\n", listed) == ["391895", "b"]
    (tmp_path / "id_mapping.json").write_text(json.dumps(dict(zip("789", COCO, strict=True))))
    assert held_out(tmp_path, "7\n8\n9\n", listed) == ["7", "8"]


def test_a_list_of_rows_names_no_files(tmp_path: Path) -> None:
    assert held_out(tmp_path, "", b"2\n") == ["2"]
    with pytest.raises(DataError, match=r"does not have, such as 2\.jpg"):
        held_out(tmp_path, "", b"2.jpg\n")


@pytest.mark.parametrize(("on_disk", "asked"), [("dev", "val"), ("val", "dev"), ("val", "val"), ("testall", "testall")])
def test_val_and_dev_stand_for_each_other(tmp_path: Path, on_disk: str, asked: str) -> None:
    write_split(tmp_path, features_of(2), numbered(4), on_disk)
    assert open_split(tmp_path, asked).name == on_disk


def test_a_split_that_is_there_goes_before_its_alias(tmp_path: Path) -> None:
    write_split(tmp_path, features_of(2), numbered(4), "dev")
    write_split(tmp_path, features_of(3), numbered(6), "val")
    assert (open_split(tmp_path, "dev").num_images, open_split(tmp_path, "val").num_images) == (2, 3)


def test_captions_keep_their_letters_and_lose_spaces_and_marks_around_them(tmp_path: Path) -> None:
    write_split(tmp_path, features_of(2), [])
    text = "\ufeffA café.\r\n  Two\u2028lines\x85or one?  \r\n"
    (tmp_path / "train_caps.txt").write_bytes(text.encode())
    assert open_split(tmp_path, "train").captions == ["A café.", "Two\u2028lines\x85or one?"]


@pytest.mark.parametrize("end", [b"\n", b"\n\n", b"\r\n\r\n", b"\n  \n\t\n"])
def test_blank_lines_at_the_end_are_no_captions(tmp_path: Path, end: bytes) -> None:
    write_split(tmp_path, features_of(2), [])
    (tmp_path / "train_caps.txt").write_bytes(b"one\ntwo" + end)
    assert open_split(tmp_path, "train").captions == ["one", "two"]


def damage(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def save(name: str, array: Any, *, allow_pickle: bool = False) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, array, allow_pickle=allow_pickle)


def save_archive(folder: Path) -> None:
    np.savez(folder / "archive.npz", features=features_of(4))
    (folder / "archive.npz").replace(folder / "train_ims.npy")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rename(name: str, other: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        (folder / name).rename(folder / other)

    return move


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def truncate(name: str, size: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return cut


def header(shape: str, kind: str = "<f4") -> Callable[[Path], None]:
    """Features whose header claims this shape, before 64 bytes of numbers."""
    said = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode()
    content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(said)) + said + bytes(64)
    return damage("train_ims.npy", content)


def move_below(folder: Path) -> None:
    (folder / "train_ims.npy").rename(made(folder / "f30k_precomp") / "train_ims.npy")


GOOD_CAPTIONS = "".join(f"caption {number}\n" for number in range(8)).encode()
BAD_INPUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "no features": (remove("train_ims.npy"), "holds no split"),
    "misnamed features": (rename("train_ims.npy", "trian_ims.npy"), r"has no split 'train'; it has trian\..*'trian'"),
    "no captions": (remove("train_caps.txt"), r"there is no .*train_caps\.txt"),
    "misnamed captions": (rename("train_caps.txt", "train_cap.txt"), r"there is no .*train_caps\.txt"),
    "a caption too few": (damage("train_caps.txt", GOOD_CAPTIONS[:-10]), r"7 captions and train_ims\.npy 4 images"),
    "fewer captions than images": (damage("train_caps.txt", b"one\ntwo\n"), r"2 captions and train_ims\.npy 4 images"),
    "no images": (save("train_ims.npy", np.zeros((0, N, F), dtype=np.float32)), r"train_(ims|caps)"),
    "an empty caption": (damage("train_caps.txt", b"one\n\nthree\nfour\n"), r"train_caps\.txt, line 2: .*empty"),
    "a caption of spaces": (damage("train_caps.txt", b"one\ntwo\n \t \nfour\n"), r"line 3: .*empty"),
    "an empty last caption": (damage("train_caps.txt", b"one\ntwo\nthree\n\n\n"), r"do not divide"),
    "no captions at all": (damage("train_caps.txt", b""), r"train_caps\.txt holds no captions"),
    "latin-1": (damage("train_caps.txt", b"one\ntwo\na caf\xe9\nfour\n"), r"train_caps\.txt, line 3: not UTF-8"),
    "utf-16": (damage("train_caps.txt", "one\ntwo\n".encode("utf-16")), r"train_caps\.txt is UTF-16 text"),
    "cut in the numbers": (truncate("train_ims.npy", 200), r"train_ims\.npy is not a readable \.npy array"),
    "cut in the header": (truncate("train_ims.npy", 30), r"train_ims\.npy is not a readable \.npy array"),
    "an empty file": (truncate("train_ims.npy", 0), r"train_ims\.npy is not a readable \.npy array"),
    "a negative number of rows": (header("(-4, 3, 4)"), r"train_ims\.npy is not a readable \.npy array"),
    "two negative numbers": (header("(-4, -3, 4)"), r"train_ims\.npy is not a readable \.npy array"),
    "more rows than a number holds": (header(f"({10**27}, 3, 4)"), r"train_ims\.npy is not a readable \.npy array"),
    "more numbers than memory": (header(f"({2**40}, {2**40}, 4)"), r"train_ims\.npy is not a readable \.npy array"),
    "a number without end": (header("9" * 5000), r"train_ims\.npy is not a readable \.npy array"),
    "a header too deep": (header("(" * 9000), r"train_ims\.npy is not a readable \.npy array"),
    "a header of objects": (header("(4, 3, 4)", "|O"), r"train_ims\.npy holds Python objects"),
    "boxes that are no numbers": (save("train_boxes.npy", np.zeros((4, N, 4), dtype="S4")), r"holds \|S4; .* numbers"),
    "text for features": (damage("train_ims.npy", b"0.1 0.2\n"), r"train_ims\.npy is not a readable \.npy array"),
    "an archive for features": (
        save_archive,
        r"train_ims\.npy is an \.npz archive; .* `vsrn import .*train_ims\.npy -o STORE`",
    ),
    "objects": (
        save("train_ims.npy", np.full((4, N, F), None), allow_pickle=True),
        r"train_ims\.npy holds Python objects.* `vsrn import .*train_ims\.npz -o STORE`",
    ),
    "an archive beside": (
        rename("train_ims.npy", "train_ims.npz"),
        r"holds no split: .* `vsrn import .*train_ims\.npz -o STORE`",
    ),
    "an archive of the split beside another": (
        lambda folder: (folder / "train_ims.npy").rename(folder / "dev_ims.npy").with_name("train_ims.h5").touch(),
        r"has no split 'train'; it has dev\. .* `vsrn import .*train_ims\.h5 -o STORE`",
    ),
    "a file an image": (
        lambda folder: (folder / "train_ims.npy").rename(folder / "17.npy").with_name("18.npy").touch(),
        r"holds no split: .*one file an image.* `vsrn import [^ ]* -o STORE`",
    ),
    "a folder of stores": (
        move_below,
        r"holds no split: .*the region stores in it are .*f30k_precomp; name one",
    ),
    "whole numbers": (save("train_ims.npy", np.zeros((4, N, F), dtype=np.int64)), r"holds int64; .*float16 or float32"),
    "bfloat16": (save("train_ims.npy", np.zeros((4, N, F), dtype="V2")), r"holds bfloat16.*float16 or float32"),
    "four dimensions": (save("train_ims.npy", np.zeros((4, N, F, 1), dtype=np.float32)), "2 or 3 dimensions"),
    "one dimension": (save("train_ims.npy", np.zeros(4, dtype=np.float32)), "2 or 3 dimensions"),
    "counts of fewer rows": (
        save("train_counts.npy", np.array([1, 2])),
        r"train_counts\.npy must hold 4 whole numbers",
    ),
    "a count of zero": (save("train_counts.npy", np.array([1, 2, 0, 1])), "between 1 and 3"),
    "a count too large": (save("train_counts.npy", np.array([1, 2, 4, 1])), "between 1 and 3"),
    "counts that are no whole numbers": (save("train_counts.npy", np.array([1, 2, 2.5, np.nan])), "whole numbers"),
    "boxes of other regions": (save("train_boxes.npy", np.zeros((4, N + 1, 4))), r"train_boxes\.npy has shape"),
    "scores of other rows": (save("train_scores.npy", np.zeros((3, N))), r"train_scores\.npy has shape"),
    "json cut short": (damage("train.json", b'{"extractor": "gr'), r"train\.json cannot be read"),
    "json that is not utf-8": (damage("train.json", b'{"extractor": "\xe9"}'), r"train\.json cannot be read"),
    "json nested too deep": (damage("train.json", b"[" * 100_000), r"train\.json cannot be read"),
    "an unknown field in the json": (damage("train.json", b'{"extracter": "grid"}'), r"train\.json.*extracter"),
    "json of other captions": (
        damage("train.json", b'{"captions_per_image": 3}'),
        r"12 captions for 4 images.* 8 lines",
    ),
    "json of other images": (damage("train.json", b'{"captions_per_image": [4, 4]}'), r"8 captions for 2 images"),
    "json with an image without": (damage("train.json", b'{"captions_per_image": [4, 4, 0, 0]}'), r"train\.json"),
    "json with an absurd number": (damage("train.json", b'{"captions_per_image": [4, 4, 0, 1e400]}'), r"train\.json"),
    "json with a huge number": (
        damage("train.json", b'{"captions_per_image": [4, 4, 4, ' + b"9" * 30 + b"]}"),
        r"train\.json",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_sentence_naming_the_file(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    write_split(tmp_path, features_of(4), numbered(8))
    assert open_split(tmp_path, "train").num_images == 4
    spoil(tmp_path)
    with pytest.raises(DataError, match=says) as refusal:
        open_split(tmp_path, "train")
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_folder_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; make a region store with `vsrn extract"):
        open_split(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_feature_that_is_no_number_is_named_by_its_row_when_it_is_read(
    tmp_path: Path, bad: float, dtype: str
) -> None:
    features = features_of(5, dtype)
    features[3, 1, 2] = bad
    write_split(tmp_path, features, numbered(10))
    (tmp_path / "train_ids.txt").write_text("".join(f"photo{row}.jpg\n" for row in range(5)))
    split = open_split(tmp_path, "train")
    split.read_images(np.array([0, 4]))
    with pytest.raises(DataError, match=r"train_ims\.npy: row 3 \(photo3\.jpg\) holds NaN or infinite"):
        split.read_images(np.array([4, 3, 0]))


def test_infinities_of_both_signs_are_named_and_large_numbers_are_not(tmp_path: Path) -> None:
    features = features_of(3)
    features[0] = 3e38
    features[2, 0, :2] = np.inf, -np.inf
    split = open_split(write_split(tmp_path, features, numbered(6)), "train")
    np.testing.assert_array_equal(split.read_images(np.array([0, 1]))[0], features[:2])
    with pytest.raises(DataError, match="row 2 holds NaN or infinite"):
        split.read_images(np.array([0, 2]))


@settings(max_examples=60, deadline=None)
@given(captions_of=st.lists(st.integers(1, 4), min_size=2, max_size=7), data=st.data())
def test_a_part_of_a_split_keeps_who_belongs_to_whom(
    tmp_path_factory: pytest.TempPathFactory, captions_of: list[int], data: st.DataObject
) -> None:
    split = ragged_split(tmp_path_factory.mktemp("only"), captions_of)
    images = data.draw(
        st.permutations(range(len(captions_of))).flatmap(lambda all_: st.just(all_[: len(all_) // 2 + 1]))
    )
    part = split.only(np.array(images))
    wanted = [
        (images.index(int(owner)), caption)
        for owner, caption in zip(split.image_of_caption, split.captions, strict=True)
        if owner in images
    ]
    assert list(zip(part.image_of_caption.tolist(), part.captions, strict=True)) == wanted
    assert part.image_ids() == [split.image_ids()[image] for image in images]
    np.testing.assert_array_equal(part.read_images(np.arange(len(images)))[0], split.read_images(np.array(images))[0])
    again = part.only(np.array([len(images) - 1]))
    assert again.captions == [c for o, c in zip(split.image_of_caption, split.captions, strict=True) if o == images[-1]]


@settings(max_examples=60, deadline=None)
@given(captions_of=st.lists(st.integers(1, 3), min_size=2, max_size=7), data=st.data())
def test_holding_out_parts_a_split_in_two_without_loss(
    tmp_path_factory: pytest.TempPathFactory, captions_of: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("held-out")
    split = ragged_split(folder, captions_of)
    number = data.draw(st.integers(1, len(captions_of) - 1))
    chosen = data.draw(st.permutations(split.image_ids()))[:number]
    (folder / "list.txt").write_text("\n".join(chosen) + "\n")
    rest, held = hold_out(split, folder / "list.txt")
    assert sorted(held.image_ids()) == sorted(chosen)
    assert sorted(held.image_ids() + rest.image_ids()) == sorted(split.image_ids())
    assert sorted(pairs(held) + pairs(rest)) == sorted(pairs(split))


@pytest.mark.parametrize(("stored", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_list_of_held_out_images_may_be_in_another_unicode_form(
    tmp_path: Path, stored: Literal["NFC", "NFD"], listed: Literal["NFC", "NFD"]
) -> None:
    ragged_split(tmp_path, [1, 2])
    names = [unicodedata.normalize(stored, name) for name in ("été.jpg", "Übung.jpg")]
    (tmp_path / "train_ids.txt").write_text("\n".join(names), encoding="utf-8")
    (tmp_path / "list.txt").write_text(unicodedata.normalize(listed, "Übung.jpg"), encoding="utf-8")
    rest, held = hold_out(open_split(tmp_path, "train"), tmp_path / "list.txt")
    assert (rest.image_ids(), held.image_ids()) == (names[:1], names[1:])


@pytest.mark.parametrize(
    ("listed", "says"),
    [("photo9.jpg\nphoto0.jpg\n", r"lists 1 images.* such as photo9\.jpg"), ("", "some of the images"), (None, "all")],
)
def test_a_list_of_held_out_images_that_does_not_fit_is_refused(tmp_path: Path, listed: str | None, says: str) -> None:
    split = ragged_split(tmp_path, [1, 2])
    path = tmp_path / "list.txt"
    path.write_text("\n".join(split.image_ids()) if listed is None else listed)
    with pytest.raises(DataError, match=rf"list\.txt .*{says}"):
        hold_out(split, path)
    with pytest.raises(DataError, match=r"there is no list .*none\.txt"):
        hold_out(split, tmp_path / "none.txt")


@pytest.mark.parametrize("shape", [(5, N, F), (5, F)])
def test_features_stay_on_disk(tmp_path: Path, shape: tuple[int, ...]) -> None:
    features = np.ones(shape, dtype=np.float16)
    split = open_split(write_split(tmp_path, features, numbered(10)), "train")
    part = split.only(np.array([1, 3]))
    for one in (split, part):
        assert isinstance(one.regions.features, np.memmap)
        assert not one.regions.features.flags.writeable


@pytest.mark.parametrize("captions_per_row", [1, 2])
def test_opening_and_reading_a_few_rows_of_a_huge_file_takes_little_memory(
    tmp_path: Path, captions_per_row: int
) -> None:
    # 40,000 rows of 36 regions of 2,048 numbers: 11.8 GB of zeros that are not on the disk either.
    rows, regions, numbers = 40_000, 36, 2048
    huge = np.lib.format.open_memmap(
        tmp_path / "train_ims.npy", mode="w+", dtype=np.float32, shape=(rows, regions, numbers)
    )
    # No two neighbours are alike, as in a real file.
    huge[::500, 0, 0] = 1.0
    del huge
    (tmp_path / "train_caps.txt").write_text("a\n" * (captions_per_row * rows // 500 * 500))
    (tmp_path / "train.json").write_text(json.dumps({"captions_per_image": captions_per_row}))
    tracemalloc.start()
    try:
        split = open_split(tmp_path, "train")
        batch, _ = split.read_images(np.array([0, 500, 39_999]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch[:, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert peak < 16 * 2**20


def test_looking_for_repeated_rows_does_not_read_the_features(tmp_path: Path) -> None:
    rows, regions, numbers = 2_000, 4, 2048
    images = np.random.default_rng(0).normal(size=(rows // 4, regions, numbers)).astype(np.float16)
    write_split(tmp_path, np.repeat(images, 4, axis=0), ["a"] * rows)
    del images
    tracemalloc.start()
    try:
        split = open_split(tmp_path, "train")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert split.num_images == rows // 4
    # The features are 33 MB, a first region of each row 8 MB.
    assert peak < 2 * 2**20


def test_a_store_without_captions_opens_as_regions(tmp_path: Path) -> None:
    np.save(tmp_path / "test_ims.npy", features_of(3))
    boxes = np.random.default_rng(0).random((3, N, 4)).astype(np.float32)
    np.save(tmp_path / "test_boxes.npy", boxes)
    store = open_region_store(tmp_path, "test")
    assert (len(store), store.num_regions, store.feature_dim, store.ids) == (3, N, F, [])
    np.testing.assert_array_equal(store.boxes, boxes)


def ragged_split(folder: Path, captions_of: list[int]) -> Split:
    """A split whose images have these numbers of captions; every caption names its image."""
    captions = [f"photo{image}.jpg, caption {n}" for image, count in enumerate(captions_of) for n in range(count)]
    write_split(folder, features_of(len(captions_of)), captions)
    (folder / "train_ids.txt").write_text("".join(f"photo{image}.jpg\n" for image in range(len(captions_of))))
    (folder / "train.json").write_text(json.dumps({"captions_per_image": captions_of}))
    return open_split(folder, "train")


def pairs(split: Split) -> list[tuple[str, str]]:
    ids = split.image_ids()
    found = [(ids[owner], caption) for owner, caption in zip(split.image_of_caption, split.captions, strict=True)]
    assert all(caption.startswith(f"{name},") for name, caption in found), "a caption follows its image"
    return found
