"""VSE++'s published checkpoints in our terms: names of tensors, and options -> `ModelConfig`.

Their image part is either `fc.*` alone, over precomputed vectors, or that and a network `cnn.*`, spread over GPUs: of a
VGG its `features`, of every other network the whole.
"""

from __future__ import annotations

from vsrn.config import ModelConfig, NetworkConfig
from vsrn.convert.vsrn import CAPTION_KEYS, Family, Options, Renaming, Weights, sizes_and_norms

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


def vsepp_family(options: Options) -> Family:
    """How a VSE++ becomes ours; names of its image part depend on the network that the options name."""
    table = VGG_KEYS if str(options["cnn_type"]).startswith("vgg") else WHOLE_KEYS
    return Family(Renaming("image_encoder.", table), Renaming("caption_encoder.", CAPTION_KEYS), vsepp_model_config)


def vsepp_model_config(options: Options, weights: Weights) -> ModelConfig:
    """The config of a VSE++: sizes from the tensors, the rest from the original's options."""
    reads_photos = any(name.startswith(f"image_encoder.{NETWORK}") for name in weights)
    crop_size = int(options["crop_size"])
    network = NetworkConfig(
        name=str(options["cnn_type"]),
        weights="hub",
        fine_tune_after=0 if options["finetune"] else None,
        photo_size=max(256, crop_size),
        crop_size=crop_size,
    )
    fields = sizes_and_norms(options, weights)
    return ModelConfig(kind="vsepp", **fields, network=network if reads_photos else NetworkConfig())
