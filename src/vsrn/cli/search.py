"""`vsrn search`: a sentence or a photo -> the photos of an index that fit it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.options import Device, Json, print_json, printable
from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from vsrn.search.index import Hit, Index
    from vsrn.search.records import Where


def main(
    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")],
    sentence: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SENTENCE]")] = None,
    *,
    image: Annotated[Path | None, tyro.conf.arg(metavar="PHOTO")] = None,
    like: Annotated[str | None, tyro.conf.arg(metavar="PHOTO")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10,
    folder: str | None = None,
    since: Annotated[str | None, tyro.conf.arg(metavar="YYYY-MM-DD")] = None,
    until: Annotated[str | None, tyro.conf.arg(metavar="YYYY-MM-DD")] = None,
    rerank: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
    uri: str = "",
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Find photos by a sentence, or by a photo they should be like.

    $ vsrn search idx "two dogs play in the snow" -k 5
    $ vsrn search idx --image query.jpg
    $ vsrn search idx --like holiday/beach.jpg --since 2024-06-01
    $ vsrn search idx "two dogs play in the snow" --rerank runs/scan

    A terminal that can show pictures (iTerm2, kitty, sixel) shows them; others get paths.

    Args:
        index: Folder made by `vsrn index`.
        sentence: What the photos should show.
        image: A photo, in the index or not, that they should be like.
        like: The same by a photo of the index, named by its id or by a path that a search printed; quicker, since
            nothing is extracted.
        k: How many photos to find.
        folder: Only photos in this folder, below the one that was indexed.
        since: Only photos taken on this day or later.
        until: Only photos taken on this day or earlier.
        rerank: A SCAN that re-orders the best 50 by comparing every word with every region; it needs torch.
        uri: Server or file of an index made with --engine milvus --uri.
        json: Print the result as JSON.
    """
    given = {"sentence": sentence, "image": None if image is None else str(image), "like": like}
    query = {name: value for name, value in given.items() if value is not None}
    if len(query) != 1:
        raise ConfigError('ask one thing: vsrn search INDEX "a sentence", or --image PHOTO, or --like ID.')
    if sentence is not None and not sentence.strip():
        raise ConfigError("the sentence is empty; say what the photos should show.")
    if rerank is not None and sentence is None:
        raise ConfigError("--rerank compares the words of a sentence with photos; give a sentence.")
    from vsrn.search.index import open_index
    from vsrn.search.records import Where

    where = Where(folder, _day(since, "--since"), _day(until, "--until"))
    with open_index(index, uri, device) as opened:
        hits = _search(opened, query, k, where, rerank, device)
        if json:
            print_json({"index": str(index), "query": query, "hits": [_as_json(hit) for hit in hits]})
        else:
            _show(opened, hits)
    return 0


def _search(index: Index, query: dict[str, str], k: int, where: Where, rerank: Path | None, device: str) -> list[Hit]:
    ((kind, value),) = query.items()
    if rerank is not None:
        from vsrn.search.index import Reranker

        return Reranker(index, rerank, device).search(value, k, where)
    if kind == "like":
        return index.search_like(index.id_of(value), k, where)
    return (index.search if kind == "sentence" else index.search_image)(value, k, where)


def _show(index: Index, hits: Sequence[Hit]) -> None:
    from vsrn.cli.pictures import picture_protocol

    draw = picture_protocol() if sys.stdout.isatty() else None
    for hit in hits:
        print(f"{hit.score:.3f}  {printable(hit.path)}")
        if draw is not None:
            print(draw(index.thumbnail(hit.id)))
    if not hits:
        print("No photo of the index passes the filters.", file=sys.stderr)


def _as_json(hit: Hit) -> dict[str, object]:
    return {"id": hit.id, "score": round(hit.score, 6), "path": printable(hit.path)}


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text} is no date; write it as 2024-05-17.") from error
