"""`vsrn vocab`: captions -> a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Force, Json, check_from_one, print_json
from vsrn.cli.progress import say


def main(
    data: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    splits: tuple[str, ...] = ("train",),
    min_count: int = 4,
    force: Force = False,
    json: Json = False,
) -> None:
    """Build a vocabulary: every word that the captions use often enough, the most frequent first.

    $ vsrn vocab data/flickr8k -o vocabulary.json
    $ vsrn vocab f30k_precomp_vocab.pkl -o vocabulary.json

    The 2019 code counted the words of train and dev; `--splits train dev` does the same. A vocabulary, such as a .pkl
    of 2019, becomes JSON as it is; it is read safely, and nothing in it runs.

    Args:
        data: Folder of a region store with captions; captions in another form
            (docs/data-formats.md), such as COCO's folder; or a vocabulary.
        output: File to write, JSON.
        splits: Splits whose captions are counted.
        min_count: A word seen less often than this becomes <unk>.
    """
    from vsrn.data.vocabulary import build_vocabulary, is_vocabulary, read_vocabulary
    from vsrn.errors import VocabularyError
    from vsrn.files import write_atomically

    check_from_one(min_count=min_count)
    if output.exists() and not force:
        raise VocabularyError(f"{output} is already there; name another file, or add --force to replace it.")
    captions = None if is_vocabulary(data) else _captions(data, splits)
    vocabulary = read_vocabulary(data) if captions is None else build_vocabulary(captions, min_count)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, vocabulary.to_json())
    found: dict[str, object] = {"vocabulary": str(output), "num_words": len(vocabulary)}
    whence = f"of {data}."
    if captions is not None:
        unknown = vocabulary.unknown_share(captions)
        found |= {"num_captions": len(captions), "unknown_share": round(unknown, 6)}
        whence = f"from {len(captions):,} captions; {unknown:.2%} of their words are rarer and become <unk>."
    if json:
        print_json(found)
    say(f"{output}: {len(vocabulary):,} words {whence}")


def _captions(data: Path, splits: Sequence[str]) -> list[str]:
    """The captions of some splits of a region store, or of captions in another form."""
    from vsrn.data.annotations import choose_split, is_coco_folder, read_annotations
    from vsrn.data.region_store import resolve_split
    from vsrn.data.splits import read_split_captions

    if data.is_file() or (data.is_dir() and is_coco_folder(data)):
        found = read_annotations(data)
        chosen = [photo for split in splits for photo in found[choose_split(data, found, split)]]
        return [caption for photo in chosen for caption in photo.captions]
    named = [resolve_split(data, split) for split in splits]
    return [caption for split in named for caption in read_split_captions(data, split)]
