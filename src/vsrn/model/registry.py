"""The parts of a model by the names that a config gives them, vsrn's own and registered ones, and models built of them.

vsrn's own are written as "module:attribute" and imported when they are first used: names are checked without torch.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vsrn.config import PRETRAINED_TEXT
from vsrn.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from vsrn.config import Config, LossConfig, ModelConfig
    from vsrn.data.vocabulary import Vocabulary
    from vsrn.model.base import BaseTextEncoder, MatchingModel


class Registry:
    """Factories of one kind of part, by the name that a config gives them.

    A factory whose name ends with a colon, such as "hf:", makes every part whose name begins so.

    field     the config's field that holds such a name
    built_in  name -> "module:attribute" of vsrn's own
    """

    def __init__(self, field: str, built_in: Mapping[str, str]) -> None:
        self.field = field
        self.built_in = dict(built_in)
        self._added: dict[str, Callable[..., Any]] = {}

    @property
    def names(self) -> list[str]:
        """Every name that the field may hold."""
        return [*self.built_in, *self._added]

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Add a factory. Raises `ConfigError` where the name belongs to another one."""
        if name in self.names and self._added.get(name) is not factory:
            raise ConfigError(f"{self.field} '{name}' is already taken; register yours under another name.")
        self._added[name] = factory

    def check(self, name: str, where: str = "", field: str = "", also: tuple[str, ...] = ()) -> None:
        """Raise `ConfigError` where no part has this name.

        where, field  the file that names it, and the field where that is not the registry's own, for the message
        also          names that this field may hold beside those of parts
        """
        names = [*also, *self.names]
        if _key(name, names) not in names:
            shown = repr(name[:100])[1:-1]
            raise ConfigError(
                f"{where and f'{where}: '}{field or self.field} is '{shown}', which is none of {', '.join(names)};"
                f" if a module of yours registers it, name that module with --plugin.{did_you_mean(name, names)}"
            )

    def make(self, name: str, *arguments: object) -> Any:
        """What the factory of this name makes of the arguments. Raises `ConfigError` where there is none."""
        self.check(name)
        name = _key(name, self.names)
        if name in self._added:
            return self._added[name](*arguments)
        module, _, attribute = self.built_in[name].partition(":")
        return getattr(importlib.import_module(module), attribute)(*arguments)


def _key(name: str, names: list[str]) -> str:
    """The registered name that a name falls under: itself, or its beginning up to a colon where that is one."""
    beginning = name[: name.find(":") + 1]
    return beginning if beginning in names and name != beginning else name


AGGREGATORS = Registry(
    "model.aggregator",
    {
        "gru": "vsrn.model.aggregators:GlobalSemanticReasoning",
        "gru-mean": "vsrn.model.aggregators:MeanOfStates",
        "gru-residual": "vsrn.model.aggregators:LastStateAndMean",
        "bigru": "vsrn.model.aggregators:BothDirections",
        "mean": "vsrn.model.aggregators:MeanPooling",
        "gpo": "vsrn.model.aggregators:GeneralisedPooling",
    },
)
TEXT_ENCODERS = Registry(
    "model.text_encoder",
    {"gru": "vsrn.model.vsrn:TextEncoder", PRETRAINED_TEXT: "vsrn.model.pretrained_text:PretrainedText"},
)
LOSSES = Registry(
    "loss.matching",
    {"triplet": "vsrn.model.losses:TripletLoss", "contrastive": "vsrn.model.losses:ContrastiveLoss"},
)
MODEL_KINDS = Registry(
    "model.kind",
    {"vsrn": "vsrn.model.vsrn:build_vsrn", "vsepp": "vsrn.model.vsepp:build_vsepp", "scan": "vsrn.model.scan:SCAN"},
)


def register_aggregator(name: str, factory: Callable[[int], nn.Module]) -> None:
    """Add a way of pooling regions, or words, into one vector, for `model.aggregator` and `model.caption_aggregator`.

    factory  joint size D -> a module: (B, N, D) vectors, (B, N) mask or None -> (B, D). The mask is True where a
             vector is real, which are the first of each row, and None where all are.

    Raises `ConfigError` where the name is taken.
    """
    AGGREGATORS.register(name, factory)


def register_loss(name: str, factory: Callable[[LossConfig], nn.Module]) -> None:
    """Add a matching loss, for `loss.matching`. Raises `ConfigError` where the name is taken.

    factory  config of the loss -> a module: (B, B) similarities, images as rows and matches on the diagonal, and the
             epochs trained so far (with a fraction) -> a scalar. Its parameters are trained with the model's and kept
             in the run's checkpoint.
    """
    LOSSES.register(name, factory)


def register_text_encoder(name: str, factory: Callable[[ModelConfig, int], BaseTextEncoder]) -> None:
    """Add an encoder of captions, for `model.text_encoder`. Raises `ConfigError` where the name is taken.

    factory  config of the model, size of the vocabulary -> a `vsrn.model.base.BaseTextEncoder`
    """
    TEXT_ENCODERS.register(name, factory)


def register_model(name: str, factory: Callable[[ModelConfig, int], MatchingModel]) -> None:
    """Add a kind of model, for `model.kind`. Raises `ConfigError` where the name is taken.

    factory  config of the model, size of the vocabulary -> a `vsrn.model.base.MatchingModel`
    """
    MODEL_KINDS.register(name, factory)


def check_model_parts(model: ModelConfig, where: str = "the config") -> None:
    """Raise `ConfigError`, naming the file `where`, where a model's config names a part that nobody registered."""
    MODEL_KINDS.check(model.kind, where)
    AGGREGATORS.check(model.aggregator, where)
    AGGREGATORS.check(model.caption_aggregator, where, "model.caption_aggregator", also=("last",))
    TEXT_ENCODERS.check(model.text_encoder, where)


def check_parts(config: Config, where: str = "the config") -> None:
    """Raise `ConfigError`, naming the file `where`, where a config names a part or a loss that nobody registered."""
    check_model_parts(config.model, where)
    LOSSES.check(config.loss.matching, where)


def build_model(config: Config, vocabulary: Vocabulary, *, empty: bool = False, where: str = "the config") -> Any:
    """A fresh model of the config's kind and sizes: a `MatchingModel`, or another `BaseModel` such as SCAN.

    empty  whether its tensors take no memory until `load_weights` fills them
    where  the file of the config, for messages

    Raises `ConfigError` where the config names a part that nobody registered.
    """
    import torch  # noqa: PLC0415 - names of parts are checked without it

    from vsrn.model.base import BaseModel  # noqa: PLC0415 - as above

    check_model_parts(config.model, where)
    # A model that takes its weights from a file is made without a random number of the user's.
    with torch.random.fork_rng(devices=[], enabled=empty), torch.device("meta") if empty else contextlib.nullcontext():
        model = MODEL_KINDS.make(config.model.kind, config.model, len(vocabulary))
    if not isinstance(model, BaseModel):
        raise ConfigError(f"the factory of model.kind '{config.model.kind}' makes no vsrn.model.base.BaseModel.")
    return model
