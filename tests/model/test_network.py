"""Image networks: every classifier by its name, weights from real files, and what does not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import v2

from vsrn.config import EFFICIENTNET, NetworkConfig
from vsrn.errors import CheckpointError, ConfigError
from vsrn.extractors.grid import GridExtractor
from vsrn.model.vsepp import ImageNetwork, feature_dim_of, load_network_weights, network_names

# The smallest of each.
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
]


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_a_classifier_of_every_family_gives_as_many_numbers_as_it_says() -> None:
    assert len(network_names()) > 70
    assert set(FAMILIES) <= set(network_names())
    for name in FAMILIES:
        with torch.device("meta"):
            network = ImageNetwork(name)
            if name.startswith("regnet"):
                network.to("meta")
            features = network.trunk(torch.empty(2, 3, 224, 224))
        assert features.shape == (2, network.feature_dim), name
    assert [feature_dim_of(name) for name in ("vgg19", "resnet152", EFFICIENTNET)] == [4096, 2048, 1280]


def photos(size: int, number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "last", "size"), [("resnet18", "fc", 64), ("mobilenet_v2", "classifier.1", 40)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".wrapped", ".parallel"])
def test_features_are_what_enters_the_last_layer_of_the_classifier_in_the_file(
    tmp_path: Path, name: str, last: str, size: int, suffix: str
) -> None:
    classifier = torchvision.models.get_model(name, weights=None).eval()
    path = tmp_path / f"weights{suffix}"
    write(path, classifier.state_dict())
    network = ImageNetwork(name).eval()
    load_network_weights(network, NetworkConfig(name, str(path)))

    entered: list[torch.Tensor] = []
    classifier.get_submodule(last).register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    pixels = photos(size, number=5)
    scale = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        classifier(scale(pixels.permute(0, 3, 1, 2) / 255))
        torch.testing.assert_close(network(pixels), entered[0], rtol=1e-4, atol=1e-5)


def write(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """A state dict as people keep it: alone, in a training checkpoint, or of a model that was spread over GPUs."""
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".wrapped":
        torch.save({"epoch": 3, "state_dict": weights}, path)
    elif path.suffix == ".parallel":
        torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)


def test_the_offline_network_sees_what_the_grid_extractor_sees() -> None:
    network = ImageNetwork(EFFICIENTNET).eval()
    load_network_weights(network, NetworkConfig(EFFICIENTNET))
    extractor, pixels = GridExtractor(), photos(224, number=3)
    with torch.no_grad():
        scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
        whole = extractor.network.forward_features(scaled).mean(dim=(2, 3))  # type: ignore[operator]
        torch.testing.assert_close(network(pixels), whole, rtol=1e-4, atol=1e-5)


def test_a_few_photos_at_once_give_what_all_at_once_give() -> None:
    network = ImageNetwork("resnet18").eval()
    pixels = photos(32, number=7)
    with torch.no_grad():
        few = network(pixels)
    torch.testing.assert_close(few, network(pixels).detach(), rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_the_statistics_it_came_with() -> None:
    network = ImageNetwork("resnet18").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(photos(32)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is not None for parameter in network.parameters())


class Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    resnet = torchvision.models.get_model("resnet18", weights=None).state_dict()
    network = ImageNetwork("resnet18")
    cases = {
        "it misses conv1.weight;": {name: t for name, t in resnet.items() if name != "conv1.weight"},
        "it has left over gate.weight;": resnet | {"gate.weight": torch.zeros(1)},
        "in another shape conv1.weight ((1,), not (64, 3, 7, 7));": resnet | {"conv1.weight": torch.zeros(1)},
        "does not hold names and tensors only": resnet | {"conv1.weight": "zeros"},
        "is not a readable file of tensors": pickle.dumps(Touches(tmp_path / "ran")),
    }
    for complaint, content in cases.items():
        path = tmp_path / "weights.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(CheckpointError) as refusal:
            load_network_weights(network, NetworkConfig("resnet18", str(path)))
        assert complaint in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_names_and_weights_that_are_not_there_come_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'resnet152'"):
        ImageNetwork("resnet-152")
    with pytest.raises(ConfigError, match="there is no network 'squeezenet1_0'"):
        ImageNetwork("squeezenet1_0")
    with pytest.raises(ConfigError, match="model.network.weights is not set"):
        load_network_weights(ImageNetwork("resnet18"), NetworkConfig("resnet18"))
    with pytest.raises(CheckpointError, match="has no weights 'V9' of resnet18; it has IMAGENET1K_V1"):
        load_network_weights(ImageNetwork("resnet18"), NetworkConfig("resnet18", "hub:V9"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network_weights(ImageNetwork("resnet18"), NetworkConfig("resnet18", "nowhere.pth"))


def test_dogs_are_nearer_to_dogs_than_to_bicycles(shared: Path) -> None:
    """The features mean something: the real weights, at a small size, on real photos."""
    network = ImageNetwork(EFFICIENTNET).eval()
    load_network_weights(network, NetworkConfig(EFFICIENTNET))
    dogs = ["2513260012_03d33305cf", "3338291921_fe7ae0c8f8", "488416045_1c6d903fe0", "2276499757_b44dc6f8ce"]
    bicycles = ["2192411521_9c7e488c5e", "3544483327_830349e7bc", "3501781809_88429e3b83", "3522076584_7c603d2ac5"]
    folder = shared / "flickr8k" / "images"
    pixels = [np.asarray(Image.open(folder / f"{name}.jpg").resize((128, 128))) for name in dogs + bicycles]
    with torch.no_grad():
        features = torch.nn.functional.normalize(network(torch.from_numpy(np.stack(pixels))), dim=1)
    cosines = (features @ features.T).fill_diagonal_(torch.nan)
    assert cosines[:4, :4].nanmean() > cosines[:4, 4:].mean()
    assert cosines[4:, 4:].nanmean() > cosines[:4, 4:].mean()
