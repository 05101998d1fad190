"""Where each name of a published checkpoint is mapped to ours: VSRN (2019), VSE++ (2018) and SCAN (2018).

All three lay their checkpoints out alike: a pair of [image part, caption part], and the command-line options. VSRN's
captioner, where it was saved, is a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vsrn.config import CaptionerConfig, Config, LossConfig, ModelConfig, NetworkConfig, TrainConfig, config_from_table

Weights = Mapping[str, torch.Tensor]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A published code: the names of its two parts, and options and renamed weights -> config of the model."""

    images: Mapping[str, str]
    captions: Mapping[str, str]
    model_of: Callable[[Options, Weights], ModelConfig]


# What each of their names begins with, and what that is in ours; the rest of a name stays as it is.
IMAGE_KEYS = {
    "fc.": "image_encoder.projection.",
    "img_rnn.": "image_encoder.aggregator.gru.",
    "bn.": "image_encoder.norm.",
    **{
        f"Rs_GCN_{layer + 1}.{theirs}.": f"image_encoder.reasoning.{layer}.{ours}."
        for layer in range(4)
        for theirs, ours in (("theta", "theta"), ("phi", "phi"), ("g", "w_g"), ("W.0", "w_r"), ("W.1", "norm"))
    },
}
CAPTION_KEYS = {"embed.": "caption_encoder.embedding.", "rnn.": "caption_encoder.gru."}
_OF_A_LAYER = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CAPTIONER_KEYS = {
    "encoder.vid2hid.": "captioner.projection.",
    "encoder.rnn.": "captioner.encoder.",
    "decoder.embedding.": "captioner.embedding.",
    "decoder.attention.linear1.": "captioner.attention_hidden.",
    "decoder.attention.linear2.": "captioner.attention_score.",
    "decoder.out.": "captioner.output.",
    # Theirs is a sequence model of one layer, ours a cell.
    **{f"decoder.rnn.{kind}_l0": f"captioner.decoder.{kind}" for kind in _OF_A_LAYER},
}


def vsrn_model_config(options: Options, weights: Weights) -> ModelConfig:
    """The config of a VSRN: sizes from the tensors, the rest from the original's options."""
    return ModelConfig(
        **sizes_and_norms(options, weights),
        reasoning_layers=sum(name.endswith(".theta.weight") for name in weights),
        normalisation="flickr30k" if "image_encoder.norm.weight" in weights else "coco",
        captioner=_captioner_config(options, weights),
    )


def sizes_and_norms(options: Options, weights: Weights) -> dict[str, Any]:
    """The fields of a config that VSRN and VSE++ read alike from tensors and options."""
    joint_dim, feature_dim = weights["image_encoder.projection.weight"].shape
    return {
        "feature_dim": feature_dim,
        "joint_dim": joint_dim,
        "word_dim": weights["caption_encoder.embedding.weight"].shape[1],
        "caption_layers": sum(name.startswith("caption_encoder.gru.weight_hh_l") for name in weights),
        "image_norm": not options["no_imgnorm"],
        "absolute": bool(options["use_abs"]),
        "similarity": "order" if options["measure"] == "order" else "cosine",
    }


def training_config(model: ModelConfig, options: Options) -> Config:
    """A model's config with the recipe and the loss that the original's options say."""
    epochs, drop = int(options["num_epochs"]), int(options["lr_update"])
    recipe = TrainConfig(
        batch_size=int(options["batch_size"]),
        epochs=epochs,
        learning_rate=float(options["learning_rate"]),
        learning_rate_drop=list(range(drop, epochs, drop)),
        gradient_clip=float(options["grad_clip"]),
        validate_every=int(options["val_step"]),
    )
    loss = LossConfig(margin=float(options["margin"]), negatives="hardest" if options["max_violation"] else "all")
    return Config(model=model, train=recipe, loss=loss)


def _captioner_config(options: Options, weights: Weights) -> CaptionerConfig:
    if "captioner.projection.weight" not in weights:
        return CaptionerConfig(enabled=False)
    hidden_dim = weights["captioner.projection.weight"].shape[0]
    return CaptionerConfig(
        cell="gru" if len(weights["captioner.encoder.weight_ih_l0"]) == 3 * hidden_dim else "lstm",
        bidirectional="captioner.encoder.weight_ih_l0_reverse" in weights,
        hidden_dim=hidden_dim,
        word_dim=weights["captioner.embedding.weight"].shape[1],
        dropout=float(options["input_dropout_p"]),
        max_tokens=int(options["max_len"]),
    )


VSRN = Family(IMAGE_KEYS, CAPTION_KEYS, vsrn_model_config)

NETWORK = "image_encoder.network.trunk."
WHOLE_KEYS = {"fc.": "image_encoder.projection.", "cnn.module.": NETWORK, "cnn.": NETWORK}
# Before 2018 torchvision's VGG dropped out before its first linear layer, which moved the two that are left.
VGG_KEYS = {
    "cnn.classifier.1.": f"{NETWORK}classifier.0.",
    "cnn.classifier.4.": f"{NETWORK}classifier.3.",
    "cnn.features.module.": f"{NETWORK}features.",
    **WHOLE_KEYS,
}


def is_vsepp(image_part: object) -> bool:
    """Whether this is VSE++'s image side: a network, or a projection and nothing else."""
    if not isinstance(image_part, dict):
        return False
    names = [str(name) for name in image_part]
    return any(name.startswith("cnn.") for name in names) or set(names) == {"fc.weight", "fc.bias"}


def vsepp_family(options: Options) -> Family:
    """How a VSE++ becomes ours; names of its image part depend on the network that the options name."""
    names = VGG_KEYS if str(options["cnn_type"]).startswith("vgg") else WHOLE_KEYS
    return Family(names, CAPTION_KEYS, vsepp_model_config)


def vsepp_model_config(options: Options, weights: Weights) -> ModelConfig:
    """The config of a VSE++: sizes from the tensors, the rest from the original's options."""
    reads_photos = any(name.startswith(NETWORK) for name in weights)
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


def scan_model_config(options: Options, weights: Weights) -> ModelConfig:
    """The config of a SCAN: sizes from the tensors, the rest from the original's options."""
    joint_dim, feature_dim = weights["region_encoder.projection.weight"].shape
    if options.get("no_imgnorm") or options.get("no_txtnorm"):
        raise ValueError("it is a SCAN whose vectors have no unit length (no_imgnorm, no_txtnorm), which ours have.")
    # config_from_table refuses choices that we do not have, and names them.
    scan = {
        "direction": {"t2i": "text_to_image", "i2t": "image_to_text"}[options["cross_attn"]],
        "first_norm": options["raw_feature_norm"],
        "inverse_temperature": float(options["lambda_softmax"]),
        "aggregation": options["agg_func"].lower(),
        "logsumexp_factor": float(options["lambda_lse"]),
        "bidirectional": "word_encoder.gru.weight_ih_l0_reverse" in weights,
    }
    layers = sum(name.startswith("word_encoder.gru.weight_hh_l") and "reverse" not in name for name in weights)
    return ModelConfig(
        kind="scan",
        feature_dim=feature_dim,
        joint_dim=joint_dim,
        word_dim=weights["word_encoder.embedding.weight"].shape[1],
        caption_layers=layers,
        scan=config_from_table({"model": {"scan": scan}}, where="its options").model.scan,
    )


SCAN = Family(
    {"fc.": "region_encoder.projection."},
    {"embed.": "word_encoder.embedding.", "rnn.": "word_encoder.gru."},
    scan_model_config,
)
