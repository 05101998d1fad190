"""The one `Encoder`: the same arguments, checks and extractor, whichever library runs the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import FEATURE_DIM, JOINT_DIM, Colours, colour_model, save_photo
from worlds import make_model, make_store

import vsrn
from vsrn.config import CaptionerConfig
from vsrn.data.splits import open_split
from vsrn.encoders.export import export_onnx
from vsrn.errors import CheckpointError, DataError
from vsrn.extractors import base as extractors
from vsrn.extractors.base import ExtractorFiles
from vsrn.model.saved import read_model, write_model

SENTENCE = "dark red"
KINDS = ["run", "exported"]
# What the factory below was asked for, one entry a call.
MADE: list[ExtractorFiles] = []


def make(_argument: str, files: ExtractorFiles) -> Colours:
    MADE.append(files)
    return Colours()


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extractors._EXTRACTORS, "colours", f"{__name__}:make")
    MADE.clear()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    stored = colour_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4, max_tokens=5))
    write_model(folder / "run", stored)
    export_onnx(stored, folder / "exported")
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [save_photo(tmp_path / f"{number}.png", number) for number in range(3)]


def regions(images: int = 3, count: int = 5) -> Any:
    return np.random.default_rng(0).random((images, count, FEATURE_DIM)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_both_say_the_same_of_themselves_and_are_what_the_package_names(kind: str, models: dict[str, Path]) -> None:
    model, run = vsrn.load(models[kind], "cpu"), vsrn.load(models["run"], "cpu")
    assert isinstance(model, vsrn.Encoder)
    assert model.device == "cpu"
    assert model.fingerprint == run.fingerprint
    assert model.learned_from == run.learned_from
    assert (model.similarity_name, model.region_order, model.has_captioner) == ("cosine", "stored", True)
    assert model.config == run.config
    assert model.vocabulary.fingerprint == run.vocabulary.fingerprint


WRONG: dict[str, tuple[Any, Any, str]] = {
    "one image": (regions()[0], None, "this model reads"),
    "another size": (regions()[:, :, 1:], None, f"this model reads .images, regions, {FEATURE_DIM}."),
    "one count too few": (regions(), [5, 5], "one count per image"),
    "no region": (regions(), [0, 5, 5], "must have 1 to 5 regions"),
    "more than there are": (regions(), [5, 6, 5], "must have 1 to 5 regions"),
    "images without regions": (regions(count=0), None, "1 region or more"),
    "NaN": (np.where(regions() == regions().max(), np.nan, regions()), None, "NaN or infinity"),
    "infinity": (np.where(regions() == regions().max(), np.inf, regions()).astype(np.float16), None, "NaN or infinity"),
}
CALLS: dict[str, Callable[[vsrn.Encoder, Any, Any], object]] = {
    "encode": lambda model, features, counts: model.encode_regions(features, counts),
    "reason": lambda model, features, counts: model.reasoned_regions(features, counts),
    "caption": lambda model, features, counts: model.caption_regions(features, counts),
    "compare": lambda model, features, counts: model.compare(features, counts, [SENTENCE]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_regions_that_do_not_fit_are_refused_alike(kind: str, wrong: str, call: str, models: dict[str, Path]) -> None:
    features, counts, complaint = WRONG[wrong]
    with pytest.raises(DataError, match=complaint):
        CALLS[call](vsrn.load(models[kind], "cpu"), features, None if counts is None else np.array(counts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_sentence_or_photo_is_not_read_letter_by_letter(
    kind: str, models: dict[str, Path], photos: list[Path]
) -> None:
    model = vsrn.load(models[kind], "cpu")
    with pytest.raises(DataError, match=r"put the sentence into one: \[sentence\]"):
        model.encode_captions(SENTENCE)
    for photo in (photos[0], str(photos[0])):
        with pytest.raises(DataError, match=r"put the photo into one: \[photo\]"):
            model.encode_images(photo)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_no_captions_no_images_and_no_photos_are_no_rows(kind: str, models: dict[str, Path]) -> None:
    model = vsrn.load(models[kind], "cpu")
    for rows in (model.encode_captions([]), model.encode_images([]), model.encode_regions(regions()[:0])):
        assert rows.shape == (0, JOINT_DIM)
    assert model.caption_regions(regions()[:0]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_many_images_are_encoded_in_batches_as_each_is_alone(kind: str, models: dict[str, Path]) -> None:
    model, features = vsrn.load(models[kind], "cpu"), regions(images=300)
    counts = np.arange(300) % 5 + 1
    together = model.encode_regions(features, counts)
    alone = [model.encode_regions(features[row : row + 1, : counts[row]])[0] for row in (0, 127, 128, 299)]
    np.testing.assert_allclose(together[[0, 127, 128, 299]], alone, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_is_the_product_of_embeddings(kind: str, models: dict[str, Path]) -> None:
    model, captions = vsrn.load(models[kind], "cpu"), ["dark red", "light blue"]
    wanted = [
        [image @ caption for caption in model.encode_captions(captions)] for image in model.encode_regions(regions())
    ]
    np.testing.assert_allclose(model.compare(regions(), None, captions), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_extractor_is_loaded_once_on_the_models_device(
    kind: str, models: dict[str, Path], photos: list[Path]
) -> None:
    model = vsrn.load(models[kind], "cpu")
    assert MADE == [], "a model is loaded without its extractor"
    for _ in range(2):
        model.encode_images(photos)
        model.explain(photos[0], SENTENCE)
        model.caption(photos[0])
    assert [files.device for files in MADE] == ["cpu"]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_one_extractor(kind: str, models: dict[str, Path]) -> None:
    model, found = vsrn.load(models[kind], "cpu"), []
    threads = [threading.Thread(target=lambda: found.append(model.extractor)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(MADE) == 1
    assert all(extractor is found[0] for extractor in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_encoded_alike(kind: str, tmp_path: Path) -> None:
    run = make_model(tmp_path / "run", make_store(tmp_path / "store", {"dev": 6}))
    export_onnx(read_model(run), tmp_path / "exported")
    split, seen = open_split(tmp_path / "store", "dev"), list[int]()
    encoded = vsrn.load(tmp_path / kind, "cpu").encode_split(split, seen.append)
    assert sum(seen) == split.num_images + len(split.captions)
    features, counts = split.read_images(np.arange(6))
    wanted = vsrn.load(run, "cpu").compare(features.astype(np.float32), counts, split.captions)
    np.testing.assert_allclose(encoded.similarities(), wanted, atol=1e-5)
    other = make_store(tmp_path / "other", {"dev": 6})
    np.save(other / "dev_ims.npy", np.ones((6, 5, 7), np.float16))
    with pytest.raises(DataError, match="has regions of 7 numbers"):
        vsrn.load(tmp_path / kind, "cpu").encode_split(open_split(other, "dev"))


def test_a_scan_compares_and_says_that_it_has_no_embedding(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"dev": 6})
    model = vsrn.load(make_model(tmp_path / "scan", store, kind="scan"), "cpu")
    assert isinstance(model, vsrn.Encoder)
    features = open_split(store, "dev").read_images(np.arange(3))[0].astype(np.float32)
    assert model.compare(features, None, ["a dog", "a cat"]).shape == (3, 2)
    for call in (
        lambda: model.encode_captions(["a dog"]),
        lambda: model.encode_regions(features),
        lambda: model.reasoned_regions(features),
    ):
        with pytest.raises(CheckpointError, match='kind "scan" .* has no vector of an image'):
            call()
    with pytest.raises(CheckpointError, match="has no captioner"):
        model.caption_regions(features)
    again = make_model(tmp_path / "again", store, seed=1, kind="scan")
    assert vsrn.load(again, "cpu").fingerprint != model.fingerprint


def test_an_index_extracts_where_its_model_computes(
    models: dict[str, Path], photos: list[Path], tmp_path: Path
) -> None:
    with vsrn.build_index(vsrn.load(models["exported"], "cpu"), photos[0].parent, tmp_path / "idx") as index:
        assert len(index) == 3
    assert {files.device for files in MADE} == {"cpu"}
