"""VSE++'s checkpoints, invented in their layout and names: converted, they give what their tensors say."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from vsrn.convert.checkpoint import read_checkpoint
from vsrn.convert.names import VGG_KEYS, vsepp_model_config
from vsrn.errors import CheckpointError
from vsrn.model.vsepp import ImageNetwork, build_vsepp

JOINT, WORD, WORDS = 8, 4, 11
OPTIONS: dict[str, Any] = {
    **{"margin": 0.2, "num_epochs": 15, "batch_size": 128, "grad_clip": 2.0, "crop_size": 224, "val_step": 500},
    **{"learning_rate": 2e-5, "lr_update": 15, "max_violation": True, "finetune": True, "cnn_type": "resnet18"},
    **{"measure": "cosine", "use_abs": False, "no_imgnorm": False, "use_restval": True},
}


def save(path: Path, image_part: dict[str, torch.Tensor], **options: Any) -> Path:
    gru = torch.nn.GRU(WORD, JOINT)
    captions = {"embed.weight": torch.randn(WORDS, WORD), **{f"rnn.{n}": t for n, t in gru.state_dict().items()}}
    content = {"epoch": 3, "model": [image_part, captions], "opt": Namespace(**(OPTIONS | options))}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@torch.no_grad()
def test_a_network_spread_over_gpus_gives_what_torchvisions_own_gives(tmp_path: Path) -> None:
    network = torchvision.models.resnet18().eval()
    network.fc = torch.nn.Identity()
    fc = torch.nn.Linear(512, JOINT)
    # Their day's BatchNorm counted nothing.
    theirs = {f"cnn.module.{n}": t for n, t in network.state_dict().items() if "num_batches" not in n}
    path = save(tmp_path / "model.pth.tar", theirs | {f"fc.{n}": t for n, t in fc.state_dict().items()})
    legacy = read_checkpoint(path)
    assert (legacy.config.model.kind, legacy.config.model.network.name) == ("vsepp", "resnet18")
    assert (legacy.config.model.network.fine_tune_after, legacy.config.loss.negatives) == (0, "hardest")
    model = build_vsepp(legacy.config.model, legacy.vocabulary_size).eval()
    model.load_state_dict(legacy.weights)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features = network(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    expected = torch.nn.functional.normalize(fc(torch.nn.functional.normalize(features)))
    torch.testing.assert_close(model.image_encoder(pixels).embeddings, expected, rtol=0, atol=1e-5)


def test_the_config_of_a_checkpoint_leaves_its_weights_alone() -> None:
    weights = {
        "image_encoder.projection.weight": torch.zeros(4, 6),
        "image_encoder.network.trunk.bn1.running_mean": torch.zeros(3),
        "caption_encoder.embedding.weight": torch.zeros(9, 5),
        "caption_encoder.gru.weight_hh_l0": torch.zeros(12, 4),
    }
    options = {"no_imgnorm": False, "use_abs": False, "measure": "cosine", "cnn_type": "resnet18", "crop_size": 224}
    model = vsepp_model_config(options | {"finetune": False}, MappingProxyType(weights))
    assert (model.feature_dim, model.joint_dim, model.word_dim, model.caption_layers) == (6, 4, 5, 1)


@torch.no_grad()
def test_a_projection_of_precomputed_vectors(tmp_path: Path) -> None:
    fc = torch.nn.Linear(6, JOINT)
    options = {"measure": "order", "use_abs": True, "max_violation": False, "finetune": False}
    legacy = read_checkpoint(
        save(tmp_path / "m.pth.tar", {f"fc.{n}": t for n, t in fc.state_dict().items()}, **options)
    )
    assert (legacy.config.model.network.name, legacy.config.model.similarity) == ("", "order")
    model = build_vsepp(legacy.config.model, legacy.vocabulary_size).eval()
    model.load_state_dict(legacy.weights)
    vectors = torch.randn(3, 1, 6)
    expected = torch.nn.functional.normalize(fc(vectors[:, 0])).abs()
    torch.testing.assert_close(model.image_encoder(vectors).embeddings, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("linear", [("0", "3"), ("1", "4")], ids=["since 2018", "before"])
def test_both_namings_of_vgg_name_every_tensor_once(linear: tuple[str, str]) -> None:
    with torch.device("meta"):
        wanted = ImageNetwork("vgg19").state_dict().keys()
    theirs = [f"cnn.features.module.{name.split('.', 2)[2]}" for name in wanted if ".features." in name]
    theirs += [f"cnn.classifier.{layer}.{tensor}" for layer in linear for tensor in ("weight", "bias")]
    ours = []
    for name in theirs:
        start = next(start for start in VGG_KEYS if name.startswith(start))
        ours.append(VGG_KEYS[start].removeprefix("image_encoder.network.") + name.removeprefix(start))
    assert sorted(ours) == sorted(wanted)


def test_another_models_tensor_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth.tar", {"cnn.module.x": torch.zeros(1), "gate.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"holds 'gate\.weight'"):
        read_checkpoint(path)


def test_a_whole_model_in_parallel_is_the_same_model(tmp_path: Path) -> None:
    network = torchvision.models.resnet18().state_dict()
    image_part = {f"cnn.{name}": one for name, one in network.items() if not name.startswith("fc.")}
    image_part |= {"fc.weight": torch.randn(JOINT, 512), "fc.bias": torch.randn(JOINT)}
    theirs = read_checkpoint(save(tmp_path / "plain.pth.tar", image_part))
    content = torch.load(tmp_path / "plain.pth.tar", weights_only=False)
    content["model"] = [{f"module.{name}": one for name, one in part.items()} for part in content["model"]]
    content["opt"].margin = np.float64(content["opt"].margin)
    torch.save(content, tmp_path / "parallel.pth.tar")
    ours = read_checkpoint(tmp_path / "parallel.pth.tar")
    assert ours.config == theirs.config
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
