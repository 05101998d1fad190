"""What the authors published in 2019, read safely: `.pth.tar` checkpoints and `.pkl` vocabularies.

Both are pickles, which can run anything when opened carelessly. Here a pickle may name only what is on
a closed list; any other name is refused before it is looked up.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from vsrn.config import (
    CaptionerConfig,
    Config,
    LossConfig,
    ModelConfig,
    TrainConfig,
    check_config,
    config_from_table,
)
from vsrn.convert.vsepp import is_vsepp, vsepp_image_keys, vsepp_model_config
from vsrn.data.vocabulary import Vocabulary, words_by_id
from vsrn.errors import CheckpointError, VocabularyError

Weights = dict[str, torch.Tensor]


class Keys(NamedTuple):
    """How a part's names become ours: `prefix`, then what `table` says instead of the start of theirs."""

    prefix: str
    table: dict[str, str]


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

# What a checkpoint asks for: tables of tensors, options, and a float as numpy pickles it (`best_rsum`).
_CHECKPOINT_NAMES = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}
_NUMPY_NAMES = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"}
# The class's own name, and the base that Python 2's older pickle protocols name beside it.
_VOCABULARY_NAMES = {("__main__", "Vocabulary"), ("vocab", "Vocabulary"), ("__builtin__", "object")}


class _Inert(dict[Any, Any]):
    """Stands in for whatever a pickle would make, and does nothing."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None: ...


# Beside these, torch admits what tensors are made of. numpy's part is not looked at, so nothing of numpy runs.
_ADMITTED: list[Any] = [argparse.Namespace, *((_Inert, name) for name in _NUMPY_NAMES)]


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
    if not isinstance(content, dict) or "model" not in content or "opt" not in content:
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: it has no 'model' and 'opt'.")
    parts, options = content["model"], content["opt"]
    if not isinstance(options, argparse.Namespace):
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: its 'opt' is not a table of options.")
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: its 'model' is not a pair of encoders.")
    try:
        images, captions, config_of = _family_of(parts[0], vars(options))
        weights = _renamed(parts[0], images, path) | _renamed(parts[1], captions, path)
        if captioner is not None:
            weights |= _captioner_weights(captioner)
        config = config_of(vars(options), weights)
        check_config(config, where="its options")
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        fact = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: {fact}.") from error
    size = len(weights[f"{captions.prefix}embedding.weight"])
    return LegacyModel(config, weights, vocabulary_size=size, options=dict(vars(options)))


def _family_of(image_part: object, options: dict[str, Any]) -> Family:
    """Which of the three codes wrote it: they lay their checkpoints out alike."""
    if "cross_attn" in options:
        return SCAN_FAMILY
    if is_vsepp(image_part):
        return Keys("image_encoder.", vsepp_image_keys(options)), VSRN_FAMILY[1], _vsepp_config_of
    return VSRN_FAMILY


def load_pickled_tensors(path: Path) -> Any:
    """Open a file that `torch.save` wrote, in its zip or its legacy format, onto the CPU.

    Raises `CheckpointError` where it is missing, broken, or names anything not on the closed list.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        _refuse_inflation(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ADMITTED):
            # torch warns of what it goes on to refuse, and of `encoding`, which it does honour.
            warnings.simplefilter("ignore")
            # Python 2 pickled the eight bytes of a float as a string; Latin-1 alone gives any bytes back.
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except (MemoryError, CheckpointError):
        raise
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        refused = _name_refused(path)
        if refused:
            raise CheckpointError(
                f"{path} asks for {refused}, which no checkpoint needs; it was refused and nothing of it ran."
            ) from error
        raise CheckpointError(f"{path} is not a readable PyTorch file; it may be truncated or foreign.") from error


def _refuse_inflation(path: Path) -> None:
    """torch stores tensors as they are; an archive that grows when it is read was made to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is a compressed archive, which PyTorch does not write; it was refused.")


def _name_refused(path: Path) -> str | None:
    """The first name that a file asks for and that is not admitted, or None where it asks for none."""
    try:
        for file in _pickles_in(path):
            start = file.tell()
            _refuse_huge_memo(file, limit=path.stat().st_size)
            file.seek(start)
            _NameFinder(file, encoding="latin1").load()
    except _NameError as error:
        return str(error)
    # What is not a pickle asks for nothing.
    except Exception:
        return None
    return None


def _pickles_in(path: Path) -> Iterator[IO[bytes]]:
    """What torch unpickles: one member of a zip archive, or four pickles one after another."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as member:
                        yield member
    else:
        with path.open("rb") as file:
            for _ in range(4):
                yield file


def _refuse_huge_memo(file: IO[bytes], limit: int) -> None:
    """Raise `UnpicklingError` where a pickle numbers its objects beyond the bytes it has.

    Python's unpickler fills a table as long as the largest number: nine bytes could take all memory.
    """
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > limit:
            raise pickle.UnpicklingError("an object's number is larger than the file.")


class _NameError(Exception):
    """Carries the name that a pickle asks for."""


class _NameFinder(pickle.Unpickler):
    """Reads a pickle for the names in it; every admitted one becomes `_Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        is_storage = module in ("torch", "torch.cuda") and name.endswith("Storage")
        if is_storage or f"{module}.{name}" in _CHECKPOINT_NAMES | _NUMPY_NAMES:
            return _Inert
        raise _NameError(f"{module}.{name}")

    def persistent_load(self, _: object) -> Any:
        return _Inert()


def read_pickled_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary that the 2019 code pickled.

    Raises `VocabularyError` where it is missing, broken, or names anything but its own class.
    """
    if not path.is_file():
        raise VocabularyError(f"there is no vocabulary {path}.")
    try:
        pickled = path.read_bytes()
        _refuse_huge_memo(io.BytesIO(pickled), limit=len(pickled))
        content = _VocabularyUnpickler(io.BytesIO(pickled), encoding="utf-8").load()
        return Vocabulary(words_by_id(vars(content)["idx2word"]))
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    # Hostile bytes can make an unpickler raise almost anything.
    except Exception as error:
        raise VocabularyError(f"{path} is not a vocabulary of 2019; it may be truncated or foreign.") from error


class _VocabularyUnpickler(pickle.Unpickler):
    """Admits stand-ins without a line of behaviour, made anew each time: a pickle may set attributes on them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _VOCABULARY_NAMES:
            return type(name, (), {})
        if (module, name) == ("copy_reg", "_reconstructor"):
            return lambda kind, *_: kind()
        raise VocabularyError(
            f"this pickle asks for {module}.{name}, which no vocabulary needs; it was refused and nothing of it ran."
        )


def _is_plain(value: object) -> bool:
    """Whether this is a tensor of real numbers whose every element is in the file."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _renamed(part: object, keys: Keys, path: Path) -> Weights:
    """Their names -> ours. Raises `CheckpointError` on what is no tensor, or has a name that the table lacks."""
    if not isinstance(part, dict) or not all(isinstance(name, str) and _is_plain(part[name]) for name in part):
        raise CheckpointError(f"{path} is not a VSRN checkpoint of 2019: a part of it is not a table of tensors.")
    renamed = {}
    for name in part:
        tensor = part[name]
        start = next((start for start in keys.table if name.startswith(start)), None)
        if start is None:
            raise CheckpointError(f"{path} holds {name[:100]!r}, which no VSRN of 2019 has; it is another model's.")
        # A 1x1 convolution over regions is a linear layer with one more axis.
        kernel = tensor[..., 0] if tensor.ndim == 3 else tensor
        renamed[keys.prefix + keys.table[start] + name.removeprefix(start)] = kernel.contiguous()
    return renamed


def _captioner_weights(path: Path) -> Weights:
    content = load_pickled_tensors(path)
    if not isinstance(content, dict) or "captioner" not in content:
        raise CheckpointError(f"{path} holds no 'captioner'.")
    weights = _renamed(content["captioner"], Keys("captioner.", CAPTIONER_KEYS), path)
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
    return Config(model=model, train=_recipe_of(options), loss=_loss_of(options))


def _scan_config_of(options: dict[str, Any], weights: Weights) -> Config:
    """The same of a SCAN."""
    joint_dim, feature_dim = weights["region_encoder.projection.weight"].shape
    if options.get("no_imgnorm") or options.get("no_txtnorm"):
        raise ValueError("it is a SCAN whose vectors have no unit length (no_imgnorm, no_txtnorm), which ours have.")
    # config_from_table refuses the choices that we do not have, by name.
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
    model = ModelConfig(
        kind="scan",
        feature_dim=feature_dim,
        joint_dim=joint_dim,
        word_dim=words.shape[1],
        caption_layers=layers,
        scan=config_from_table({"model": {"scan": scan}}, where="its options").model.scan,
    )
    return Config(model=model, train=_recipe_of(options), loss=_loss_of(options))


def _vsepp_config_of(options: dict[str, Any], weights: Weights) -> Config:
    """The same of a VSE++."""
    model = vsepp_model_config(options, weights)
    return Config(model=model, train=_recipe_of(options), loss=_loss_of(options))


# Names of the image part, names of the caption part, and what makes a config of the options.
Family = tuple[Keys, Keys, Callable[[dict[str, Any], Weights], Config]]
VSRN_FAMILY: Family = (Keys("image_encoder.", IMAGE_KEYS), Keys("caption_encoder.", CAPTION_KEYS), _config_of)
SCAN_FAMILY: Family = (
    Keys("region_encoder.", {"fc.": "projection."}),
    Keys("word_encoder.", CAPTION_KEYS),
    _scan_config_of,
)


def _recipe_of(options: dict[str, Any]) -> TrainConfig:
    epochs, drop = int(options["num_epochs"]), int(options["lr_update"])
    return TrainConfig(
        batch_size=int(options["batch_size"]),
        epochs=epochs,
        learning_rate=float(options["learning_rate"]),
        learning_rate_drop=list(range(drop, epochs, drop)),
        gradient_clip=float(options["grad_clip"]),
        validate_every=int(options["val_step"]),
    )


def _loss_of(options: dict[str, Any]) -> LossConfig:
    return LossConfig(margin=float(options["margin"]), negatives="hardest" if options["max_violation"] else "all")


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
