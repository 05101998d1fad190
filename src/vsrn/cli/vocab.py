"""`vsrn vocab`: captions -> a vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Force, Json, print_json
from vsrn.cli.progress import say


def main(
    data: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    splits: tuple[str, ...] = ("train",),
    min_count: int = 4,
    force: Force = False,
    json: Json = False,
) -> int:
    """Build a vocabulary: every word that the captions use often enough, the most frequent first.

    $ vsrn vocab data/flickr8k -o vocabulary.json

    The 2019 code counted the words of train and dev; `--splits train dev` does the same.

    Args:
        data: Folder of a region store with captions.
        output: File to write, JSON.
        splits: Splits whose captions are counted.
        min_count: A word seen less often than this becomes <unk>.
    """
    from vsrn.data.region_store import resolve_split, store_folder
    from vsrn.data.splits import read_split_captions
    from vsrn.data.vocabulary import build_vocabulary
    from vsrn.errors import ConfigError, VocabularyError
    from vsrn.files import write_atomically

    if min_count < 1:
        raise ConfigError("--min-count must be 1 or more.")
    if output.exists() and not force:
        raise VocabularyError(f"{output} is already there; name another file, or add --force to replace it.")
    data = store_folder(data)
    named = [resolve_split(data, split) for split in splits]
    captions = [caption for split in named for caption in read_split_captions(data, split)]
    vocabulary = build_vocabulary(captions, min_count)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, vocabulary.to_json())
    unknown = vocabulary.unknown_share(captions)
    if json:
        counts = {"num_words": len(vocabulary), "num_captions": len(captions)}
        print_json({"vocabulary": str(output), **counts, "unknown_share": round(unknown, 6)})
    say(
        f"{output}: {len(vocabulary):,} words from {len(captions):,} captions;"
        f" {unknown:.2%} of their words are rarer and become <unk>."
    )
    return 0
