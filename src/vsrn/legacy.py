"""What the authors published in 2019, read safely: `.pth.tar` checkpoints and `.pkl` vocabularies.

Both are pickles, which can run anything when opened carelessly. Here a pickle may name only what is on
a closed list; any other name is refused before it is looked up.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsrn.captions.vocabulary import Vocabulary, words_by_id
from vsrn.config import CaptionerConfig, Config, LossConfig, ModelConfig, TrainConfig
from vsrn.errors import CheckpointError, VocabularyError

Weights = dict[str, torch.Tensor]

# Where their names and ours differ; everything else keeps the name it has after these.
# Their checkpoint holds [image encoder, caption encoder]; the captioner, where saved, stands alone.
IMAGE_KEYS = {
    "fc.": "projection.",
    "img_rnn.": "aggregator.gru.",
    "bn.": "norm.",
    **{
        f"Rs_GCN_{layer + 1}.{theirs}.": f"reasoning.{layer}.{ours}."
        for layer in range(4)
        for theirs, ours in (
            ("theta", "theta"),
            ("phi", "phi"),
            ("g", "w_g"),
            ("W.0", "w_r"),
            ("W.1", "norm"),
        )
    },
}
CAPTION_KEYS = {"embed.": "embedding.", "rnn.": "gru."}
CAPTIONER_KEYS = {
    "encoder.vid2hid.": "projection.",
    "encoder.rnn.": "encoder.",
    "decoder.embedding.": "embedding.",
    "decoder.attention.linear1.": "attention_hidden.",
    "decoder.attention.linear2.": "attention_score.",
    "decoder.rnn.": "decoder.",
    "decoder.out.": "output.",
}

# A float as numpy pickles it, which `best_rsum` may be, besides what torch itself admits for tensors.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_ADMITTED: list[Any] = [
    argparse.Namespace,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
]
# The class's own name, and what Python 2 needs to rebuild an instance of an old-style class.
_VOCABULARY_NAMES = {("__main__", "Vocabulary"), ("vocab", "Vocabulary")}
_REBUILDING_NAMES = {("copy_reg", "_reconstructor"), ("__builtin__", "object")}


@dataclass(frozen=True)
class LegacyModel:
    """A 2019 checkpoint in our terms.

    weights  our parameter names -> tensors on the CPU
    options  the original's command-line options, for the record
    """

    config: Config
    weights: Weights
    vocabulary_size: int
    options: dict[str, Any]


def read_checkpoint(path: Path, captioner: Path | None = None) -> LegacyModel:
    """Read a 2019 checkpoint, and the captioner saved beside it where there is one.

    Raises `CheckpointError` where a file is missing, truncated, foreign, or asks for anything that is
    not on the closed list; nothing of it has run then.
    """
    content = load_pickled_tensors(path)
    if not isinstance(content, dict) or not {"model", "opt"} <= content.keys():
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: it has no 'model' and 'opt'.")
    parts, options = content["model"], dict(vars(content["opt"]))
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: its 'model' is not a pair of encoders.")
    image, caption = (_tensors_of(part, path) for part in parts)
    weights = _renamed(image, IMAGE_KEYS, "image_encoder.", path) | _renamed(
        caption, CAPTION_KEYS, "caption_encoder.", path
    )
    if captioner is not None:
        weights |= _captioner_weights(captioner)
    try:
        config = _config_of(options, weights)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a VSRN checkpoint of 2019: what it holds does not fit ({error})."
        ) from error
    size = len(weights["caption_encoder.embedding.weight"])
    return LegacyModel(config, weights, vocabulary_size=size, options=options)


def load_pickled_tensors(path: Path) -> Any:
    """Open a file that `torch.save` wrote, in its zip or its legacy format, onto the CPU.

    Raises `CheckpointError` where it is missing, broken, or names anything not on the closed list.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        forbidden = re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error))
        if forbidden:
            raise CheckpointError(
                f"{path} asks for {forbidden[1]}, which no checkpoint needs; it was refused and nothing of it ran."
            ) from error
        raise CheckpointError(f"{path} is not a readable PyTorch file; it may be truncated or foreign.") from error


def read_pickled_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary that the 2019 code pickled.

    Raises `VocabularyError` where it is missing, broken, or names anything but its own class.
    """
    if not path.is_file():
        raise VocabularyError(f"there is no vocabulary {path}.")
    try:
        content = _VocabularyUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
        return Vocabulary(words_by_id(vars(content)["idx2word"]))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        raise VocabularyError(f"{path} is not a vocabulary of 2019; it may be truncated or foreign.") from error


class _PickledVocabulary:
    """Stands in for the original's class: a bag of attributes without a line of behaviour."""


class _VocabularyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _VOCABULARY_NAMES:
            return _PickledVocabulary
        if (module, name) in _REBUILDING_NAMES:
            return super().find_class(module, name)
        raise VocabularyError(
            f"this pickle asks for {module}.{name}, which no vocabulary needs; it was refused and nothing of it ran."
        )


def _tensors_of(part: object, path: Path) -> Weights:
    if not isinstance(part, dict) or not all(isinstance(value, torch.Tensor) for value in part.values()):
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: an encoder in it is not a table of tensors.")
    return dict(part)


def _renamed(weights: Weights, table: dict[str, str], prefix: str, path: Path) -> Weights:
    """Their names -> ours. Raises `CheckpointError` on a name that the table does not have."""
    renamed = {}
    for name, tensor in weights.items():
        start = next((start for start in table if name.startswith(start)), None)
        if start is None:
            raise CheckpointError(f"{path} holds '{name}', which no VSRN of 2019 has; it is another model's.")
        # A 1x1 convolution over regions is a linear layer with one more axis.
        kernel = tensor[..., 0] if tensor.ndim == 3 else tensor
        renamed[prefix + table[start] + name.removeprefix(start)] = kernel.contiguous()
    return renamed


def _captioner_weights(path: Path) -> Weights:
    content = load_pickled_tensors(path)
    if not isinstance(content, dict) or "captioner" not in content:
        raise CheckpointError(f"{path} holds no 'captioner'.")
    weights = _renamed(_tensors_of(content["captioner"], path), CAPTIONER_KEYS, "captioner.", path)
    # Theirs is a one-step sequence model, ours a cell; only the layer suffix differs.
    return {
        name.removesuffix("_l0") if name.startswith("captioner.decoder.") else name: tensor
        for name, tensor in weights.items()
    }


def _config_of(options: dict[str, Any], weights: Weights) -> Config:
    """Sizes from the tensors themselves, the rest from the original's options."""
    joint_dim, feature_dim = weights["image_encoder.projection.weight"].shape
    model = ModelConfig(
        feature_dim=feature_dim,
        joint_dim=joint_dim,
        word_dim=weights["caption_encoder.embedding.weight"].shape[1],
        caption_layers=sum(name.startswith("caption_encoder.gru.weight_hh_l") for name in weights),
        reasoning_layers=sum(name.endswith(".theta.weight") for name in weights),
        normalisation="flickr30k" if "image_encoder.norm.weight" in weights else "coco",
        image_norm=not options["no_imgnorm"],
        absolute=bool(options["use_abs"]),
        similarity="order" if options["measure"] == "order" else "cosine",
        captioner=_captioner_config(options, weights),
    )
    epochs, drop = int(options["num_epochs"]), int(options["lr_update"])
    train = TrainConfig(
        batch_size=int(options["batch_size"]),
        epochs=epochs,
        learning_rate=float(options["learning_rate"]),
        learning_rate_drop=list(range(drop, epochs, drop)),
        gradient_clip=float(options["grad_clip"]),
        validate_every=int(options["val_step"]),
    )
    loss = LossConfig(margin=float(options["margin"]), negatives="hardest" if options["max_violation"] else "all")
    return Config(model=model, train=train, loss=loss)


def _captioner_config(options: dict[str, Any], weights: Weights) -> CaptionerConfig:
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
