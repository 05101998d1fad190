"""What a person does to a loaded model, against torch's own modules called one by one: trained, hooked, wrapped."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import FEATURE_DIM, Colours, colour_model, save_photo
from torch import nn
from torch.nn.utils import parametrize
from training_runs import train
from worlds import make_store

import vsrn
from vsrn.config import CaptionerConfig, Config, DataConfig, ModelConfig, NetworkConfig, TrainConfig
from vsrn.encoders.explain import explain_regions
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, ConfigError
from vsrn.model.saved import write_model
from vsrn.tensors import read_tensors
from vsrn.training.checkpoint import STATE_FILE

SENTENCES = ["dark red", "light blue green", "red"]


def loaded(precision: Any = "fp32", **fields: Any) -> TorchEncoder:
    captioner = CaptionerConfig(hidden_dim=8, word_dim=4, max_tokens=5)
    return TorchEncoder(colour_model(captioner=captioner, **fields), "cpu", precision)


def regions(images: int = 20, count: int = 5) -> Any:
    return np.random.default_rng(0).random((images, count, FEATURE_DIM)).astype(np.float32)


@torch.no_grad()
def one_by_one(model: TorchEncoder, features: Any) -> Any:
    """Embeddings by the module itself, few regions at a time, so that each of its layers is called."""
    encoder = copy.deepcopy(model.model.image_encoder).eval()
    return np.concatenate([encoder(torch.from_numpy(image[None])).embeddings.float().numpy() for image in features])


@torch.no_grad()
def one_sentence_at_a_time(model: TorchEncoder) -> Any:
    encoder, found = copy.deepcopy(model.model.caption_encoder).eval(), []
    for sentence in SENTENCES:
        tokens = torch.tensor([model.vocabulary.encode(sentence)])
        found.append(encoder(tokens, torch.tensor([tokens.shape[1]])).float().numpy())
    return np.concatenate(found)


def assert_used_as_it_is(model: TorchEncoder, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(model.encode_regions(regions()), one_by_one(model, regions()), atol=atol)
    np.testing.assert_allclose(model.encode_captions(SENTENCES), one_sentence_at_a_time(model), atol=atol)


def take_a_step(model: TorchEncoder) -> None:
    model.model.train()
    optimizer = torch.optim.Adam(model.model.parameters(), lr=0.1)
    model.model.image_encoder(torch.from_numpy(regions())).embeddings.sum().backward()
    tokens = torch.tensor([model.vocabulary.encode("dark red")])
    model.model.caption_encoder(tokens, torch.tensor([tokens.shape[1]])).sum().backward()
    optimizer.step()


def add_in_place(model: TorchEncoder) -> None:
    for parameter in model.model.parameters():
        parameter.data.mul_(1.5).add_(0.05)


def replace_parameters(model: TorchEncoder) -> None:
    for module in model.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.3 + 0.1))


def load_others(model: TorchEncoder) -> None:
    model.model.load_state_dict(loaded(seed=5).model.state_dict())


def replace_the_encoders(model: TorchEncoder) -> None:
    other = loaded(seed=6).model
    model.model.image_encoder, model.model.caption_encoder = other.image_encoder, other.caption_encoder


CHANGES: dict[str, Callable[[TorchEncoder], None]] = {
    "a step of an optimizer": take_a_step,
    "through .data": add_in_place,
    "other parameters": replace_parameters,
    "load_state_dict": load_others,
    "other encoders": replace_the_encoders,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_after_loading_are_used_at_once(change: str, precision: str) -> None:
    model = loaded(precision)
    before, sentences_before = model.encode_regions(regions()), model.encode_captions(SENTENCES)
    named, explained = model.fingerprint, explain_regions(model, Colours()([np.ones((16, 16, 3))])[0], "red").score
    CHANGES[change](model)
    assert_used_as_it_is(model, atol=1e-5 if precision == "fp32" else 0.1)
    assert np.abs(model.encode_regions(regions()) - before).max() > 0.05
    assert np.abs(model.encode_captions(SENTENCES) - sentences_before).max() > 0.05
    assert model.fingerprint != named
    assert explain_regions(model, Colours()([np.ones((16, 16, 3))])[0], "red").score != explained


def test_a_changed_captioner_writes_at_once_and_without_dropout() -> None:
    model = loaded()
    before = model.write_captions(regions())
    assert model.model.captioner is not None
    with torch.no_grad():
        for parameter in model.model.captioner.parameters():
            parameter.normal_()
    model.model.train()
    after = model.write_captions(regions())
    assert after != before
    assert model.write_captions(regions()) == after, "dropout drops nothing"
    assert all(part.training for part in model.model.modules()), "the model is left in the mode that it was in"


def test_a_model_that_moves_to_another_precision_is_used_there() -> None:
    model = loaded()
    before = model.encode_regions(regions())
    model.model.to(torch.float64)
    np.testing.assert_allclose(model.encode_regions(regions()), before, atol=1e-5)
    assert model.encode_captions(SENTENCES).dtype == np.float32
    assert model.caption_regions(regions())


class LowRank(nn.Module):
    """An adapter as people write them: the layer, and a product of two thin matrices beside it."""

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Linear(size, 2, bias=False), nn.Linear(2, size, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + self.up(self.down(inputs))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def adapt(layer: nn.Module, names: list[str], size: int) -> None:
    for name in names:
        setattr(layer, name, LowRank(getattr(layer, name), size))


def parametrize_all(layer: nn.Module, names: list[str], _size: int) -> None:
    for name in names:
        parametrize.register_parametrization(getattr(layer, name), "weight", Doubled())


def replace_forward(layer: nn.Module, names: list[str], _size: int) -> None:
    for name in names:
        called = getattr(layer, name)
        called.forward = lambda inputs, was=called.forward: 3 * was(inputs)


ADDED: dict[str, Callable[[nn.Module, list[str], int], None]] = {
    "adapters": adapt,
    "parametrizations": parametrize_all,
    "another forward": replace_forward,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("added", ADDED)
def test_what_is_added_to_the_reasoning_counts_at_every_size_of_batch(added: str, precision: str) -> None:
    model = loaded(precision)
    before = model.encode_regions(regions(100))
    layer = model.model.image_encoder.get_submodule("reasoning.0")
    ADDED[added](layer, ["theta", "phi", "w_g", "w_r"], 8)
    model.model.eval()
    after = model.encode_regions(regions(100))
    assert np.abs(after - before).max() > 1e-3
    atol = 1e-5 if precision == "fp32" else 0.1
    np.testing.assert_allclose(after, one_by_one(model, regions(100)), atol=atol)
    np.testing.assert_allclose(model.encode_regions(regions(100), batch_size=1), after, atol=atol)


def test_an_adapter_around_the_projection_or_a_part_that_is_wrapped_counts_too() -> None:
    model = loaded()
    encoder = model.model.image_encoder
    encoder.projection = LowRank(nn.Linear(FEATURE_DIM, FEATURE_DIM), FEATURE_DIM)
    encoder.projection.up = nn.Linear(2, FEATURE_DIM)
    encoder.projection = nn.Sequential(encoder.projection, nn.Linear(FEATURE_DIM, 8))
    assert_used_as_it_is(model)


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_encoders_may_be_wrapped(precision: str) -> None:
    model = loaded(precision)
    wanted = model.encode_regions(regions()), model.encode_captions(SENTENCES)
    model.model.image_encoder = Wrapped(model.model.image_encoder)  # type: ignore[assignment]
    model.model.caption_encoder = Wrapped(model.model.caption_encoder)  # type: ignore[assignment]
    atol = 1e-5 if precision == "fp32" else 0.1
    np.testing.assert_allclose(model.encode_regions(regions()), wanted[0], atol=atol)
    np.testing.assert_allclose(model.encode_captions(SENTENCES), wanted[1], atol=atol)
    assert model.encode_captions([]).shape == (0, 8)


@pytest.mark.parametrize("images", [1, 100])
def test_hooks_see_every_product(images: int) -> None:
    model, seen = loaded(), list[str]()
    watched = {
        "image_encoder": ["", "projection", "reasoning.0", "reasoning.0.theta", "reasoning.0.w_r", "aggregator.gru"],
        "caption_encoder": ["", "embedding", "gru"],
        "captioner": ["attention_hidden", "projection"],
    }
    model.encode_regions(regions(images))
    for part, names in watched.items():
        for name in names:
            module = getattr(model.model, part).get_submodule(name)
            module.register_forward_hook(lambda *_, name=f"{part}.{name}": seen.append(name))
    model.encode_regions(regions(images))
    model.encode_captions(SENTENCES)
    model.caption_regions(regions(images))
    assert set(seen) == {f"{part}.{name}" for part, names in watched.items() for name in names}
    assert_used_as_it_is(model)


def test_a_captioner_with_an_adapter_writes_what_the_sum_of_both_says() -> None:
    plain, adapted = loaded(), loaded()
    assert plain.model.captioner is not None
    assert adapted.model.captioner is not None
    layer = adapted.model.captioner.attention_hidden
    wide = LowRank(layer, layer.in_features)
    wide.up = nn.Linear(2, layer.out_features, bias=False)
    with torch.no_grad():
        plain.model.captioner.attention_hidden.weight += wide.up.weight @ wide.down.weight
    adapted.model.captioner.attention_hidden = wide  # type: ignore[assignment]
    for ours, theirs in zip(adapted.write_captions(regions()), plain.write_captions(regions()), strict=True):
        assert ours.text == theirs.text
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)


def test_loading_and_encoding_draw_no_random_number(tmp_path: Path) -> None:
    write_model(tmp_path / "run", colour_model())
    photo = save_photo(tmp_path / "0.png", 0)
    of_photos = NetworkConfig(name="regnet_x_400mf", weights="random", photo_size=40, crop_size=32)
    captioner = CaptionerConfig(enabled=False)
    fields: dict[str, Any] = {"network": of_photos, "captioner": captioner, "feature_dim": 400, "reasoning_layers": 4}
    write_model(tmp_path / "vsepp", colour_model(kind="vsepp", **fields))
    state = torch.get_rng_state()
    model = vsrn.load(tmp_path / "run", "cpu")
    model.encode_regions(regions())
    model.encode_captions(SENTENCES)
    for name in ("flickr8k-small", tmp_path / "vsepp"):
        vsrn.load(name, "cpu").encode_images(photo)
    assert torch.equal(torch.get_rng_state(), state)


def test_how_often_one_validates_does_not_change_what_is_learned(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 24, "dev": 8})
    captioner = CaptionerConfig(hidden_dim=8, word_dim=8, dropout=0.2)
    sizes = ModelConfig(joint_dim=16, word_dim=8, reasoning_layers=1, captioner=captioner)
    config = Config(data=DataConfig(path=str(store), min_count=1), model=sizes)
    runs = []
    for every in (2, 1000):
        settings = TrainConfig(epochs=2, batch_size=8, validate_every=every, learning_rate_drop=[], device="cpu")
        train(replace(config, train=settings), tmp_path / str(every))
        runs.append(read_tensors(tmp_path / str(every) / STATE_FILE)[0])
    weights = [name for name in runs[0] if name.startswith("model.")]
    assert weights
    for name in weights:
        assert torch.equal(runs[0][name], runs[1][name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"normalisation": "flickr30k", "caption_layers": 2},
        {"aggregator": "gpo", "caption_bidirectional": True, "caption_aggregator": "gpo"},
    ],
    ids=["coco", "flickr30k", "pooled"],
)
def test_a_model_works_in_every_precision(dtype: torch.dtype, fields: dict[str, Any]) -> None:
    model = loaded(**fields)
    wanted = model.encode_regions(regions()), model.encode_captions(SENTENCES)
    model.model.to(dtype)
    found = model.encode_regions(regions()), model.encode_captions(SENTENCES)
    for ours, theirs in zip(found, wanted, strict=True):
        cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosine.min() > 0.98
    assert_used_as_it_is(model, atol=0.05)
    assert len(model.caption_regions(regions())) == 20
    tokens = torch.tensor([model.vocabulary.encode("dark red")])
    assert model.model.captioner is not None
    reasoned = model.model.image_encoder(torch.from_numpy(regions(1))).reasoned_regions
    assert model.model.captioner.generation_loss(reasoned, tokens, torch.tensor([tokens.shape[1]])).isfinite()


def test_state_dicts_copies_and_compiled_models_give_the_same() -> None:
    model, other = loaded(), loaded(seed=3)
    wanted = model.encode_regions(regions()), model.encode_captions(SENTENCES)
    other.model.load_state_dict(model.model.state_dict())
    deep = copy.deepcopy(model)
    compiled = loaded()
    compiled.model.image_encoder = torch.compile(compiled.model.image_encoder, backend="eager")  # type: ignore[assignment]
    compiled.model.caption_encoder = torch.compile(compiled.model.caption_encoder, backend="eager")  # type: ignore[assignment]
    for same in (other, deep, copy.copy(model), compiled):
        np.testing.assert_allclose(same.encode_regions(regions()), wanted[0], atol=1e-5)
        np.testing.assert_allclose(same.encode_captions(SENTENCES), wanted[1], atol=1e-5)
    add_in_place(deep)
    np.testing.assert_array_equal(model.encode_regions(regions()), wanted[0])


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="use fp32 or bf16"):
        loaded("fp8")
    with pytest.raises(CheckpointError, match="no affinities"):
        TorchEncoder(dataclasses.replace(colour_model(), model=model_of_another_encoder()), "cpu").affinities(regions())


def model_of_another_encoder() -> Any:
    model = colour_model().model
    model.image_encoder = nn.Identity()  # type: ignore[assignment]
    return model
