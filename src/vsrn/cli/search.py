"""`vsrn search`: a sentence or a photo -> the photos of an index that fit it."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import vsrn
from vsrn.cli.options import Device, Index, Json, Uri, print_json, say_words
from vsrn.errors import ConfigError
from vsrn.files import printable
from vsrn.search.where import Where

if TYPE_CHECKING:
    from vsrn.search.index import Hit
    from vsrn.search.index import Index as OpenIndex


def main(
    index: Index,
    sentence: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SENTENCE]")] = None,
    *,
    image: Annotated[Path | None, tyro.conf.arg(metavar="PHOTO")] = None,
    like: Annotated[str | None, tyro.conf.arg(metavar="PHOTO")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10,
    folder: str | None = None,
    since: Annotated[str | None, tyro.conf.arg(metavar="YYYY-MM-DD")] = None,
    until: Annotated[str | None, tyro.conf.arg(metavar="YYYY-MM-DD")] = None,
    name: str | None = None,
    fold: bool = False,
    min_score: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None,
    rerank: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
    uri: Uri = "",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Find photos by a sentence, or by a photo they should be like.

    $ vsrn search idx "two dogs play in the snow" -k 5
    $ vsrn search idx --image query.jpg
    $ vsrn search idx --like holiday/beach.jpg --since 2024-06-01
    $ vsrn search idx "in snow" --like holiday/dog.jpg

    Before each photo stand its similarity and, where the model was measured for it, how likely it is that it fits.
    A terminal that can show pictures (iTerm2, kitty, sixel) shows them.

    Args:
        sentence: What the photos should show; with --image or --like, what they should show besides.
        image: A photo, in the index or not, that they should be like.
        like: The same by a photo of the index, named by its id or path; quicker, since nothing is extracted.
        k: How many photos to find.
        folder: Only photos in this folder, named as `--json` names photos, or by a path to it.
        since: Only photos taken on this day or later.
        until: Only photos taken on this day or earlier.
        name: Only photos with this in their file names, in letters of any case.
        fold: Put those of the k photos that look the same, or are copies, on the line of the first of them.
        min_score: Only photos whose chance to fit the sentence, from 0 to 1, is at least this: the number in percent. A
            search by a photo, or a model without such chances, compares it with the similarity, the first number.
        rerank: A SCAN that re-orders the best 50 by comparing every word with every region; it needs torch.
    """
    query = _query(sentence, image, like, reranked=rerank is not None)
    where = Where(folder, _day(since, "--since"), _day(until, "--until"), name=name or None)
    with vsrn.open_index(index, uri=uri, device=device) as opened:
        hits = _search(opened, query, k, where, rerank, device)
        kept = hits if min_score is None else [hit for hit in hits if hit.fits(min_score)]
        kept = opened.fold(kept) if fold else kept
        say_words(words := opened.encoder.read_words(sentence or ""))
        if json:
            found = [_for_machines(hit) for hit in kept]
            print_json({"index": str(index), "query": query} | words.to_json() | {"hits": found})
            return
        _show(opened, kept)
        if not kept and (sentence is None or words.asks):
            print(_why_none(opened, where, any_found=bool(hits)), file=sys.stderr)


def _query(sentence: str | None, image: Path | None, like: str | None, *, reranked: bool) -> dict[str, str]:
    """What is asked, by the name of the option. Raises `ConfigError` where that is nothing, too much, or empty."""
    given = {"sentence": sentence, "image": None if image is None else str(image), "like": like}
    query = {name: value for name, value in given.items() if value is not None}
    if not query or (image is not None and like is not None):
        raise ConfigError(
            'ask one thing: vsrn search INDEX "a sentence", --image PHOTO, --like ID, or a photo with words.'
        )
    if sentence is not None and not sentence.strip():
        raise ConfigError("the sentence is empty; say what the photos should show.")
    if reranked and list(query) != ["sentence"]:
        raise ConfigError("--rerank compares the words of a sentence with photos; give a sentence alone.")
    return query


def _search(
    index: OpenIndex, query: dict[str, str], k: int, where: Where, rerank: Path | None, device: str
) -> list[Hit]:
    words = query.get("sentence", "")
    if rerank is not None:
        from vsrn.search.rerank import Reranker

        return Reranker(index, rerank, device).search(words, k, where)
    if "like" in query:
        return index.search_like(index.id_of(query["like"]), k, where, words)
    return index.search_image(query["image"], k, where, words) if "image" in query else index.search(words, k, where)


def _why_none(index: OpenIndex, where: Where, *, any_found: bool) -> str:
    if any_found:
        return "No photo reaches --min-score."
    if not len(index):
        return "The index holds no photos; `vsrn index` adds them."
    return "No photo of the index passes the filters." if where else "No photo was found."


def _show(index: OpenIndex, hits: Sequence[Hit]) -> None:
    draw = picture_protocol() if sys.stdout.isatty() else None
    for hit in hits:
        fit = "" if hit.fit is None else f"{hit.fit:4.0%}  "
        alike = "".join(f"  = {printable(one.path)}" for one in hit.alike)
        print(f"{hit.score:.3f}  {fit}{printable(hit.path)}{alike}")
        if draw is not None:
            print(draw(index.thumbnail(hit.id)))


def _for_machines(hit: Hit) -> dict[str, object]:
    fit = {} if hit.fit is None else {"fit": round(hit.fit, 4)}
    alike = {"alike": [one.id for one in hit.alike]} if hit.alike else {}
    return {"id": hit.id, "score": round(hit.score, 6)} | fit | {"path": printable(hit.path)} | alike


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text} is no date; write it as 2024-05-17.") from error


ROWS = 8
KITTY_CHUNK = 4096
SIXEL_SIDE, SIXEL_COLOURS = 160, 64

# JPEG bytes -> what to print.
Draw = Callable[[bytes], str]


def picture_protocol(environment: Mapping[str, str] = os.environ) -> Draw | None:
    """The function that makes a picture for this terminal, or None where no variable says that it shows pictures."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term.startswith(("screen", "tmux")):
        # Multiplexers swallow the sequences.
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return kitty
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    if term.startswith(("foot", "mlterm", "contour")) or "sixel" in term:
        return sixel
    return None


def iterm2(jpeg: bytes) -> str:
    """A JPEG as an inline image of iTerm2: https://iterm2.com/documentation-images.html"""
    content = base64.b64encode(jpeg).decode()
    return f"\x1b]1337;File=inline=1;size={len(jpeg)};height={ROWS};preserveAspectRatio=1:{content}\x07"


def kitty(jpeg: bytes) -> str:
    """A JPEG in kitty's graphics protocol, which takes PNG: https://sw.kovidgoyal.net/kitty/graphics-protocol/"""
    from PIL import Image

    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")
    content, parts = base64.b64encode(png.getvalue()).decode(), []
    for first in range(0, len(content), KITTY_CHUNK):
        key, end = "" if first else f"a=T,f=100,r={ROWS},", first + KITTY_CHUNK
        parts.append(f"\x1b_G{key}m={int(end < len(content))};{content[first:end]}\x1b\\")
    return "".join(parts)


def sixel(jpeg: bytes) -> str:
    """A JPEG as DEC's sixels: six rows at a time, one colour after the other, a character a column."""
    import numpy as np
    from PIL import Image

    photo = Image.open(io.BytesIO(jpeg)).convert("RGB")
    photo.thumbnail((SIXEL_SIDE, SIXEL_SIDE))
    few = photo.quantize(SIXEL_COLOURS)
    palette = np.array(few.getpalette(), dtype=int).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(few)
    pixels = np.pad(pixels, ((0, -len(pixels) % 6), (0, 0)), constant_values=255)
    parts = [f'\x1bPq"1;1;{photo.width};{photo.height}']
    parts += [f"#{colour};2;{red};{green};{blue}" for colour, (red, green, blue) in enumerate(palette)]
    for band in pixels.reshape(-1, 6, photo.width):
        for colour in np.unique(band[band < SIXEL_COLOURS]):
            bits = ((band == colour) << np.arange(6)[:, None]).sum(axis=0)
            parts.append(f"#{colour}" + "".join(chr(63 + bit) for bit in bits) + "$")
        parts.append("-")
    return "".join(parts) + "\x1b\\"
