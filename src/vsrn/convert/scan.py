"""SCAN's checkpoints of 2018 in our terms."""

from __future__ import annotations

from vsrn.config import ModelConfig, config_from_table
from vsrn.convert.vsrn import CAPTION_KEYS, Family, Options, Renaming, Weights


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
    words = weights["word_encoder.embedding.weight"]
    layers = sum(name.startswith("word_encoder.gru.weight_hh_l") and "reverse" not in name for name in weights)
    return ModelConfig(
        kind="scan",
        feature_dim=feature_dim,
        joint_dim=joint_dim,
        word_dim=words.shape[1],
        caption_layers=layers,
        scan=config_from_table({"model": {"scan": scan}}, where="its options").model.scan,
    )


SCAN = Family(
    Renaming("region_encoder.", {"fc.": "projection."}), Renaming("word_encoder.", CAPTION_KEYS), scan_model_config
)
