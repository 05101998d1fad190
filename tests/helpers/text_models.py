"""Small text encoders in Hugging Face's layout, with random weights: folders as people download them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from worlds import WORDS

# "boat" and "trees" are no words of these models, but pieces that make them are.
PIECES = ["a", "bo", "##at", "tree", "##s", "##b", "##t", *(word for word in WORDS if word not in ("boat", "tree"))]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
LONGEST = 40


def tokenizer_of_pieces() -> Any:
    """BERT's fast tokenizer over `PIECES`."""
    transformers: Any = importlib.import_module("transformers")
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
    return transformers.BertTokenizerFast(vocab={piece: place for place, piece in enumerate(vocabulary)})


def byte_pair_tokenizer(start: str, end: str) -> Any:
    """A byte-level tokenizer over letters, as RoBERTa and CLIP have them, with these tokens around a caption."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(dict.fromkeys([start, "<pad>", end, "<unk>"] if start == "<s>" else [start, end]))
    vocabulary = {piece: place for place, piece in enumerate([*special, *letters])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    around = [(start, vocabulary[start]), (end, vocabulary[end])]
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=around)
    return made


def make_text_model(folder: Path, kind: str = "bert", seed: int = 3) -> Path:
    """A folder of a model of a kind: config.json, model.safetensors and tokenizer.json."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(seed)
    if kind in ("bert", "distilbert"):
        tokenizer = tokenizer_of_pieces().backend_tokenizer
        # As the published tokenizers of MiniLM do; a caption must get neither.
        tokenizer.enable_padding(length=12)
        tokenizer.enable_truncation(5)
    else:
        tokenizer = byte_pair_tokenizer(*(("<s>", "</s>") if kind == "roberta" else ("<|start|>", "<|end|>")))
    words = tokenizer.get_vocab_size() + 3
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}
        config = transformers.DistilBertConfig(vocab_size=words, max_position_embeddings=LONGEST, **sizes)
    elif kind == "clip":
        text = {**SIZES, "vocab_size": words, "max_position_embeddings": LONGEST, "eos_token_id": 1, "bos_token_id": 0}
        vision = {**SIZES, "image_size": 28, "patch_size": 7}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision)
    else:
        positions = LONGEST + (2 if kind == "roberta" else 0)
        config = transformers.AutoConfig.for_model(kind, vocab_size=words, max_position_embeddings=positions, **SIZES)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        # Fresh ones have biases of 0 and nearly equal words.
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edit_config(folder: Path, **fields: object) -> None:
    """Write fields into a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
