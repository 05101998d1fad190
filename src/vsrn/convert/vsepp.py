"""VSE++'s published checkpoints in our terms: names of tensors, and options -> `ModelConfig`.

Their image part is either `fc.*` alone, over precomputed vectors, or that and a network `cnn.*`, spread over GPUs: of a
VGG its `features`, of every other network the whole.
"""

from __future__ import annotations

from typing import Any

import torch

from vsrn.config import ModelConfig, NetworkConfig

PROJECTION = {"fc.": "projection."}
NETWORK = "network.trunk."
WHOLE_KEYS = {**PROJECTION, "cnn.module.": NETWORK, "cnn.": NETWORK}
# Before 2018 torchvision's VGG dropped out before its first linear layer, which moved the two that are left.
VGG_KEYS = {
    **PROJECTION,
    "cnn.classifier.1.": f"{NETWORK}classifier.0.",
    "cnn.classifier.4.": f"{NETWORK}classifier.3.",
    "cnn.features.module.": f"{NETWORK}features.",
    "cnn.": NETWORK,
}


def is_vsepp(image_part: object) -> bool:
    """Whether this is VSE++'s image side: a network, or a projection and nothing else."""
    if not isinstance(image_part, dict):
        return False
    names = [str(name) for name in image_part]
    return any(name.startswith("cnn.") for name in names) or set(names) == {"fc.weight", "fc.bias"}


def vsepp_image_keys(options: dict[str, Any]) -> dict[str, str]:
    """Starts of their names -> starts of ours, below `image_encoder.`."""
    return VGG_KEYS if str(options["cnn_type"]).startswith("vgg") else WHOLE_KEYS


def vsepp_model_config(options: dict[str, Any], weights: dict[str, torch.Tensor]) -> ModelConfig:
    """Sizes from the tensors, the rest from the options; BatchNorm's counters, which they lack, join the weights."""
    joint_dim, feature_dim = weights["image_encoder.projection.weight"].shape
    reads_photos = any(name.startswith(f"image_encoder.{NETWORK}") for name in weights)
    for name in [name for name in weights if name.endswith(".running_mean")]:
        weights.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    crop_size = int(options["crop_size"])
    network = NetworkConfig(
        name=str(options["cnn_type"]),
        weights="hub",
        fine_tune_after=0 if options["finetune"] else None,
        photo_size=max(256, crop_size),
        crop_size=crop_size,
    )
    return ModelConfig(
        kind="vsepp",
        feature_dim=feature_dim,
        joint_dim=joint_dim,
        word_dim=weights["caption_encoder.embedding.weight"].shape[1],
        caption_layers=sum(name.startswith("caption_encoder.gru.weight_hh_l") for name in weights),
        image_norm=not options["no_imgnorm"],
        absolute=bool(options["use_abs"]),
        similarity="order" if options["measure"] == "order" else "cosine",
        network=network if reads_photos else NetworkConfig(),
    )
