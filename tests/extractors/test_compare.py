"""The one check of weights that nobody here has: the same features are called the same, and others are not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from shy import vsrn, vsrn_extract

from vsrn.data.annotations import CaptionedPhoto
from vsrn.errors import DataError
from vsrn.extractors.compare import compare_regions, find_rows, open_existing

NAMES = [f"COCO_val2014_{number:012}.png" for number in (7, 391895, 12, 5)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(sorted(NAMES)):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def existing(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    assert vsrn_extract(photos, "-o", store) == 0
    return store / "photos_ims.npy"


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def test_what_the_extractor_made_is_the_same(photos: Path, existing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert vsrn("compare", photos, existing) == 0
    out = capsys.readouterr().out
    assert "SAME: 100.0% of the regions of 4 photos agree, 100% of them in the same place; 'grid' makes" in out
    assert vsrn("compare", photos, existing, "--first", "2", "--json") == 0
    result = said(capsys)
    assert (result["same"], result["agreeing"], result["rows_by"]) == (True, 1.0, "ids")
    listed = result["photos"]
    assert isinstance(listed, list)
    assert [(photo["id"], photo["row"], photo["num_ours"]) for photo in listed] == [
        (name, row, 36) for row, name in enumerate(sorted(NAMES)[:2])
    ]
    assert all(photo["largest_difference"] < 1e-2 for photo in listed)


def test_another_order_of_regions_is_no_other_feature(
    photos: Path, existing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = np.load(existing)
    moved = features[:, np.random.default_rng(0).permutation(36)]
    np.save(tmp_path / "existing.npy", moved.astype(np.float32))
    capsys.readouterr()
    assert vsrn("compare", photos, tmp_path / "existing.npy", "--json") == 0
    result = said(capsys)
    assert (result["agreeing"], result["rows_by"]) == (1.0, "order")
    assert isinstance(result["in_place"], float)
    assert result["in_place"] < 0.3


@pytest.mark.parametrize("how", ["other photos", "blurred photos", "other scale", "one channel order", "noise"])
def test_other_features_are_detected(
    photos: Path, existing: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features, others = np.load(existing).astype(np.float32), tmp_path / "photos"
    others.mkdir()
    for name in NAMES:
        with Image.open(photos / name) as photo:
            if how == "blurred photos":
                photo.filter(ImageFilter.GaussianBlur(3)).save(others / name)
            elif how == "one channel order":
                Image.fromarray(np.asarray(photo)[:, :, ::-1]).save(others / name)
            else:
                photo.save(others / name)
    if how == "other photos":
        features = features[::-1]
    elif how == "other scale":
        features *= 1.2
    elif how == "noise":
        features = np.random.default_rng(0).exponential(1.0, features.shape).astype(np.float32)
    np.save(tmp_path / "existing.npy", features)
    capsys.readouterr()
    assert vsrn("compare", others, tmp_path / "existing.npy") == 1
    assert "DIFFERENT: only" in capsys.readouterr().out


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_pairs_are_the_nearest_first(seed: int, n: int, m: int) -> None:
    generator = np.random.default_rng(seed)
    ours, theirs = generator.normal(size=(n, 5)), generator.normal(size=(m, 5))
    shared = min(n, m) // 2
    theirs[:shared] = ours[-shared:] * 1.02 if shared else theirs[:0]
    result = compare_regions("a.jpg", 3, ours.astype(np.float32), theirs.astype(np.float32))

    def cosine(i: int, j: int) -> float:
        return float(ours[i] @ theirs[j] / np.sqrt((ours[i] ** 2).sum() * (theirs[j] ** 2).sum()))

    left_i, left_j, found = set(range(n)), set(range(m)), []
    while left_i and left_j:
        best = max(((i, j) for i in left_i for j in left_j), key=lambda pair: cosine(*pair))
        found.append(best)
        left_i.remove(best[0])
        left_j.remove(best[1])
    apart = [float(np.sqrt(((ours[i] - theirs[j]) ** 2).sum() / (theirs[j] ** 2).sum())) for i, j in found]
    assert result.smallest_cosine == pytest.approx(min(cosine(i, j) for i, j in found), abs=1e-5)
    assert result.mean_cosine == pytest.approx(np.mean([cosine(i, j) for i, j in found]), abs=1e-5)
    assert result.largest_difference == pytest.approx(max(apart), rel=1e-4)
    assert result.num_agreeing == sum(difference < 0.1 for difference in apart)
    assert result.num_agreeing >= shared
    assert result.num_in_place == sum(d < 0.1 and i == j for d, (i, j) in zip(apart, found, strict=True))


def test_rows_are_found_by_number_by_order_and_among_repeats(tmp_path: Path) -> None:
    files = [CaptionedPhoto(name, []) for name in NAMES]
    np.save(tmp_path / "test_ims.npy", np.ones((3, 2, 5), np.float16))
    (tmp_path / "test_ids.txt").write_text("12\n0391895\n40\n")
    assert find_rows(files, open_existing(tmp_path / "test_ims.npy")) == ([None, 1, 0, None], True)
    summer, apart = (unicodedata.normalize(form, "été.jpg") for form in ("NFC", "NFD"))
    (tmp_path / "test_ids.txt").write_text(f"a.jpg\n{apart}\nb.jpg\n", encoding="utf-8")
    assert find_rows([CaptionedPhoto(summer, [])], open_existing(tmp_path / "test_ims.npy")) == ([1], True)
    np.save(tmp_path / "test_ims.npy", np.ones((20, 2, 5), np.float16))
    (tmp_path / "test_ids.txt").write_text("".join(f"{n}\n" for n in range(100, 120)))
    assert find_rows(files, open_existing(tmp_path / "test_ims.npy")) == ([0, 5, 10, 15], False)
    with pytest.raises(DataError, match="20 rows for 3 photos"):
        find_rows(files[:3], open_existing(tmp_path / "test_ims.npy"))


def test_a_split_of_a_json_is_compared_in_its_own_order(
    photos: Path, existing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [
        {"filename": name, "split": split, "sentences": [{"raw": "a scene"}]}
        for split, names in (("test", NAMES[:3]), ("val", NAMES[3:]))
        for name in names
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    rows = [sorted(NAMES).index(name) for name in NAMES[:3]]
    np.save(tmp_path / "five_ims.npy", np.load(existing)[rows].repeat(5, axis=0))
    options: list[str | Path] = [tmp_path / "five_ims.npy", "--captions", tmp_path / "dataset.json"]
    capsys.readouterr()
    assert vsrn("compare", photos, *options, "--split", "test", "--json") == 0
    assert said(capsys)["agreeing"] == 1.0
    assert vsrn("compare", photos, *options) == 2
    assert "has several splits; name the one of the features with --split" in capsys.readouterr().err


def test_mistakes_get_one_sentence(
    photos: Path, existing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "narrow.npy", np.ones((4, 36, 99), np.float32))
    np.save(tmp_path / "whole.npy", np.ones((4, 36, 1280), int))
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    mistakes: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "narrow.npy"], "has features of 99 numbers, the extractor 'grid' makes 1280"),
        ([tmp_path / "whole.npy"], "must be float16 or float32"),
        ([tmp_path / "pickle.npy"], "is not a readable .npy array"),
        ([tmp_path / "nowhere_ims.npy"], "is not a readable .npy array"),
        ([existing, "--first", "0"], "--first is 0"),
        ([existing, "--split", "test"], "with --captions"),
    ]
    for arguments, says in mistakes:
        assert vsrn("compare", photos, *arguments) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert says in last
