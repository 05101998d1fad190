"""Exported encoders against the model that they are from, and against folders that are none of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import vsrn.encoders.export as exporting
from vsrn.cli import main
from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.data.region_store import StoreInfo
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.encoders.onnx_backend import (
    CAPTION_FILE,
    CAPTIONER_FILE,
    IMAGE_FILE,
    INFO_FILE,
    MODEL_KEY,
    OnnxEncoder,
    StoredPrecision,
)
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.reasoning import RegionRelationshipReasoning
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, model_fingerprint, read_model, write_model
from vsrn.model.vsrn import ImageEncoder
from vsrn.tensors import load_weights

LONGEST = 60
REGIONS = [1, 5, 36, 50]
BATCHES = [1, 2, 7]
WORDS = ["red", "blue", "green", "tall", "small", "dog", "cat", "bird", "boat", "tree", "runs", "sleeps", "sings"]

VARIANTS: dict[str, dict[str, Any]] = {
    "coco": {},
    "flickr30k": {"normalisation": "flickr30k"},
    "no normalisation": {"normalisation": "none"},
    "no reasoning": {"reasoning_layers": 0},
    "one layer": {"reasoning_layers": 1, "normalisation": "flickr30k"},
    "three layers": {"reasoning_layers": 3, "normalisation": "none"},
    "mean": {"aggregator": "mean"},
    "mean, flickr30k": {"aggregator": "mean", "normalisation": "flickr30k", "reasoning_layers": 2},
    "mean of states": {"aggregator": "gru-mean", "normalisation": "none"},
    "last state and mean": {"aggregator": "gru-residual", "normalisation": "none"},
    "both directions": {"aggregator": "bigru", "normalisation": "flickr30k"},
    "VSE++": {"aggregator": "mean", "normalisation": "none", "reasoning_layers": 0},
    "no unit length": {"image_norm": False, "normalisation": "flickr30k"},
    "absolute": {"absolute": True, "similarity": "order"},
    "two caption layers": {"caption_layers": 2, "reasoning_layers": 0},
    "absolute, two caption layers": {"absolute": True, "caption_layers": 2, "image_norm": False},
    "generalised pooling": {"aggregator": "gpo", "caption_aggregator": "gpo", "normalisation": "flickr30k"},
    "VSE-infinity": {
        **{"aggregator": "gpo", "normalisation": "none", "reasoning_layers": 0},
        **{"caption_aggregator": "gpo", "caption_bidirectional": True},
    },
    "both ways": {"caption_bidirectional": True, "reasoning_layers": 0},
    "both ways, two layers": {"caption_bidirectional": True, "caption_layers": 2, "reasoning_layers": 0},
    "pooled, both ways, two layers": {
        **{"caption_bidirectional": True, "caption_layers": 2, "caption_aggregator": "gpo", "aggregator": "mean"},
    },
    "captioner": {"captioner": CaptionerConfig(hidden_dim=8, word_dim=4)},
}
GOLDEN = ["coco", "f30k", "options", "order"]


def small_model(*, seed: int = 0, **fields: Any) -> StoredModel:
    """A model of a few numbers, none of which is what a fresh model has."""
    sizes: dict[str, Any] = {"feature_dim": 12, "joint_dim": 16, "word_dim": 8}
    config = Config(model=ModelConfig(**sizes | {"captioner": CaptionerConfig(enabled=False)} | fields))
    vocabulary = Vocabulary([*SPECIAL_WORDS, *WORDS])
    torch.manual_seed(seed)
    model = build_model(config, vocabulary)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.2, 1)
            nn.init.normal_(module.bias, std=0.1)
    return StoredModel(config, vocabulary, model.eval(), StoreInfo("grid", "f" * 64))


def golden_model(folder: Path) -> StoredModel:
    """A model of 2019, with invented words where its vocabulary is not recorded."""
    legacy = read_checkpoint(folder / "checkpoint.pth.tar", folder / "captioner.pth")
    words = [f"word{number}" for number in range(legacy.vocabulary_size - len(SPECIAL_WORDS))]
    vocabulary = Vocabulary([*SPECIAL_WORDS, *words])
    model = build_model(legacy.config, vocabulary)
    load_weights(model, legacy.weights, folder)
    return StoredModel(legacy.config, vocabulary, model.eval())


@pytest.fixture(scope="module", params=[*VARIANTS, *(f"golden {name}" for name in GOLDEN)])
def stored(request: pytest.FixtureRequest, golden: Path) -> StoredModel:
    kind, _, name = request.param.partition(" ")
    return golden_model(golden / name) if kind == "golden" else small_model(**VARIANTS[request.param])


@pytest.fixture(scope="module")
def exported(stored: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    return export(stored, tmp_path_factory.mktemp("exports") / "exported")


def export(stored: StoredModel, folder: Path, precision: StoredPrecision = "fp32") -> OnnxEncoder:
    export_onnx(stored, folder, precision)
    return OnnxEncoder(folder, threads=1)


def random_tokens(stored: StoredModel, captions: int, longest: int) -> IntArray:
    return np.random.default_rng(longest).integers(1, len(stored.vocabulary), size=(captions, longest))


def random_regions(stored: StoredModel, images: int, regions: int) -> FloatArray:
    feature_dim = stored.config.model.feature_dim
    assert feature_dim is not None
    generator = np.random.default_rng(100 * images + regions)
    return np.abs(generator.normal(size=(images, regions, feature_dim))).astype(np.float32)


@torch.no_grad()
def captions_by_torch(stored: StoredModel, tokens: IntArray, lengths: IntArray) -> FloatArray:
    return np.asarray(stored.model.caption_encoder(torch.from_numpy(tokens), torch.from_numpy(lengths)).numpy())


@torch.no_grad()
def images_by_torch(stored: StoredModel, features: FloatArray, counts: IntArray | None = None) -> FloatArray:
    real = None if counts is None else torch.from_numpy(counts)
    return np.asarray(stored.model.image_encoder(torch.from_numpy(features), real).embeddings.numpy())


def assert_equal(ours: FloatArray, wanted: FloatArray) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)


def test_captions_of_every_length_alone_and_together(stored: StoredModel, exported: OnnxEncoder) -> None:
    lengths = np.arange(1, LONGEST + 1)
    tokens = random_tokens(stored, captions=LONGEST, longest=LONGEST)
    # Whatever stands behind a caption's end, even words, is not read.
    wanted = captions_by_torch(stored, tokens, lengths)
    assert_equal(exported.encode_tokens(tokens, lengths), wanted)
    for row, length in enumerate(lengths):
        alone = exported.encode_tokens(tokens[row : row + 1, :length], lengths[row : row + 1])
        assert_equal(alone, wanted[row : row + 1])


@pytest.mark.parametrize("images", BATCHES)
@pytest.mark.parametrize("regions", REGIONS)
def test_images_of_any_number_of_regions(exported: OnnxEncoder, stored: StoredModel, images: int, regions: int) -> None:
    features = random_regions(stored, images, regions)
    assert_equal(exported.encode_regions(features), images_by_torch(stored, features))


@pytest.mark.parametrize("images", BATCHES)
def test_padded_regions_are_as_if_they_were_not_there(exported: OnnxEncoder, stored: StoredModel, images: int) -> None:
    features = random_regions(stored, images, regions=36)
    counts = np.random.default_rng(images).integers(1, 37, size=images)
    ours = exported.encode_regions(features, counts)
    assert_equal(ours, images_by_torch(stored, features, counts))
    for row, count in enumerate(counts):
        assert_equal(ours[row : row + 1], images_by_torch(stored, features[row : row + 1, :count]))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_of_2019_says_what_was_recorded(golden: Path, tmp_path: Path, name: str) -> None:
    reference = np.load(golden / name / "reference.npz")
    encoder = export(golden_model(golden / name), tmp_path / "exported")
    assert_equal(encoder.encode_regions(reference["images"]), reference["image_embeddings"])
    captions = encoder.encode_tokens(reference["captions"], reference["lengths"])
    assert_equal(captions, reference["caption_embeddings"])


def test_fp16_takes_half_the_room(tmp_path: Path) -> None:
    captioner = CaptionerConfig(hidden_dim=64, word_dim=64)
    stored = small_model(joint_dim=128, word_dim=64, feature_dim=256, captioner=captioner)
    small, large = sizes_of(stored, tmp_path, "fp16"), sizes_of(stored, tmp_path, "fp32")
    for name in (IMAGE_FILE, CAPTION_FILE, CAPTIONER_FILE):
        assert small[name] < 0.55 * large[name]


def sizes_of(stored: StoredModel, folder: Path, precision: StoredPrecision) -> dict[str, int]:
    export_onnx(stored, folder / precision, precision)
    return {path.name: path.stat().st_size for path in (folder / precision).iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp16_is_very_near(variant: str, tmp_path: Path) -> None:
    # Large enough for weights to be stored as halves.
    stored = small_model(**{"joint_dim": 40, "feature_dim": 30, "word_dim": 30} | VARIANTS[variant])
    encoder = export(stored, tmp_path / "exported", "fp16")
    assert encoder.info.precision == "fp16"
    assert encoder.info.model == model_fingerprint(stored)
    tokens, lengths = random_tokens(stored, captions=LONGEST, longest=LONGEST), np.arange(1, LONGEST + 1)
    assert cosines(encoder.encode_tokens(tokens, lengths), captions_by_torch(stored, tokens, lengths)).min() >= 0.9999
    features, counts = random_regions(stored, 7, 36), np.linspace(10, 36, 7).astype(np.int64)
    assert cosines(encoder.encode_regions(features, counts), images_by_torch(stored, features, counts)).min() >= 0.9999


def test_fp16_rounds_the_weights_and_nothing_else(tmp_path: Path) -> None:
    stored = small_model(joint_dim=64, feature_dim=32, word_dim=32, **VARIANTS["VSE++"])
    encoder = export(stored, tmp_path / "exported", "fp16")
    for tensor in stored.model.state_dict().values():
        if tensor.numel() >= 128:
            tensor.copy_(tensor.half().float())
    tokens, lengths = random_tokens(stored, captions=9, longest=9), np.arange(1, 10)
    assert_equal(encoder.encode_tokens(tokens, lengths), captions_by_torch(stored, tokens, lengths))
    features = random_regions(stored, 5, 7)
    assert_equal(encoder.encode_regions(features), images_by_torch(stored, features))


def test_weights_beyond_halves_are_refused(tmp_path: Path) -> None:
    stored = small_model(joint_dim=64, feature_dim=32)
    with torch.no_grad():
        stored.model.get_parameter("image_encoder.projection.weight").mul_(1e6)
    with pytest.raises(CheckpointError, match="cannot be exported in fp16"):
        export_onnx(stored, tmp_path / "half", "fp16")
    assert not list(tmp_path.iterdir())
    export_onnx(stored, tmp_path / "whole")
    stored = small_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4))
    with torch.no_grad():
        assert stored.model.captioner is not None
        stored.model.captioner.output.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"captioner\.output\.weight holds NaN or what float16 cannot"):
        export_onnx(stored, tmp_path / "half", "fp16")


def cosines(ours: FloatArray, wanted: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(wanted, axis=1)
    return np.asarray((ours * wanted).sum(axis=1) / lengths)


def test_sentences_come_back_in_their_order_as_torch_has_them(tmp_path: Path) -> None:
    stored = small_model()
    generator = np.random.default_rng(0)
    captions = [" ".join(generator.choice([*WORDS, "unheard"], size=size)) for size in generator.integers(0, 30, 300)]
    encoder = export(stored, tmp_path / "exported")
    assert_equal(encoder.encode_captions(captions), TorchEncoder(stored, "cpu").encode_captions(captions))
    assert encoder.encode_captions([]).shape == (0, 16)


def test_half_precision_features_and_none_at_all(tmp_path: Path) -> None:
    stored = small_model()
    encoder = export(stored, tmp_path / "exported")
    features = random_regions(stored, 3, 5).astype(np.float16)
    assert_equal(encoder.encode_regions(features), images_by_torch(stored, features.astype(np.float32)))
    assert encoder.encode_regions(features[:0]).shape == (0, 16)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    stored = small_model()
    stored.model.train()
    before = {name: tensor.clone() for name, tensor in stored.model.state_dict().items()}
    export_onnx(stored, tmp_path / "exported")
    assert stored.model.training
    assert isinstance(stored.model.image_encoder, ImageEncoder)
    assert all(type(layer) is RegionRelationshipReasoning for layer in stored.model.image_encoder.reasoning)
    for name, tensor in stored.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_export_names_its_model(tmp_path: Path) -> None:
    stored = small_model()
    info = export(stored, tmp_path / "exported").info
    assert (info.joint_dim, info.feature_dim, info.precision) == (16, 12, "fp32")
    assert (info.extractor, info.extractor_fingerprint) == ("grid", "f" * 64)
    assert info.vocabulary == stored.vocabulary.fingerprint
    assert info.model == model_fingerprint(stored)


def test_every_file_of_a_model_may_be_read_by_the_same_people(tmp_path: Path) -> None:
    stored = small_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4))
    (tmp_path / "any").touch()
    write_model(tmp_path / "model", stored)
    export_onnx(stored, tmp_path / "exported", "fp16")
    for file in (*(tmp_path / "model").iterdir(), *(tmp_path / "exported").iterdir()):
        assert file.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_fingerprint_follows_the_embeddings_only(tmp_path: Path) -> None:
    stored = small_model(captioner=CaptionerConfig(hidden_dim=8, word_dim=4))
    first = model_fingerprint(stored)
    write_model(tmp_path / "model", stored)
    assert model_fingerprint(read_model(tmp_path / "model")) == first
    with torch.no_grad():
        assert stored.model.captioner is not None
        next(stored.model.captioner.parameters()).add_(1)
        assert model_fingerprint(stored) == first
        stored.model.get_parameter("caption_encoder.embedding.weight")[3, 2] += 1e-3
    assert model_fingerprint(stored) != first


def test_a_fingerprint_follows_settings_that_no_weight_shows() -> None:
    """One that changes what the same weights make of the same regions changes it, and no other does."""
    stored = small_model()
    features = np.random.default_rng(0).standard_normal((3, 7, 12)).astype(np.float32)
    encoder = TorchEncoder(stored, "cpu")
    seen = {model_fingerprint(stored): encoder.encode_regions(features)}
    for section, values in (
        ("model", {"normalisation": "none"}),
        ("model", {"image_norm": False}),
        ("model", {"absolute": True}),
        ("data", {"region_order": "reversed"}),
        ("data", {"region_order": "shuffled"}),
    ):
        changed = dataclasses.replace(getattr(stored.config, section), **values)
        config = dataclasses.replace(stored.config, **{section: changed})
        other = build_model(config, stored.vocabulary)
        load_weights(other, stored.model.state_dict(), Path("elsewhere"))
        again = dataclasses.replace(stored, config=config, model=other.eval())
        embeddings = TorchEncoder(again, "cpu").encode_regions(features)
        assert all(not np.allclose(embeddings, known, atol=1e-4) for known in seen.values())
        assert model_fingerprint(again) not in seen
        seen[model_fingerprint(again)] = embeddings
    trained = dataclasses.replace(stored.config, data=dataclasses.replace(stored.config.data, min_count=9))
    assert model_fingerprint(dataclasses.replace(stored, config=trained)) == next(iter(seen))


def test_a_caption_is_encoded_without_torch(tmp_path: Path) -> None:
    stored = small_model()
    export_onnx(stored, tmp_path / "exported")
    program = (
        "import sys\nimport vsrn\n"
        f"encoder = vsrn.load({str(tmp_path / 'exported')!r})\n"
        "print(*encoder.encode_captions(['a red dog sings'])[0])\n"
        "print(*{'torch', 'onnx', 'timm', 'PIL'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    embedding, loaded = run.stdout.split("\n")[:2]
    assert loaded == ""
    wanted = TorchEncoder(stored, "cpu").encode_captions(["a red dog sings"])[0]
    np.testing.assert_allclose(np.array(embedding.split(), dtype=np.float32), wanted, rtol=0, atol=1e-5)


# Folders that are no export, or no longer one.


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-200])


def say_otherwise(**fields: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        info = json.loads((folder / INFO_FILE).read_text())
        (folder / INFO_FILE).write_text(json.dumps(info | fields))

    return edit


def take_from_another(name: str, **fields: Any) -> Callable[[Path], object]:
    def swap(folder: Path) -> None:
        export_onnx(small_model(seed=1, **fields), folder.parent / "other")
        shutil.copy(folder.parent / "other" / name, folder / name)

    return swap


def take_words_of_another(folder: Path) -> None:
    (folder / "vocabulary.json").write_bytes(Vocabulary([*SPECIAL_WORDS, *WORDS[::-1]]).to_json())


def swap_encoders(folder: Path) -> None:
    (folder / IMAGE_FILE).rename(folder / "aside")
    (folder / CAPTION_FILE).rename(folder / IMAGE_FILE)
    (folder / "aside").rename(folder / CAPTION_FILE)


def forge(nodes: list[onnx.NodeProto], shape: Sequence[str | int]) -> Callable[[Path], object]:
    """A graph that has the right labels on it and does something else."""

    def write(folder: Path) -> None:
        inputs = [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "tokens"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["rows"]),
        ]
        output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, shape)
        graph = helper.make_graph(nodes, "forged", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, {MODEL_KEY: json.loads((folder / INFO_FILE).read_text())["model"]})
        (folder / CAPTION_FILE).write_bytes(model.SerializeToString())

    return write


def reach_outside(folder: Path) -> None:
    """Weights that claim to lie in a file outside the folder."""
    (folder.parent / "secret").write_bytes(bytes(100_000))
    model = onnx.load(folder / CAPTION_FILE)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    (folder / CAPTION_FILE).write_bytes(model.SerializeToString())


AS_FLOATS = helper.make_node("Cast", ["tokens"], ["embeddings"], to=TensorProto.FLOAT)
OUT_OF_RANGE = [
    helper.make_node("Constant", [], ["places"], value_ints=[999] * 16),
    helper.make_node("Gather", ["tokens", "places"], ["chosen"], axis=1),
    helper.make_node("Cast", ["chosen"], ["embeddings"], to=TensorProto.FLOAT),
]

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (remove(INFO_FILE), "is not an exported model"),
    "json cut short": (cut(INFO_FILE), "is not what `vsrn export` writes"),
    "json that is no text": (overwrite(INFO_FILE, b"\xff\xfe\x00"), "is not what `vsrn export` writes"),
    "json nested without end": (overwrite(INFO_FILE, b"[" * 100_000), "is not what `vsrn export` writes"),
    "another format": (say_otherwise(format=2), "is not what `vsrn export` writes"),
    "an unknown field": (say_otherwise(colour="red"), "is not what `vsrn export` writes"),
    "an int8 export of an earlier version": (
        say_otherwise(precision="int8"),
        "is not what `vsrn export` writes.*int8.*export the model again",
    ),
    "no size": (say_otherwise(joint_dim=0), "is not what `vsrn export` writes"),
    "another size": (say_otherwise(joint_dim=17), "is not the config that was exported"),
    "no config": (remove("config.toml"), "is not a whole export"),
    "a broken config": (overwrite("config.toml", b"[model"), "is not a whole export"),
    "no vocabulary": (remove("vocabulary.json"), "is not a whole export"),
    "a broken vocabulary": (overwrite("vocabulary.json", b"[]"), "is not a whole export"),
    "another vocabulary": (take_words_of_another, "is not the vocabulary"),
    "no caption encoder": (remove(CAPTION_FILE), "has no caption_encoder.onnx"),
    "no image encoder": (remove(IMAGE_FILE), "has no image_encoder.onnx"),
    "an empty caption encoder": (overwrite(CAPTION_FILE, b""), "caption_encoder.onnx cannot be read|is not from"),
    "a caption encoder of noise": (overwrite(CAPTION_FILE, bytes(range(256))), "caption_encoder.onnx cannot be read"),
    "a pickle": (overwrite(CAPTION_FILE, b"\x80\x04\x95cos\nsystem\n."), "caption_encoder.onnx cannot be read"),
    "a caption encoder cut short": (cut(CAPTION_FILE), "caption_encoder.onnx cannot be read|is not from the model"),
    "an image encoder cut short": (cut(IMAGE_FILE), "image_encoder.onnx cannot be read|is not from the model"),
    "the caption encoder of another model": (take_from_another(CAPTION_FILE), "is not from the model"),
    "the image encoder of another size": (take_from_another(IMAGE_FILE, feature_dim=9), "is not from the model"),
    "encoders changed about": (swap_encoders, "is not an encoder of the sizes"),
    "a caption encoder of another size": (forge([AS_FLOATS], ["rows", 15]), "is not an encoder of the sizes"),
    "tokens for embeddings": (forge([AS_FLOATS], ["rows", 16]), "does not give one embedding a row"),
    "a graph that fails": (forge(OUT_OF_RANGE, ["rows", 16]), "cannot be run by onnxruntime"),
    "weights outside": (reach_outside, "caption_encoder.onnx cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, name: str) -> None:
    spoil, complaint = BROKEN[name]
    stored = small_model(reasoning_layers=1)
    export_onnx(stored, tmp_path / "exported")
    spoil(tmp_path / "exported")
    with pytest.raises(CheckpointError, match=complaint):
        use(OnnxEncoder(tmp_path / "exported", threads=1), stored)


def use(encoder: OnnxEncoder, stored: StoredModel) -> None:
    encoder.encode_captions(["a red dog"])
    encoder.encode_regions(random_regions(stored, 2, 5))


def test_what_is_no_folder_of_ours_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    write_model(tmp_path / "model", small_model())
    for place in (tmp_path, tmp_path / "no", tmp_path / "file", tmp_path / "model"):
        with pytest.raises(CheckpointError, match="is not an exported model.*vsrn export"):
            OnnxEncoder(place)


# What an encoder refuses to encode.


def test_regions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    stored = small_model()
    encoder = export(stored, tmp_path / "exported")
    features = random_regions(stored, 3, 5)
    for wrong in (features[0], features[:, :, :-1], features[None]):
        with pytest.raises(DataError, match="this model reads"):
            encoder.encode_regions(wrong)
    for counts in ([5, 5], [0, 5, 5], [6, 5, 5], [[5, 5, 5]]):
        with pytest.raises(DataError, match="one count per image|must have 1 to 5 regions"):
            encoder.encode_regions(features, np.array(counts))


# What cannot be exported, and what is not left behind.


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    stored = small_model()
    export_onnx(stored, tmp_path / "exported")
    before = {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    (tmp_path / "file").write_text("precious")
    for taken in (tmp_path / "exported", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="already exists; choose another folder"):
            export_onnx(small_model(feature_dim=5), taken)
    assert {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "file"]


def test_a_model_with_numbers_that_are_none_is_refused(tmp_path: Path) -> None:
    stored = small_model()
    with torch.no_grad():
        stored.model.get_parameter("image_encoder.projection.weight")[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="image_encoder.projection.weight holds NaN"):
        export_onnx(stored, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_make_is_refused(tmp_path: Path) -> None:
    stored = small_model()
    stored.model.image_encoder = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export_onnx(stored, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_an_export_that_does_not_repeat_the_model_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a frozen time axis does: right where the traced caption ended.
    def frozen(encoder: Any, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        last: torch.Tensor = encoder.states(tokens, lengths)[:, -1] + 0 * lengths[:, None]
        return encoder.as_embeddings(last)

    monkeypatch.setattr(exporting.ExportableText, "forward", frozen)
    with pytest.raises(CheckpointError, match="its encoders and the exported ones differ"):
        export_onnx(small_model(), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_cut_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exporting, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(small_model(), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[onnx\]'"):
        export_onnx(small_model(), tmp_path / "exported")


# The command.


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_command_writes_both_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = small_model()
    model, copy, exported = (tmp_path / name for name in ("model", "copy", "exported"))
    write_model(model, stored)
    (model / "state").mkdir()
    assert run("export", model, "-o", copy, "--onnx", exported, "--half", "--json") == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert [entry["folder"] for entry in written] == [str(copy), str(exported)]
    assert written[0]["bytes"] == sum(path.stat().st_size for path in copy.iterdir())
    assert OnnxEncoder(exported).info.precision == "fp16"
    again = read_model(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["config.toml", "model.safetensors", "vocabulary.json"]
    assert (again.config, again.vocabulary, again.regions) == (stored.config, stored.vocabulary, stored.regions)
    for name, tensor in stored.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "say what to write"),
        (["-o", "copy", "--half"], "--half is for ONNX"),
        (["-o", "taken"], "taken already exists"),
        (["-o", "copy", "--onnx", "taken"], "taken already exists"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model", small_model())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert run("export", "model", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert complaint in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "taken"]


def test_the_encoders_config_is_the_models(tmp_path: Path) -> None:
    stored = small_model()
    encoder = export(stored, tmp_path / "exported")
    assert dataclasses.asdict(encoder.config) == dataclasses.asdict(stored.config)
