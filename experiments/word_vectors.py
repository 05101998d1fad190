"""Write a file of word vectors for the words of some captions, from those that the package `wordllama` ships.

    pip install wordllama tokenizers
    python experiments/word_vectors.py data/flickr8k/train_caps.txt -o data/word-vectors.txt

WordLlama's vectors (256 numbers, MIT licence) were made from token embeddings of language models and trained on the
similarity of sentences. A word's vector is the mean over its pieces; over all words each number then has mean 0, and
all together a standard deviation of `SPREAD`, about that of the words of a fresh model. The package's code is not run.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from vsrn.data.splits import read_captions
from vsrn.data.tokenizer import tokenize
from vsrn.files import write_atomically

SPREAD = 0.1


def main(
    captions: Annotated[Path, tyro.conf.Positional], *, output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
) -> None:
    """Write a line for every word of the captions: the word and its numbers.

    Args:
        captions: One caption a line.
        output: The file, in GloVe's text format.
    """
    found = find_spec("wordllama")
    if found is None or found.origin is None:
        sys.exit("error: wordllama is not installed; run `pip install wordllama`.")
    package = Path(found.origin).parent
    (table,) = load_file(package / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    words = sorted({word for caption in read_captions(captions) for word in tokenize(caption)})
    pieces = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    vectors = np.stack([table[ids].astype(np.float32).mean(axis=0) for ids in pieces])
    vectors -= vectors.mean(axis=0)
    vectors *= SPREAD / vectors.std()
    lines = [
        f"{word} {' '.join(f'{number:.5f}' for number in vector)}" for word, vector in zip(words, vectors, strict=True)
    ]
    write_atomically(output, "\n".join(lines).encode() + b"\n")
    print(f"{output}: {len(words):,} words of {vectors.shape[1]} numbers")


if __name__ == "__main__":
    tyro.cli(main)
