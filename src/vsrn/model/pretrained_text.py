"""Pretrained text encoders in Hugging Face's layout, as captions' encoders: `model.text_encoder = "hf:NAME"`.

NAME is a folder, or a model on Hugging Face's hub. Of its files, config.json (only the kind and the sizes in `KINDS`),
tokenizer.json and model.safetensors are read; no code runs. A run keeps the sizes in its config, and the tokenizer in
its vocabulary, so that a model is opened without NAME.

Shapes: B captions, T tokens of the longest, H size of the network's states, D joint size.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from torch import nn

from vsrn.config import PRETRAINED_TEXT, ModelConfig
from vsrn.data.vocabulary import END, PAD, SPECIAL_WORDS, START, SubwordVocabulary, open_tokenizer
from vsrn.errors import CheckpointError, ConfigError, VocabularyError, one_line
from vsrn.files import read_json, read_text
from vsrn.model.base import BaseTextEncoder, WithNetwork, make_projection, project
from vsrn.model.gru import dtype_of, mask_of, state_at
from vsrn.model.reasoning import RegionRelationshipReasoning
from vsrn.model.registry import AGGREGATORS
from vsrn.tensors import load_weights, read_tensors

_BERT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
)
# What is read of a config.json, by its kind.
KINDS: dict[str, tuple[str, ...]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": (
        *("dim", "n_layers", "n_heads", "hidden_dim", "activation", "dropout", "attention_dropout"),
        *("max_position_embeddings", "sinusoidal_pos_embds"),
    ),
    "clip_text_model": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("layer_norm_eps", "attention_dropout", "max_position_embeddings"),
    ),
}
# The place of a caption's first token among the positions; those before it are not used.
_FIRST_POSITION = {"roberta": 2}
MOST_LAYERS, LARGEST = 100, 2**20
_CONFIG, _TOKENIZER, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


class TextSource(NamedTuple):
    """What NAME says of itself.

    architecture  kind and sizes as JSON, for `model.text.architecture`
    vocabulary    its pieces of words, in our order
    rows          for each of them, its row in the published table of words
    """

    architecture: str
    vocabulary: SubwordVocabulary
    rows: list[int]


class PretrainedText(WithNetwork, BaseTextEncoder):
    """Pretrained network, frozen for the first `text.frozen_epochs`; linear layer, graph convolutions, pooling, L2.

    VSE-infinity with BERT has `caption_aggregator = "gpo"` and no convolutions; as VSRN++ is described, the words go
    through convolutions and a GRU, "gru". "last" takes the last token's state, which is CLIP's own.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config)
        self.network, self.kind = build_network(config.text.architecture, vocabulary_size)
        for parameter in self.network.parameters():  # Their learning rate is another.
            parameter.pretrained = True  # type: ignore[attr-defined]
        sizes: Any = self.network.config
        self.first_position = _FIRST_POSITION.get(self.kind, 0)
        self.longest = sizes.max_position_embeddings - self.first_position
        self.projection = make_projection(sizes.hidden_size, config.joint_dim)
        layers = range(config.text.reasoning_layers)
        self.reasoning = nn.ModuleList(RegionRelationshipReasoning(config.joint_dim) for _ in layers)
        self.aggregator: nn.Module | None = None
        if config.caption_aggregator != "last":
            self.aggregator = AGGREGATORS.make(config.caption_aggregator, config.joint_dim)
        self.trains_from = config.text.frozen_epochs
        self.begin_epoch(0)

    def load_first_weights(self) -> None:
        """Give the network its published weights. Raises `ConfigError` or `CheckpointError` where they are no good."""
        path = _file(self.config, _WEIGHTS)
        named = {_name_of(name): tensor for name, tensor in read_tensors(path)[0].items()}
        ours = {name: named[name] for name in self.network.state_dict() if name in named}
        rows = read_source(self.config).rows
        table = f"embeddings.{'token_embedding' if self.kind == 'clip_text_model' else 'word_embeddings'}.weight"
        if table in ours:
            if len(ours[table]) <= max(rows):
                raise CheckpointError(f"{path} has fewer words than the tokenizer beside it; take both of one model.")
            ours[table] = ours[table][rows]
        load_weights(self.network, ours, path, "name a model of the kind that its config.json says.")

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, D); what is beyond the network's positions is not read."""
        tokens = tokens[:, : self.longest]
        lengths = lengths.to(tokens.device).clamp(max=self.longest)
        mask = mask_of(tokens, lengths)
        assert mask is not None, "captions have lengths"
        positions = self.first_position + torch.arange(tokens.shape[1], device=tokens.device)[None]
        places = {"position_ids": positions} if self.first_position else {}
        states = self.network(input_ids=tokens, attention_mask=self._shut(mask), **places).last_hidden_state
        words = project(self.projection, states) * mask[..., None]
        for layer in self.reasoning:
            words = layer(words, mask)
        pooled = state_at(words, lengths - 1) if self.aggregator is None else self.aggregator(words, mask)
        return self.as_embeddings(pooled)

    def _shut(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, T) True where a token is real -> (B, 1, T, T) what is added to the affinity of each token to each.

        It is 0, or the least number there is where a token must not look: at padding, and in CLIP at what follows.
        """
        steps = mask.shape[1]
        seen = mask[:, None, None, :].expand(-1, 1, steps, -1)
        if self.kind == "clip_text_model":
            seen = seen & torch.ones(steps, steps, dtype=torch.bool, device=mask.device).tril()
        dtype = dtype_of(self.network)
        return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)


def build_network(architecture: str, vocabulary_size: int) -> tuple[Any, str]:
    """A network of transformers with random weights, without what comes after its last states, and its kind.

    architecture  kind and sizes as JSON, perhaps a stranger's

    Raises `ConfigError` where it is no architecture, or transformers is missing or cannot make it.
    """
    if not architecture:
        raise ConfigError("model.text.architecture is not known; train the model, or put its own config.toml back.")
    try:
        sizes = msgspec.json.decode(architecture, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"model.text.architecture is no JSON ({error}); put the model's own config back.") from error
    kind, config = _config_of(sizes, "model.text.architecture")
    transformers = _transformers()
    # The numbers of the special words are ours.
    config.update({"vocab_size": vocabulary_size, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END})
    try:
        network: Any = transformers.AutoModel.from_config(config, attn_implementation="eager")
    except Exception as error:  # transformers checks sizes with errors of many kinds
        raise ConfigError(f"model.text.architecture cannot be built ({_short(error)}).") from error
    network = getattr(network, "text_model", network)
    if hasattr(network, "pooler"):
        network.pooler = None
    # Constants that are not stored with the weights are there even where the weights are made on the device "meta".
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            places = torch.arange(buffer.shape[-1], device="cpu")[None]
            setattr(network.get_submodule(owner), attribute, places if attribute == "position_ids" else 0 * places)
    return network, kind


def read_source(config: ModelConfig) -> TextSource:
    """The architecture and the pieces of words of the model that `text_encoder` names.

    Raises `ConfigError` where it is not here and may not be downloaded, is of another kind, or brings code.
    """
    page = read_json(_file(config, _CONFIG), dict[str, Any], "name the folder of a Hugging Face model.", ConfigError)
    where = f"the {_CONFIG} of '{_shown(config)}'"
    _check_no_code(page, where)
    if page.get("model_type") == "clip" and isinstance(page.get("text_config"), dict):
        page = page["text_config"] | {"model_type": "clip_text_model"}
        _check_no_code(page, where)
    kind, made = _config_of(page, where)
    sizes = {"model_type": kind, **{name: getattr(made, name) for name in KINDS[kind]}}
    vocabulary, rows = _read_pieces(config)
    return TextSource(msgspec.json.encode(sizes).decode(), vocabulary, rows)


def _read_pieces(config: ModelConfig) -> tuple[SubwordVocabulary, list[int]]:
    """The pieces of words of a tokenizer, in our order, and the row of each in the published table of words."""
    path = _file(config, _TOKENIZER)
    content = read_text(path)
    try:
        opened = open_tokenizer(content)
        around = opened.encode("a").tokens
        pieces = dict(sorted(opened.get_vocab().items(), key=lambda entry: entry[1]))
        start, end = around[0], around[-1]
        if len(around) < 3 or opened.encode("a", add_special_tokens=False).tokens in ([start], [end]):
            raise ConfigError(f"{path} puts no token before and after a caption; take another model.")
        padding = next((piece for piece in ("[PAD]", "<pad>") if piece in pieces), end)
        unknown = next((piece for piece in ("[UNK]", "<unk>") if piece in pieces), padding)
        special = [padding, start, end, unknown]
        others = [piece for piece in pieces if piece not in special]
        vocabulary = SubwordVocabulary([*SPECIAL_WORDS, *others], content)
    except VocabularyError as error:
        raise ConfigError(f"{path}: {error}") from error
    return vocabulary, [pieces[piece] for piece in (*special, *others)]


def _config_of(page: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The kind and the config of transformers of a page that says kind and sizes; what else it says is left out.

    Raises `ConfigError`, naming the page `where`, where it is of another kind or a size is out of range.
    """
    kind = page.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{where} is of the kind {kind!r:.100}; a text encoder is one of {', '.join(KINDS)}.")
    if page.get("is_decoder") or page.get("position_embedding_type") not in (None, "absolute"):
        raise ConfigError(f"{where} is of a {kind} that only reads backwards or has relative positions; take another.")
    sizes = {name: page[name] for name in KINDS[kind] if page.get(name) is not None}
    for name, value in sizes.items():
        most = MOST_LAYERS if name.endswith("layers") else LARGEST
        number = isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= most
        if not number and not (isinstance(value, str) and re.fullmatch(r"[a-z_\d]{1,30}", value)):
            raise ConfigError(f"{where} has {name} = {value!r:.100}, which is out of range.")
    transformers = _transformers()
    try:
        return kind, transformers.AutoConfig.for_model(kind, **sizes)
    except Exception as error:  # transformers checks types with errors of its own
        raise ConfigError(f"{where} cannot be used ({_short(error)}).") from error


def _check_no_code(page: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` where a config.json names code to run, its own or a repository's."""
    implementations = ("attn_implementation", "_attn_implementation", "experts_implementation")
    named = [field for field in ("auto_map", "custom_pipelines") if page.get(field)]
    named += [field for field in implementations if "/" in str(page.get(field) or "")]
    if named:
        raise ConfigError(f"{where} names code to run ({named[0]}), and no code of a model runs here; take another.")


def _file(config: ModelConfig, name: str) -> Path:
    """A file of the model that `text_encoder` names. Raises `ConfigError` where it cannot be had."""
    source, shown = config.text_encoder.removeprefix(PRETRAINED_TEXT), _shown(config)
    if not source:
        raise ConfigError(f"model.text_encoder '{shown}' wants a name, as in hf:google-bert/bert-base-uncased.")
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise ConfigError(f"model.text_encoder '{shown}' names a folder without {name}; no other form is read.")
        return Path(source) / name
    try:
        found = try_to_load_from_cache(source, name)
    except ValueError as error:
        raise ConfigError(f"model.text_encoder '{shown}' is neither a folder nor a name on the hub.") from error
    if isinstance(found, str):
        return Path(found)
    if not config.text.download:
        raise ConfigError(
            f"the {name} of model.text_encoder '{shown}' is not on this machine, and a config downloads nothing by"
            " itself; to download it, add --model.text.download True to `vsrn train`, or name a folder."
        )
    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # hubs fail in as many ways as networks do
        raise ConfigError(f"the hub did not serve the {name} of '{shown}' ({_short(error)}).") from error


def _name_of(published: str) -> str:
    """The network's own name of a tensor in a published file; old ones of BERT call scale and shift gamma and beta."""
    name = re.sub(r"^(bert|roberta|distilbert|text_model)\.", "", published)
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            f"model.text_encoder 'hf:' needs the package transformers ({error}); run `pip install '.[hub]'` in the"
            " checkout."
        ) from error


def _shown(config: ModelConfig) -> str:
    return repr(config.text_encoder[:200])[1:-1]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
