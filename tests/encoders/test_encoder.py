"""The one `Encoder`: the same arguments, checks and extractor, whichever library runs the model."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import FEATURE_DIM, JOINT_DIM, Colours, colour_model, save_photo
from PIL import Image
from worlds import make_model, make_store

import vsrn
from vsrn.cli import run_command
from vsrn.config import CaptionerConfig
from vsrn.data.splits import in_order, open_split
from vsrn.encoders.export import export_onnx
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, ConfigError, DataError, PhotoError
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


FORMS: dict[str, Callable[[Any], Any]] = {
    "a list": lambda features: features.tolist(),
    "a tensor": torch.from_numpy,
    "a tensor with a gradient": lambda features: torch.from_numpy(features).requires_grad_(),
    "float64": lambda features: features.astype(np.float64),
    "big endian": lambda features: features.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "every second row": lambda features: np.repeat(features, 2, axis=0)[::2],
    "read only": lambda features: np.frombuffer(features.tobytes(), features.dtype).reshape(features.shape),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_regions_come_in_every_form_of_numbers(kind: str, form: str, models: dict[str, Path]) -> None:
    model, given = vsrn.load(models[kind], "cpu"), FORMS[form](regions())
    wanted = model.encode_regions(regions(), np.array([5, 1, 3]))
    for counts in ([5, 1, 3], torch.tensor([5, 1, 3]), np.array([5, 1, 3], np.uint8)):
        np.testing.assert_allclose(model.encode_regions(given, counts), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_halves_and_files_are_features_too(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    model = vsrn.load(models[kind], "cpu")
    whole = (regions() * 50).astype(np.int32)
    wanted = model.encode_regions(whole.astype(np.float32))
    np.save(tmp_path / "features.npy", whole.astype(np.float16))
    for given in (whole, torch.from_numpy(whole).bfloat16(), np.load(tmp_path / "features.npy", mmap_mode="r")):
        np.testing.assert_allclose(model.encode_regions(given), wanted, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_array_of_numbers_is_refused(kind: str, models: dict[str, Path]) -> None:
    model = vsrn.load(models[kind], "cpu")
    for given, complaint in (
        ([[[1.0] * FEATURE_DIM], [[1.0] * FEATURE_DIM] * 2], "different lengths; pad them"),
        (regions().astype(str), "of type <U.*; give numbers"),
        (regions() + 0j, "of type complex64; give numbers"),
        (regions().astype(np.float64) * 1e300, "NaN or infinity .image 0."),
        (regions()[0], r"For one image, give features\[None\]"),
    ):
        with pytest.raises(DataError, match=complaint):
            model.encode_regions(given)
    for counts in ([5.0, 5.0, 5.0], ["5", "5", "5"], [[5], [5], [5]]):
        with pytest.raises(DataError, match="one count per image|give numbers"):
            model.encode_regions(regions(), counts)
    with pytest.raises(DataError, match="image 200"):
        model.encode_regions(np.where(np.arange(300)[:, None, None] == 200, np.nan, regions(300)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_sentence_or_photo_is_a_batch_of_one(kind: str, models: dict[str, Path], photos: list[Path]) -> None:
    model = vsrn.load(models[kind], "cpu")
    np.testing.assert_array_equal(model.encode_captions(SENTENCE), model.encode_captions([SENTENCE]))
    for photo in (photos[0], str(photos[0]), photos[0].read_bytes(), Image.open(photos[0])):
        np.testing.assert_array_equal(model.encode_images(photo), model.encode_images([photos[0]]))
    for captions in (["red", None], [b"red"], b"red", [["red"]], None, 7):
        with pytest.raises(DataError, match="captions are strings"):
            model.encode_captions(captions)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_photos_come_in_every_form(kind: str, models: dict[str, Path], photos: list[Path]) -> None:
    model = vsrn.load(models[kind], "cpu")
    wanted, pictures = model.encode_images(photos), [Image.open(photo) for photo in photos]
    opened = [photo.open("rb") for photo in photos]
    forms: list[Any] = [
        opened,
        [io.BytesIO(photo.read_bytes()) for photo in photos],
        [bytearray(photos[0].read_bytes()), pictures[1], np.asarray(pictures[2])],
        np.stack([np.asarray(picture) for picture in pictures]),
        torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])),
        (photo for photo in photos),
    ]
    for given in forms:
        np.testing.assert_array_equal(model.encode_images(given), wanted)
    for file in opened:
        file.close()
    assert model.explain(pictures[0], SENTENCE).score == model.explain(photos[0], SENTENCE).score
    assert model.caption(pictures[0]) == model.caption(photos[0])
    for wrong, complaint in (
        (np.zeros((4, 4, 3), np.float32), "give .height, width, 3. uint8 RGB"),
        ([np.zeros((4, 4), np.uint8)], "give .height, width, 3. uint8 RGB"),
        (7, "a int is no photo"),
        (photos[0].with_suffix(".jpg"), "does not exist"),
        (io.StringIO("text"), 'open it with mode "rb"'),
        (b"no photo", "not an image"),
    ):
        with pytest.raises(PhotoError, match=complaint):
            model.encode_images(wrong)  # type: ignore[arg-type]


def test_a_picture_in_memory_is_turned_as_its_file_is(models: dict[str, Path], tmp_path: Path) -> None:
    model, exif = vsrn.load(models["run"], "cpu"), Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, size=(16, 24, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    picture = Image.open(tmp_path / "turned.png")
    np.testing.assert_array_equal(model.encode_images(picture), model.encode_images(tmp_path / "turned.png"))
    assert picture.size == (24, 16)
    assert picture.mode == "RGBA"


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_progress_change_no_embedding(kind: str, models: dict[str, Path], photos: list[Path]) -> None:
    model, seen = vsrn.load(models[kind], "cpu"), list[int]()
    encoders: list[tuple[Callable[..., Any], Any]] = [
        (model.encode_captions, ["red", "dark red", "light blue", "green", "red red"]),
        (model.encode_regions, regions(5)),
        (model.encode_images, [*photos, *photos[:2]]),
    ]
    for encode, given in encoders:
        seen.clear()
        several = encode(given, batch_size=2, progress=seen.append)
        assert seen == [2, 2, 1]
        np.testing.assert_allclose(several, encode(given, progress=True), atol=1e-6)
        for size in (0, -1, 2.5, "2"):
            with pytest.raises(ConfigError, match="batch_size is"):
                encode(given, batch_size=size)


@pytest.mark.parametrize("order", ["stored", "reversed", "shuffled"])
@pytest.mark.parametrize("kind", KINDS)
def test_photos_are_read_in_the_order_of_regions_that_the_model_has(
    kind: str, order: Any, photos: list[Path], tmp_path: Path
) -> None:
    stored = colour_model()
    config = replace(stored.config, data=replace(stored.config.data, region_order=order))
    write_model(tmp_path / "run", replace(stored, config=config))
    export_onnx(read_model(tmp_path / "run"), tmp_path / "exported")
    model, extractor = vsrn.load(tmp_path / kind, "cpu"), Colours()
    features = np.stack([found.features for found in extractor([extractor.prepare(Image.open(p)) for p in photos])])
    with torch.no_grad():
        read = torch.from_numpy(in_order(features, None, order))
        wanted = stored.model.image_encoder(read).embeddings.numpy()
    np.testing.assert_allclose(model.encode_images(photos), wanted, atol=1e-5)
    np.testing.assert_allclose(model.encode_regions(features), wanted, atol=1e-5)


@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_similarity_is_the_models_own_measure(measure: str, photos: list[Path]) -> None:
    model, captions = TorchEncoder(colour_model(similarity=measure, absolute=True), "cpu"), ["dark red", "light blue"]
    images, sentences = model.encode_images(photos), model.encode_captions(captions)
    wanted = [
        [float(i @ c) if measure == "cosine" else -float(np.sqrt((np.maximum(c - i, 0) ** 2).sum())) for c in sentences]
        for i in images
    ]
    for given in ((images, sentences), (torch.from_numpy(images), sentences), (photos, captions)):
        np.testing.assert_allclose(model.similarity(*given), wanted, atol=1e-6)
    assert model.similarity(images[0], sentences[1]).item() == pytest.approx(wanted[0][1], abs=1e-6)
    assert model.similarity(photos[0], "light blue").item() == pytest.approx(wanted[0][1], abs=1e-6)
    with pytest.raises(DataError, match=f"have {JOINT_DIM} numbers"):
        model.similarity(images[:, 1:], sentences)


@pytest.mark.parametrize("normalisation", ["coco", "flickr30k"])
def test_affinities_are_those_of_the_paper(normalisation: str) -> None:
    stored = colour_model(normalisation=normalisation, reasoning_layers=2)
    order = replace(stored.config.data, region_order="reversed")
    model = TorchEncoder(replace(stored, config=replace(stored.config, data=order)), "cpu")
    counts, weights = (
        [5, 2, 4],
        {name: t.double().numpy() for name, t in stored.model.image_encoder.state_dict().items()},
    )
    found = model.affinities(regions(), counts, batch_size=2)
    assert found.shape == (2, 3, 5, 5)

    def linear(vectors: Any, name: str) -> Any:
        return vectors @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    wanted = np.zeros((2, 3, 5, 5))
    for image, n in enumerate(counts):
        v = linear(regions()[image, :n][::-1].astype(np.float64), "projection")
        v = v / np.sqrt((v**2).sum(axis=0)) if normalisation == "coco" else v
        for layer in range(2):
            at = f"reasoning.{layer}"
            affinity = linear(v, f"{at}.theta") @ linear(v, f"{at}.phi").T / n
            wanted[layer, image, :n, :n] = affinity[::-1, ::-1]
            sent = linear(affinity @ linear(v, f"{at}.w_g"), f"{at}.w_r")
            spread = np.sqrt(weights[f"{at}.norm.running_var"] + 1e-5)
            normed = (sent - weights[f"{at}.norm.running_mean"]) / spread
            v = v + normed * weights[f"{at}.norm.weight"] + weights[f"{at}.norm.bias"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_models_can_be_copied_and_pickled(kind: str, models: dict[str, Path], photos: list[Path]) -> None:
    model = vsrn.load(models[kind], "cpu")
    wanted = model.encode_images(photos), model.encode_captions(["dark red"]), model.caption_images(photos)
    for same in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(same.encode_images(photos), wanted[0], atol=1e-6)
        np.testing.assert_allclose(same.encode_captions(["dark red"]), wanted[1], atol=1e-6)
        assert same.caption_images(photos) == wanted[2]
        assert same.fingerprint == model.fingerprint
    assert repr(model) == (
        f"<{type(model).__name__}: vsrn, {JOINT_DIM} numbers an embedding, 9 words, writes captions, on cpu>"
    )


def test_bf16_is_near_to_fp32_and_no_export_has_it(models: dict[str, Path], tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"dev": 6})
    split = open_split(store, "dev")
    write_model(tmp_path / "vsrn", colour_model())
    for run in (tmp_path / "vsrn", make_model(tmp_path / "scan", store, kind="scan")):
        whole, rounded = vsrn.load(run, "cpu"), vsrn.load(run, "cpu", precision="bf16")
        features = regions(6) if run.name == "vsrn" else split.read_images(np.arange(6))[0]
        found, wanted = (model.compare(features, None, ["dark red", "a dog"]) for model in (rounded, whole))
        np.testing.assert_allclose(found, wanted, atol=0.03)
        assert not np.array_equal(found, wanted)
    with pytest.raises(ConfigError, match="computes in fp32 only"):
        vsrn.load(models["exported"], "cpu", precision="bf16")


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
    assert model.compare(features, None, "a dog").shape == (3, 1)
    for call in (
        lambda: model.similarity(np.ones((2, 16), np.float32), ["a dog"]),
        lambda: model.encode_captions(["a dog"]),
        lambda: model.encode_regions(features),
        lambda: model.reasoned_regions(features),
    ):
        with pytest.raises(CheckpointError, match='kind "scan" .* has no vector of an image'):
            call()
    with pytest.raises(CheckpointError, match="has no captioner"):
        model.caption_regions(features)
    with pytest.raises(CheckpointError, match="no affinities of regions"):
        model.affinities(features)
    assert run_command("export", [str(tmp_path / "scan"), "-o", str(tmp_path / "shared")]) == 0
    shared = vsrn.load(tmp_path / "shared", "cpu")
    np.testing.assert_array_equal(shared.compare(features, None, "a dog"), model.compare(features, None, "a dog"))
    assert run_command("export", [str(tmp_path / "scan"), "--onnx", str(tmp_path / "onnx")]) == 2
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.compare(features, None, "a dog"), model.compare(features, None, "a dog"))
    again = make_model(tmp_path / "again", store, seed=1, kind="scan")
    assert vsrn.load(again, "cpu").fingerprint != model.fingerprint


def test_an_index_extracts_where_its_model_computes(
    models: dict[str, Path], photos: list[Path], tmp_path: Path
) -> None:
    with vsrn.build_index(vsrn.load(models["exported"], "cpu"), photos[0].parent, tmp_path / "idx") as index:
        assert len(index) == 3
    assert {files.device for files in MADE} == {"cpu"}
