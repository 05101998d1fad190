"""`vsrn convert`: a checkpoint published in 2019 -> a model that `vsrn evaluate` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Json, print_json
from vsrn.cli.progress import say


def main(
    checkpoint: tyro.conf.Positional[Path],
    *,
    vocab: Path,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    captioner: Path | None = None,
    json: Json = False,
) -> None:
    """Read what the authors published in 2019, safely, and write it in our format.

    $ vsrn convert model_coco_1.pth.tar --vocab coco_precomp_vocab.pkl -o vsrn-coco-1

    Both files are pickles. Only names on a closed list are admitted, and nothing in a file runs.

    Args:
        checkpoint: A .pth.tar as the 2019 code, or that of SCAN or VSE++, saved it.
        vocab: The vocabulary it was trained with: a .pkl of 2019, SCAN's JSON, or ours.
        output: Folder to write; it must not hold a model yet.
        captioner: The captioner's weights, where they were saved beside the checkpoint.
    """
    from vsrn.convert.checkpoint import read_checkpoint
    from vsrn.data.vocabulary import read_vocabulary
    from vsrn.errors import CheckpointError, VocabularyError
    from vsrn.model.registry import build_model
    from vsrn.model.saved import WEIGHTS_FILE, StoredModel, write_model
    from vsrn.tensors import load_weights

    if any((output / part).exists() for part in (WEIGHTS_FILE, "state")):
        raise CheckpointError(f"{output} already holds a model or a run; choose another folder with -o.")
    vocabulary = read_vocabulary(vocab)
    legacy = read_checkpoint(checkpoint, captioner)
    if legacy.vocabulary_size != len(vocabulary):
        raise VocabularyError(
            f"{vocab} has {len(vocabulary):,} words, but {checkpoint} was trained with"
            f" {legacy.vocabulary_size:,}; name the vocabulary that it was published with."
        )
    model = build_model(legacy.config, vocabulary, empty=True)
    load_weights(model, legacy.weights, checkpoint)
    write_model(output, StoredModel(legacy.config, vocabulary, model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if json:
        print_json({"model": str(output), "parameters": parameters, "num_words": len(vocabulary)})
    say(f"{output}: {parameters:,} parameters, {len(vocabulary):,} words.")
    say(f"Next: vsrn evaluate {output} --data FOLDER --split test")
