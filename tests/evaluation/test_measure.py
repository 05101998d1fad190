"""`vsrn.recall`, `vsrn.evaluate` and `vsrn metrics` against loops over sorted rows, and the mistakes people make."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import slow_recalls
from worlds import make_model, make_scan, make_store

import vsrn
from vsrn.cli import run_command
from vsrn.encoders.export import export_onnx
from vsrn.errors import ConfigError, SimilarityError
from vsrn.evaluation.evaluate import Evaluation
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.saved import read_model

IMAGES = 12


@pytest.fixture
def scores() -> FloatArray:
    return np.random.default_rng(0).normal(size=(IMAGES, 5 * IMAGES)).astype(np.float32)


@pytest.fixture
def owners() -> IntArray:
    return np.repeat(np.arange(IMAGES), 5)


def recalls(found: Evaluation) -> list[float]:
    return [*found.image_to_text.recalls, *found.text_to_image.recalls]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store", {"train": 30, "dev": 25}, captions_per_image=3)


@pytest.mark.parametrize(
    "as_given",
    [
        lambda scores: scores,
        lambda scores: scores.astype(np.float64),
        lambda scores: scores.tolist(),
        np.asfortranarray,
        lambda scores: scores.astype(">f4"),
        lambda scores: torch.from_numpy(scores).requires_grad_(),
    ],
    ids=["float32", "float64", "list", "fortran", "big-endian", "torch"],
)
def test_recalls_of_anybodys_similarities_are_those_of_sorted_rows(
    as_given: Any, scores: FloatArray, owners: IntArray
) -> None:
    found = vsrn.recall(as_given(scores), owners)
    assert recalls(found) == pytest.approx(slow_recalls(torch.from_numpy(scores), owners))
    assert found.rsum == pytest.approx(sum(recalls(found)))
    best = [min(np.flatnonzero(owners[(-row).argsort()] == image)) for image, row in enumerate(scores)]
    assert found.ranks.image_to_text.tolist() == best
    assert found.image_to_text.median_rank == np.floor(np.median(best)) + 1


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool, np.float16])
def test_numbers_of_any_type_are_ranked(dtype: type, scores: FloatArray, owners: IntArray) -> None:
    rounded: np.ndarray[Any, Any] = (10 * abs(scores)).astype(dtype)
    assert recalls(vsrn.recall(rounded, owners)) == recalls(vsrn.recall(rounded.astype(np.float64), owners))


def test_bfloat16_and_owners_of_torch_are_read(scores: FloatArray, owners: IntArray) -> None:
    rounded = torch.from_numpy(scores).bfloat16()
    found = vsrn.recall(rounded, torch.from_numpy(owners))
    assert recalls(found) == recalls(vsrn.recall(rounded.float().numpy(), owners))


def test_captions_may_come_in_any_order_and_number(scores: FloatArray) -> None:
    generator = np.random.default_rng(1)
    owners = generator.permutation(np.concatenate([np.arange(IMAGES), generator.integers(IMAGES, size=4 * IMAGES)]))
    assert recalls(vsrn.recall(scores, owners)) == pytest.approx(slow_recalls(torch.from_numpy(scores), owners))
    as_floats = owners.astype(np.float64)
    assert recalls(vsrn.recall(scores, as_floats)) == recalls(vsrn.recall(scores, owners))


def test_a_number_of_captions_per_image_says_it_too(scores: FloatArray, owners: IntArray) -> None:
    expected = recalls(vsrn.recall(scores, owners))
    assert recalls(vsrn.recall(scores, 5)) == recalls(vsrn.recall(scores)) == expected


def test_folds_count_their_own_captions_alone(monkeypatch: pytest.MonkeyPatch, scores: FloatArray) -> None:
    monkeypatch.setattr("vsrn.metrics.FIVE_FOLD_IMAGES", 4)
    # Captions of the folds lie mixed.
    owners = np.tile(np.arange(IMAGES), 5)
    found = vsrn.recall(scores, owners, five_fold=True)
    parts = [(scores[first : first + 4], (owners >= first) & (owners < first + 4), first) for first in (0, 4, 8)]
    alone = [vsrn.recall(rows[:, own], owners[own] - first) for rows, own, first in parts]
    assert found.num_folds == 3
    assert recalls(found) == pytest.approx(np.mean([recalls(each) for each in alone], axis=0))


MISTAKES: dict[str, tuple[Any, str]] = {
    "transposed": (lambda s, o: (s.T, o), "transpose the similarities"),
    "transposed, a number": (lambda s, _o: (s.T, 5), "transpose them"),
    "transposed, nothing said": (lambda s, _o: (s.T, None), "transpose them"),
    "one row": (lambda s, o: (s[0], o), r"have shape \(60,\); they must be a matrix"),
    "three axes": (lambda s, o: (s[None], o), r"have shape \(1, 12, 60\)"),
    "ragged": (lambda _s, _o: ([[1.0, 2.0], [1.0]], None), "rows of different lengths"),
    "empty": (lambda s, o: (s[:0], o), "are empty"),
    "words": (lambda s, o: (s.astype(str), o), "only real numbers can be ranked"),
    "objects": (lambda s, o: (s.astype(object), o), "only real numbers can be ranked"),
    "complex": (lambda s, o: (s.astype(complex), o), "only real numbers can be ranked"),
    "NaN": (lambda s, o: (np.where(s == s[0, 3], np.nan, s), o), "a similarity of image 0 is NaN"),
    "too few owners": (lambda s, o: (s, o[:-1]), "there are 59 images of captions"),
    "negative": (lambda s, o: (s, o - 1), "caption 0 belongs to image -1"),
    "from 1": (lambda s, o: (s, o + 1), "seem to count from 1"),
    "beyond": (lambda s, o: (s, np.where(o == 3, 99, o)), "caption 15 belongs to image 99, but the rows of 12"),
    "not whole": (lambda s, o: (s, o + 0.5), "give the row numbers of the images"),
    "names": (lambda s, o: (s, [f"{n}.jpg" for n in o]), "give the row numbers of the images"),
    "a column": (lambda s, o: (s, o[:, None]), r"image_of_caption has shape \(60, 1\)"),
    "no caption": (lambda s, o: (s, np.where(o == 11, 0, o)), "image 11 has no caption"),
    "uneven": (lambda s, _o: (s[:, :59], None), "say the image of each caption"),
    "another number": (lambda s, _o: (s, 4), "not 4 for each"),
    "none per image": (lambda s, _o: (s, 0), "not 0 for each"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, scores: FloatArray, owners: IntArray) -> None:
    make, sentence = MISTAKES[mistake]
    with pytest.raises(SimilarityError, match=sentence) as raised:
        vsrn.recall(*make(scores, owners))
    assert "\n" not in str(raised.value)


def test_folds_of_another_size_are_refused(scores: FloatArray) -> None:
    with pytest.raises(SimilarityError, match="12 images do not divide"):
        vsrn.recall(scores, five_fold=True)


def test_the_result_prints_as_a_table_of_80_columns(scores: FloatArray) -> None:
    lines = str(vsrn.recall(scores, 5)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [words for line in lines for words in ("image to text", "text to image") if words in line] == [
        "image to text",
        "text to image",
    ]


@pytest.mark.parametrize("kind", ["run", "scan", "fp32", "fp16"])
def test_models_of_every_kind_are_evaluated_in_python_and_by_the_command(
    kind: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = (make_scan if kind == "scan" else make_model)(tmp_path / "run", store)
    if kind.startswith("fp"):
        export_onnx(read_model(model), tmp_path / "onnx", kind)  # type: ignore[arg-type]
        model = tmp_path / "onnx"
    found = vsrn.evaluate(model, store, "val", similarities=True)
    assert found.similarities is not None
    assert found.similarities.shape == (25, 75)
    assert recalls(vsrn.recall(found.similarities, 3)) == recalls(found)
    loaded = vsrn.evaluate([vsrn.load(model)], split="val", batch_size=7)
    assert recalls(loaded) == recalls(found)

    assert run_command("evaluate", [str(model), "--data", str(store), "--split", "val", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rsum"] == pytest.approx(found.rsum, abs=0.01)
    assert printed["models"] == found.models == [str(model)]


def test_an_export_at_half_precision_ranks_nearly_as_its_run(store: Path, tmp_path: Path) -> None:
    run = make_model(tmp_path / "run", store)
    export_onnx(read_model(run), tmp_path / "onnx", "fp16")
    ours, half = (vsrn.evaluate(each, split="dev", similarities=True) for each in (run, tmp_path / "onnx"))
    assert ours.similarities is not None
    assert half.similarities is not None
    assert abs(ours.similarities - half.similarities).max() < 0.01


def test_similarities_and_embeddings_are_saved_and_measured_again(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (make_model(tmp_path / f"model{seed}", store, seed=seed) for seed in (0, 1))
    files, vectors = [tmp_path / "out/a.npy", tmp_path / "out/b.npy"], tmp_path / "out/vectors.npz"
    named = ["--data", str(store), "--split", "dev"]
    saved = ["--similarities", str(files[0]), "--embeddings"]
    assert run_command("evaluate", [str(one), *named, *saved, str(vectors)]) == 0
    assert run_command("evaluate", [str(one), *named, *saved, str(tmp_path / "folder")]) == 0
    assert run_command("evaluate", [str(two), *named, "--similarities", str(files[1])]) == 0
    arrays = np.load(vectors)
    assert arrays["images"].shape == (25, 16)
    assert arrays["image_ids"].tolist() == [str(row) for row in range(25)]
    np.testing.assert_array_equal(arrays["captions"], np.load(tmp_path / "folder/captions.npy"))
    similarities = np.load(files[0])
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, arrays["images"] @ arrays["captions"].T, atol=1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "out/a.image_of_caption.npy"), arrays["image_of_caption"])

    capsys.readouterr()
    weighted = ["--weights", "0.7", "0.3", "--json"]
    assert run_command("evaluate", [str(one), str(two), *named, *weighted]) == 0
    by_models = json.loads(capsys.readouterr().out)
    assert run_command("metrics", [*map(str, files), *weighted]) == 0
    by_files = json.loads(capsys.readouterr().out)
    for name in ("rsum", "image_to_text", "text_to_image", "intervals_95", "num_captions", "weights"):
        assert by_files[name] == by_models[name], name
    mean = 0.7 * similarities + 0.3 * np.load(files[1])
    assert by_files["rsum"] == pytest.approx(
        sum(slow_recalls(torch.from_numpy(mean), arrays["image_of_caption"])), abs=0.01
    )


@pytest.mark.parametrize("form", ["npy", "npz", "json", "txt"])
def test_the_image_of_each_caption_is_read_from_what_people_have(
    form: str, scores: FloatArray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owners, file = np.tile(np.arange(IMAGES), 5), tmp_path / f"owners.{form}"
    np.save(tmp_path / "scores.npy", scores)
    if form == "npy":
        np.save(file, owners)
    elif form == "npz":
        np.savez(file, image_of_caption=owners, captions=scores.T)
    else:
        rows = owners.tolist()
        file.write_text(
            "\ufeff" * (form == "txt") + (json.dumps(rows) if form == "json" else "\r\n".join(map(str, rows)))
        )
    assert run_command("metrics", [str(tmp_path / "scores.npy"), "--image-of-caption", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rsum"] == pytest.approx(vsrn.recall(scores, owners).rsum, abs=0.01)


def test_the_table_is_printed_as_csv_markdown_and_latex(
    scores: FloatArray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("my_scores|1.npy", scores)
    found = vsrn.recall(scores)
    said = {}
    for form in ("csv", "markdown", "latex"):
        assert run_command("metrics", ["my_scores|1.npy", "--image-of-caption", "5-per-image", "--format", form]) == 0
        said[form] = capsys.readouterr().out
    (row,) = csv.DictReader(io.StringIO(said["csv"]))
    assert row["models"] == "my_scores|1.npy"
    assert float(row["text_to_image.recall_at_5"]) == pytest.approx(found.text_to_image.recall_at_5, abs=0.01)
    assert float(row["rsum.low"]) <= float(row["rsum"]) <= float(row["rsum.high"])
    expected = [*(f"{recall:.1f}" for recall in recalls(found)), f"{found.rsum:.1f}"]
    *_, markdown = said["markdown"].splitlines()
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", markdown)[1:-1]] == [r"my_scores\|1.npy", *expected]
    assert len({line.count("|") - line.count(r"\|") for line in said["markdown"].splitlines()}) == 1
    (latex,) = (line for line in said["latex"].splitlines() if "scores" in line)
    assert latex == " & ".join([r"my\_scores|1.npy", *expected]) + r" \\"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no similarities are named"),
        (["gone.npy"], "gone.npy cannot be read"),
        (["owners.txt"], "owners.txt is no .npy or .npz file"),
        (["objects.npy"], "objects.npy is not a readable array"),
        (["cut.npy"], "cut.npy is not a readable array"),
        (["scores.npy", "--image-of-caption", "owners.txt"], "owners.txt holds no whole numbers"),
        (["scores.npy", "--image-of-caption", "gone.txt"], "gone.txt cannot be read"),
        (["scores.npy", "small.npy"], "are not of the same images and captions"),
        (["scores.npy", "scores.npy", "--weights", "1"], "there are 1 weights for 2 models"),
        (["scores.npy", "--five-fold"], "12 images do not divide"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_measured_are_one_sentence(
    arguments: list[str],
    sentence: str,
    scores: FloatArray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("scores.npy", scores)
    np.save("small.npy", scores[:3])
    np.save("objects.npy", np.array([{}, 1], dtype=object))
    Path("cut.npy").write_bytes(Path("scores.npy").read_bytes()[:-9])
    Path("owners.txt").write_text("0\none\n")
    assert run_command("metrics", arguments) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert sentence in error


def test_options_of_evaluate_that_contradict_each_other_are_refused_before_anything_is_read(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_model(tmp_path / "model", store))
    for options, sentence in (
        ([model, "--embeddings", "x.npz"], "--embeddings are those of one model"),
        (["--similarities", "x.txt"], "is no .npy file"),
        (["--similarities", "x.npy", "--rerank", model], "leave out one"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--weights", "1", "2"], "2 weights for 1 models"),
        (["--five-fold"], "25 images do not divide"),
    ):
        assert run_command("evaluate", [model, *options, "--split", "dev"]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "encoding" not in said


def test_an_empty_list_of_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights") as raised:
        vsrn.evaluate(["flickr8k-small"], weights=[1, 2])
    assert "1 models" in str(raised.value)
