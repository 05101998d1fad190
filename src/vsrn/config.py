"""One run as one page: frozen dataclasses, read from TOML and written back to it.

An unknown, ill-typed or contradictory field raises `ConfigError` naming the nearest right one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
import tomli_w
from msgspec import Meta

from vsrn.errors import ConfigError
from vsrn.files import read_text
from vsrn.other_names import nearest_field, siblings

RegionOrder = Literal["stored", "reversed", "shuffled", "centre-out", "centre-in"]
EFFICIENTNET = "efficientnet-lite0"
PRETRAINED_TEXT = "hf:"
# Upper limits are far beyond every published model: a stranger's config may ask for terabytes.
Size = Annotated[int, Meta(ge=1, le=2**20)]
Layers = Annotated[int, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
FINITE = sys.float_info.max
Positive = Annotated[float, Meta(gt=0, le=FINITE)]
PositiveOrZero = Annotated[float, Meta(ge=0, le=FINITE)]


@dataclass(frozen=True)
class DataConfig:
    """What a run learns from."""

    path: str = ""
    """Folder of a region store with captions, made by `vsrn extract --captions` or precomputed."""
    photos: str = ""
    """Folder of photos, for a model that reads pixels; instead of `path`."""
    annotations: str = ""
    """Captions of those photos, in any form that docs/data-formats.md lists."""
    restval: bool = False
    """Whether COCO's `restval` images are learned from as part of `train`."""
    train: str = "train"
    """Split to learn from, named as on disk."""
    validation: str = "dev"
    """Split that chooses the best model; `val` and `dev` stand for each other."""
    held_out: str = ""
    """Text file of image ids, one per line, taken out of `train` to choose the best model instead of `validation`."""
    vocabulary: str = ""
    """Vocabulary file from `vsrn vocab`; empty builds one from the captions learned from."""
    min_count: Count = 4
    """A word seen less often than this in those captions becomes <unk>."""
    word_vectors: str = ""
    """File of GloVe's, fastText's or word2vec's (its .bin too, and gzipped), whose vectors the caption encoder's words
    start from instead of random ones; model.word_dim must be their size."""
    region_order: RegionOrder = "stored"
    """Order in which the model reads an image's regions, in training and in use. `shuffled` is a random order of each
    image that never changes; `centre-out` is for windows of a square grid, as `centre-in`, the reverse."""


@dataclass(frozen=True)
class CaptionerConfig:
    """The captioning head that shapes the image side during training."""

    enabled: bool = True
    """Whether there is one; without it the loss is the matching loss alone."""
    cell: Literal["gru", "lstm"] = "gru"
    """Recurrent cell of its encoder and decoder."""
    bidirectional: bool = False
    """Whether its encoder reads the regions in both directions."""
    hidden_dim: Size = 512
    """Size of its states, in each direction."""
    word_dim: Size = 300
    """Size of its word embedding, which is its own."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of its inputs dropped in training."""
    max_tokens: Annotated[int, Meta(ge=3)] = 60
    """Captions are cut to this many tokens (<start>, a word, <end> at least) for the captioner alone."""


@dataclass(frozen=True)
class ScanConfig:
    """Stacked cross attention, where model.kind is "scan". Its defaults are the published ones, text-to-image."""

    direction: Literal["text_to_image", "image_to_text"] = "text_to_image"
    """Who asks: every word the regions of an image, or every region the words of a caption."""
    first_norm: Literal["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"] = "clipped_l2norm"
    """How the affinities of those who ask are made comparable before attention."""
    inverse_temperature: Positive = 9.0
    """Sharpness of attention; published with 9, and 4 image-to-text."""
    aggregation: Literal["logsumexp", "mean", "max", "sum"] = "logsumexp"
    """How the relevances of all who ask become one similarity."""
    logsumexp_factor: Positive = 6.0
    """How much logsumexp leans to the largest; published with 6, and 5 image-to-text."""
    bidirectional: bool = True
    """Whether the caption GRU reads in both directions, whose states are averaged."""


@dataclass(frozen=True)
class NetworkConfig:
    """The image network of kind "vsepp", where it reads photos rather than precomputed vectors."""

    name: str = ""
    """`efficientnet-lite0` (offline), or a classifier of torchvision: vgg19, resnet152, ...; empty reads vectors."""
    weights: str = ""
    """What it starts from: a file, `hub` for torchvision's own download, or `random`; EfficientNet needs none named."""
    fine_tune_after: CountOrZero | None = None
    """Epochs after which it learns too; 0 from the start, left out never."""
    photo_size: Count = 256
    """Shorter side, in pixels, that photos are brought to in evaluation."""
    crop_size: Count = 224
    """Side of the square that the network reads: the middle in evaluation, a random part in training."""
    smallest_crop: Annotated[float, Meta(gt=0, le=1)] = 0.08
    """Least share of a photo's area that a random crop in training may have; 1 crops and flips nothing."""


@dataclass(frozen=True)
class TextConfig:
    """A pretrained text encoder, where model.text_encoder is "hf:NAME"."""

    download: bool = False
    """Whether NAME may be downloaded from Hugging Face's hub where it is neither a folder nor in the hub's cache."""
    frozen_epochs: CountOrZero = 0
    """Epochs in which it stays as it was published, while what reads its words learns."""
    reasoning_layers: Layers = 0
    """Graph convolutions over its words, as VSRN++ has them, before the words are pooled."""
    architecture: str = ""
    """Its kind and sizes as JSON; left out, they are read from NAME, and a run keeps them."""


@dataclass(frozen=True)
class ModelConfig:
    """The model. Its defaults are the paper's for COCO."""

    kind: str = "vsrn"
    """Family of the model: "vsrn", "vsepp" (VSE++, of photos or vectors), "scan" (SCAN, which compares every region
    with every word), or what `vsrn.register_model` adds."""
    feature_dim: Size | None = None
    """Numbers per region; left out, it is read from the data."""
    joint_dim: Size = 2048
    """Size of the joint space."""
    word_dim: Size = 300
    """Size of the caption encoder's word embedding."""
    caption_layers: Annotated[int, Meta(ge=1, le=100)] = 1
    """GRU layers of the caption encoder."""
    caption_bidirectional: bool = False
    """Whether the caption encoder reads in both directions, whose states are averaged."""
    text_encoder: str = "gru"
    """What encodes captions: "gru", "hf:NAME" (a BERT, MiniLM, DistilBERT, RoBERTa or CLIP of Hugging Face: a folder,
    or a name on its hub), or what `vsrn.register_text_encoder` adds."""
    text: TextConfig = field(default_factory=TextConfig)
    caption_aggregator: str = "last"
    """How words become one vector: "last", the state after the last word, or an aggregator as of regions."""
    reasoning_layers: Layers = 4
    """Graph convolutions over the regions; 0 leaves region relationship reasoning out."""
    aggregator: str = "gru"
    """How regions become one vector: "gru" (global semantic reasoning: the last state), "gru-mean" (the mean of its
    states), "gru-residual" (the last state added to the mean of the regions), "bigru" (both directions), "mean" (as in
    VSE++), "gpo" (VSE-infinity's generalised pooling), or what `vsrn.register_aggregator` adds."""
    normalisation: Literal["coco", "flickr30k", "none"] = "coco"
    """Which of the paper's two normalisations the image path has."""
    image_norm: bool = True
    """Whether image embeddings get unit length."""
    absolute: bool = False
    """Whether embeddings lose their signs, as order similarity wants."""
    similarity: Literal["cosine", "order"] = "cosine"
    """How an image and a caption embedding are compared."""
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    scan: ScanConfig = field(default_factory=ScanConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)


@dataclass(frozen=True)
class LossConfig:
    """The matching loss."""

    matching: str = "triplet"
    """The matching loss: "triplet" (the paper's margin between a match and other pairs), "contrastive" (cross entropy
    over a batch, as CLIP has it), or what `vsrn.register_loss` adds."""
    temperature: Positive = 0.05
    """What contrastive similarities are divided by; smaller looks harder at the nearest of the wrong ones."""
    margin: PositiveOrZero = 0.2
    """How far a match must be ahead of every other pair."""
    negatives: Literal["hardest", "all"] = "hardest"
    """Whether the worst violation counts, or every one."""
    warm_up_epochs: CountOrZero = 0
    """Epochs over which the loss goes from every violation to the worst, little by little; 0 starts with the worst."""
    mask_same_image: bool = False
    """Whether captions of one image are no negatives of each other where they meet in a batch; in 2019 they were."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Its defaults are the paper's for COCO."""

    init_from: str = ""
    """Model whose weights and vocabulary training starts from: a run, a converted or an exported folder."""
    batch_size: Annotated[int, Meta(ge=2)] = 128
    """Captions per step, each with its image; the others are its negatives, so at least 2."""
    epochs: Count = 30
    """Passes over the captions."""
    max_steps: CountOrZero = 0
    """Steps after which training ends, though epochs be left; 0 ends after the epochs."""
    accumulate: Count = 1
    """Batches whose mean gradient makes one step; each has its own negatives alone."""
    patience: CountOrZero = 0
    """Validations in a row without a better rsum after which training ends; 0 never ends early."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW, which takes weight decay apart from the gradient."""
    weight_decay: PositiveOrZero = 0.0
    """Weight decay of every parameter: with Adam it is added to the gradient, as an L2 penalty is."""
    learning_rate: Positive = 2e-4
    """The optimiser's learning rate at the start, or after warm_up_steps."""
    text_learning_rate_factor: Positive = 0.1
    """What the learning rate is multiplied by for the weights of a pretrained text encoder, "hf:NAME"."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: by learning_rate_drop, or along half a cosine to 0 at the last step."""
    learning_rate_drop: list[Count] = field(default_factory=lambda: [15])
    """Epochs after which the learning rate is divided by 10, with the schedule "step"."""
    warm_up_steps: CountOrZero = 0
    """Steps over which the learning rate rises evenly from 0 at first."""
    gradient_clip: PositiveOrZero = 2.0
    """Largest global norm of the gradient; 0 does not clip."""
    drop_regions: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """In training, each image leaves out regions at random, by a probability that it draws between 0 and this;
    0 keeps all. VSE-infinity has 0.2."""
    validate_every: CountOrZero = 500
    """Steps between validations; 0 validates after every epoch."""
    seed: CountOrZero = 0
    """Decides the first weights, the order of captions and what is dropped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products; embeddings and losses are float32 either way."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best one there is."""
    cuda_graphs: bool = True
    """On one GPU, whether steps are recorded and played again, which is faster and takes more memory."""
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics go beside metrics.jsonl: "tensorboard" (where it is installed), "wandb" (Weights & Biases), or what
    `vsrn.register_logger` adds."""


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def read_config(path: Path | str) -> Config:
    """Read and check a TOML config. Raises `ConfigError` naming the file and the field."""
    path = Path(path)
    try:
        table = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no config {path}; `vsrn configs` lists those that come with vsrn.") from error
    except (OSError, ValueError, RecursionError) as error:
        # tomllib leaves it to Python to refuse a number of more than 4,300 digits.
        reason = "a number in it has thousands of digits" if type(error) is ValueError else str(error).rstrip(".")
        raise ConfigError(f"{path} cannot be read as TOML: {reason}.") from error
    config = config_from_table(table, where=str(path))
    check_config(config, where=str(path))
    return config


def config_from_table(table: dict[str, Any], where: str = "the config") -> Config:
    """Nested tables -> `Config`. Raises `ConfigError`, naming the file `where`, on an unknown or ill-typed field."""
    _check_names(table, where)
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        # msgspec says: Expected `int`, got `str` - at `$.train.epochs`
        complaint, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`")
        if limit := _LIMIT.fullmatch(complaint):
            # or: Expected `int` >= 1 - at `$.train.epochs`
            number = float(limit["number"])
            bound = "finite" if number == FINITE else f"{_RELATIONS[limit['relation']]} {number:,.10g}"
            raise ConfigError(f"{where}: {place} must be {bound}.") from error
        words = [word for word in get_args(config_fields().get(place)) if isinstance(word, str)]
        choices = f" It is one of {', '.join(words)}." if words else ""
        raise ConfigError(f"{where}: {place or 'the config'}: {complaint}.{choices}") from error


_LIMIT = re.compile(r"Expected `(?:int|float)` (?P<relation>[<>]=?) (?P<number>\S+)")
_RELATIONS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}


def config_to_toml(config: Config) -> str:
    """The config as TOML that `read_config` reads back to an equal one."""
    return tomli_w.dumps(_table_of(config))


def check_config(config: Config, where: str = "the config") -> None:
    """Raise `ConfigError`, naming the file `where`, where a field is out of range or contradicts another."""
    config_from_table(_table_of(config), where)
    complaints = [*_fields_of_other_kinds(config.model), *_contradictions(config)]
    if complaints:
        raise ConfigError(f"{where}: {complaints[0]}.")


# Which kinds of model read a field; the others must leave it at its default. A registered kind may read any field.
_READ_BY = {
    **dict.fromkeys(("reasoning_layers", "aggregator", "normalisation", "captioner"), ("vsrn",)),
    **dict.fromkeys(("text_encoder", "text", "caption_bidirectional", "caption_aggregator"), ("vsrn", "vsepp")),
    **dict.fromkeys(("image_norm", "absolute", "similarity"), ("vsrn", "vsepp")),
    "scan": ("scan",),
    "network": ("vsepp",),
}


def _fields_of_other_kinds(model: ModelConfig) -> Iterator[str]:
    """A complaint for each field that is set and that this kind of model does not read."""
    for name, kinds in _READ_BY.items() if model.kind in ("vsrn", "vsepp", "scan") else ():
        value = getattr(model, name)
        off = isinstance(value, CaptionerConfig) and not value.enabled
        if not (model.kind in kinds or value == getattr(ModelConfig(), name) or off):
            readers = " and ".join(f'"{kind}"' for kind in kinds)
            yield f'model.{name} is read by model.kind = {readers} alone; leave it out of a "{model.kind}"'


def _contradictions(config: Config) -> Iterator[str]:
    """A complaint for each pair of fields that cannot both be as they are."""
    data, network, loss, train = config.data, config.model.network, config.loss, config.train
    drops = train.learning_rate_drop
    if loss.matching == "contrastive" and (loss.warm_up_epochs or loss.negatives != "hardest"):
        yield (
            'loss.warm_up_epochs and loss.negatives are for loss.matching = "triplet"; a contrastive loss weighs every'
            " negative of the batch by itself, so leave them out"
        )
    if loss.warm_up_epochs and loss.negatives == "all":
        yield 'loss.warm_up_epochs leads to the hardest negatives, not to loss.negatives = "all"; leave one of them out'
    if drops != sorted(set(drops)):
        yield "train.learning_rate_drop must be rising epochs, such as [10, 20]"
    if train.init_from and data.word_vectors:
        yield "train.init_from brings the vectors of words with it; leave out data.word_vectors"
    if not config.model.text_encoder.startswith(PRETRAINED_TEXT):
        if config.model.text != TextConfig():
            yield 'model.text is for model.text_encoder = "hf:NAME"; leave it out'
    elif data.vocabulary or data.word_vectors or config.model.caption_bidirectional:
        yield (
            f"model.text_encoder '{config.model.text_encoder[:100]}' has its own words and layers; leave out"
            " data.vocabulary, data.word_vectors and model.caption_bidirectional"
        )
    if not network.name and (data.photos or data.annotations):
        yield "data.photos and data.annotations are for a model that reads photos; set model.network.name"
    if network.name and data.path:
        yield "model.network reads photos: name data.photos and data.annotations instead of data.path"
    if network.name and (data.region_order != "stored" or train.drop_regions):
        yield "data.region_order and train.drop_regions are for regions, and model.network reads photos"
    if bool(data.photos) != bool(data.annotations):
        yield "data.photos and data.annotations go together; name both"
    if network.crop_size > network.photo_size:
        yield "model.network.crop_size must be at most model.network.photo_size"


def _check_names(table: dict[str, Any], where: str, prefix: str = "") -> None:
    """Raise `ConfigError` on a field that is not there, naming the nearest one, or on a number beyond 64 bits."""
    for name, value in table.items():
        if prefix + name not in config_fields():
            near = nearest_field(name, prefix, config_fields())
            hint = f" Did you mean '{near}'?" if near else f" It has {', '.join(siblings(prefix, config_fields()))}."
            raise ConfigError(f"{where}: there is no field {prefix}{name}.{hint}")
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        if not all(-(2**63) <= number < 2**63 for number in numbers):
            raise ConfigError(f"{where}: {prefix}{name} is beyond the 64 bits that TOML allows.")
        if isinstance(value, dict) and dataclasses.is_dataclass(config_fields()[prefix + name]):
            _check_names(value, where, prefix=f"{prefix}{name}.")


@functools.cache
def config_fields() -> dict[str, Any]:
    """The type of every field and section of a config, by its dotted name, such as "model.captioner.cell"."""
    types: dict[str, Any] = {}
    left: list[tuple[str, Any]] = [("", Config)]
    for prefix, section in left:
        for name, kind in get_type_hints(section).items():
            types[prefix + name] = kind
            left += [(f"{prefix}{name}.", kind)] if dataclasses.is_dataclass(kind) else []
    return types


def _table_of(config: Config) -> dict[str, Any]:
    """The config as nested tables, without what is None."""
    return dataclasses.asdict(config, dict_factory=lambda fields: {k: v for k, v in fields if v is not None})
