"""`vsrn explain`: a photo and a sentence -> which regions earned the match."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import vsrn
from vsrn.cli.options import Device, Force, Json, Model, Precision, print_json, say_words
from vsrn.errors import ConfigError, PhotoError
from vsrn.files import printable
from vsrn.pretrained import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

    from vsrn.data.stand_ins import ReadWords
    from vsrn.encoders.explain import ExplainView, Explanation
    from vsrn.search.index import Index

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def main(
    image: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE]")] = None,
    sentence: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SENTENCE")] = None,
    *,
    model: Model = None,
    index: Annotated[Path | None, tyro.conf.arg(metavar="INDEX")] = None,
    photo_id: Annotated[str | None, tyro.conf.arg(name="id", metavar="ID")] = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    view: Literal["relevance", "words", "sentence", "image"] | None = None,
    word: Annotated[str | None, tyro.conf.arg(metavar="WORD")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 3,
    force: Force = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Draw where in a photo its match with a sentence lies: a heat map, and boxes around the best regions.

    $ vsrn explain beach.jpg "two dogs play on a beach" -o why.png
    $ vsrn explain beach.jpg "two dogs play on a beach" --word beach
    $ vsrn explain --index idx --id holiday/beach.jpg "two dogs play on a beach"

    docs/explain.md says what is computed. --json prints the boxes and weights of all regions, also by word.

    Args:
        image: A photo, unless it is named by --index and --id.
        sentence: What it is to be compared with.
        index: Folder made by `vsrn index`, which keeps the regions of its photos, so that nothing is extracted.
        photo_id: A photo of the index: its path below the folder that was indexed.
        output: Picture to write: .png, .jpg or .webp [default: PHOTO-explained.png here; none with --json].
        view: relevance: how well each region fits the sentence. words: the best place of each word. sentence: what the
            similarity loses without a region. image: the paper's view, which looks at the image alone [default:
            relevance, or sentence where a model's regions cannot be compared with sentences].
        word: Only where this word of the sentence is.
        k: How many boxes to draw.
    """
    if k < 0:
        raise ConfigError(f"-k is {k}; ask for 0 boxes or more.")
    if word is not None and view is not None:
        raise ConfigError("--word has a view of its own; leave out --view.")
    view = "words" if word is not None else view
    photo, sentence = _question([word for word in (image, sentence) if word is not None], index, photo_id, model)
    output = output or (None if json else Path(f"{photo.stem}-explained.png"))
    if index is None:
        _check_output(output, photo, force=force)
        encoder = vsrn.load(model or DEFAULT_MODEL, device, precision)
        explanation, words = encoder.explain(photo, sentence, view), encoder.read_words(sentence)
        picture = None if output is None else _decode(photo)
    else:
        explanation, words, picture = _of_index(index, str(photo_id), sentence, view, output, force=force)
    explanation = explanation if word is None else explanation.of_word(word)
    if output is not None and picture is not None:
        _draw(output, picture, explanation, sentence if word is None else f"{sentence}: {word}", k)
    say_words(words)
    if json:
        print_json({"photo": str(photo), "sentence": sentence} | words.to_json() | explanation.to_json())
    else:
        _show(explanation, k, output)


def _of_index(
    index: Path, photo_id: str, sentence: str, view: ExplainView | None, output: Path | None, *, force: bool
) -> tuple[Explanation, ReadWords, Image | None]:
    """The explanation of a photo of an index, the words, and, where a picture is wanted, the photo to draw on."""
    with vsrn.open_index(index) as opened:
        _check_output(output, opened.path(photo_id), force=force)
        explanation, words = opened.explain(photo_id, sentence, view), opened.encoder.read_words(sentence)
        return explanation, words, _photo_of(opened, photo_id) if output is not None else None


def _question(words: Sequence[str], index: Path | None, photo_id: str | None, model: str | None) -> tuple[Path, str]:
    """The photo, or its id as a path, and the sentence. Raises `ConfigError` where they are not one of each."""
    if (index is None) != (photo_id is None):
        raise ConfigError("a photo of an index is named by both --index INDEX and --id ID.")
    if index is not None and model is not None:
        raise ConfigError("an index brings its own model; leave out --model.")
    # Where the index names the photo, the only word is the sentence.
    if len(words) != (2 if photo_id is None else 1):
        raise ConfigError(
            'explain one photo and one sentence: vsrn explain IMAGE "a sentence", or vsrn explain --index INDEX --id ID'
            ' "a sentence".'
        )
    sentence = words[-1]
    if not sentence.strip():
        raise ConfigError("the sentence is empty; say what the photo may show.")
    return Path(words[0] if photo_id is None else photo_id), sentence


def _check_output(output: Path | None, photo: Path, *, force: bool) -> None:
    """Raise `ConfigError` where a picture may not be written: an ending, the photo itself, or a file that is there."""
    if output is None:
        return
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"-o {printable(output)} is no picture that vsrn writes; end its name in {', '.join(FORMATS)}."
        )
    if output.exists() and photo.exists() and output.samefile(photo):
        raise ConfigError(f"-o {printable(output)} is the photo itself; choose another name.")
    # A link counts as there, wherever it leads.
    if not force and (output.exists() or output.is_symlink()):
        raise ConfigError(
            f"{printable(output)} is already there; name another file with -o, or add --force to replace it."
        )


def _decode(photo: Path) -> Image:
    from vsrn.data.photos import decode_photo
    from vsrn.encoders.draw import MOST_SIDE

    return decode_photo(photo, target_size=MOST_SIDE // 2, always_twice=True)


def _photo_of(index: Index, photo_id: str) -> Image:
    """The photo itself where it is as it was when it was indexed, or else its thumbnail."""
    from PIL import Image

    path, known = index.path(photo_id), index.photo(photo_id)
    with contextlib.suppress(OSError, PhotoError):
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (known.size, known.modified_ns):
            return _decode(path)
    print(f"{printable(path)} is not as it was indexed; its thumbnail is drawn on instead.", file=sys.stderr)
    return Image.open(io.BytesIO(index.thumbnail(photo_id)))


def _draw(output: Path, picture: Image, explanation: Explanation, sentence: str, k: int) -> None:
    from PIL import Image

    from vsrn.encoders.draw import draw_explanation
    from vsrn.files import replacing

    drawn = draw_explanation(picture, explanation, sentence, k)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        drawn.save(temporary, Image.registered_extensions()[output.suffix.lower()], quality=90)


def _show(explanation: Explanation, k: int, picture: Path | None) -> None:
    """Print the similarity, share, weight, box and label of each of the `k` best regions, and where the picture is."""
    print(f"similarity {explanation.score:.3f}")
    best = [(region.label, region) for region in explanation.top(k)]
    if explanation.view == "words":
        best = list(explanation.places().items())
    for label, region in best:
        box = ", ".join(f"{edge:.2f}" for edge in ([] if region.box is None else region.box))
        name = "" if label is None else f"  {printable(label)}"
        print(f"  {region.share:4.0%}  {region.weight:+.4f}  box {box}{name}")
    if not best and not explanation.top(1):
        print("  no region adds to it")
    print(f"The picture is {printable(str(picture))}.")
