"""Captions in tables: a line or record for each, which names an image and says something of it.

    1000.jpg#0<TAB>A dog .                     Flickr's .token, and any tab-separated file of image and caption
    image,caption                              CSV with a head line or without, quoted or not; `;` and `|` for `,` too
    image_name| comment_number| comment        Flickr30K's results.csv
    [{"image": "a.jpg", "caption": "..."}]     JSON, or a record a line (JSONL); several captions as a list
    {"a.jpg": ["...", "..."]}                  JSON of captions by image

A column or field `split` says the split.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vsrn.data.image_ids import NUMBER_OF_CAPTION
from vsrn.errors import DataError
from vsrn.files import plain_utf8, read_json, read_text

# Names of columns, the surest first.
IMAGE_COLUMNS = (
    "filename",
    "file_name",
    "image",
    "image_name",
    "image_path",
    "img",
    "path",
    "file",
    "photo",
    "image_id",
)
CAPTION_COLUMNS = ("caption", "captions", "comment", "raw", "sentence", "sentences", "text", "description")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
# A line of Flickr30K's results.csv lacks the mark behind the number of its caption.
_NUMBER_AND_CAPTION = re.compile(r"([0-9]+)\s+(\S.*)")
# What stands between fields, and what is written for it in a caption that holds it.
_BETWEEN = {"\t": " ", "|": " | ", ";": "; ", ",": ", "}
_SPLITS = {"validation": "val", "valid": "val"}
_HINT = "write a line for each caption, the image first, with tabs or commas between; or Karpathy's or COCO's JSON."


class CaptionRow(NamedTuple):
    """What one line or record says; `where` is its file and line, as errors name it, and `split` may be ""."""

    where: str
    image: str
    captions: list[str]
    split: str = ""


def is_table(path: Path) -> bool:
    """Whether a file is a table: any text but a JSON that has `images` at its top."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = plain_utf8(file.read(4096), path).lstrip()
    if not start.startswith((b"{", b"[")):
        # What is empty or broken is refused as JSON is.
        return bool(start) and path.suffix.lower() != ".json"
    if start.startswith(b"[") or path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    fields = fields_of(path)
    return bool(fields) and "images" not in fields


def fields_of(path: Path) -> set[str]:
    """The names at the top of a JSON; none where it cannot be read."""
    try:
        return set(read_json(path, dict[str, msgspec.Raw], ""))
    except DataError:
        return set()


def read_table(path: Path) -> Iterator[CaptionRow]:
    """The lines or records of a table, in order. Raises `DataError` where one cannot be understood, naming it."""
    text = read_text(path)
    is_json = text.lstrip().startswith(("{", "["))
    for row in _of_json(text, path) if is_json else _of_lines(text, path):
        image = NUMBER_OF_CAPTION.sub("", row.image.strip())
        split = row.split.strip().lower()
        yield row._replace(image=image, split=_SPLITS.get(split, split))


def _of_json(text: str, path: Path) -> Iterator[CaptionRow]:
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            content: Any = [msgspec.json.decode(line) for line in text.split("\n") if line.strip()]
        else:
            content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_HINT}") from error
    if isinstance(content, dict):
        content = [{"image": image, "caption": said} for image, said in content.items()]
    for number, record in enumerate(content, start=1):
        where = f"{path}, record {number}"
        fields: dict[str, Any] = record if isinstance(record, dict) else {}
        image = next((fields[name] for name in IMAGE_COLUMNS if name in fields), None)
        said = next((fields[name] for name in CAPTION_COLUMNS if name in fields), None)
        captions: list[Any] = said if isinstance(said, list) else [said]
        captions = [each.get("raw") if isinstance(each, dict) else each for each in captions]
        if not isinstance(image, str | int) or not all(isinstance(caption, str) for caption in captions):
            raise DataError(f"{where} is no image with its caption; {_HINT}")
        yield CaptionRow(where, str(image), captions, str(fields.get("split") or ""))


def _of_lines(text: str, path: Path) -> Iterator[CaptionRow]:
    first_line = next(line for line in text.split("\n") if line.strip())
    comma = next((mark for mark in "\t|" if mark in first_line), ";" if "," not in first_line else ",")
    lines = _fields(text, comma, path)
    _, head = first = next(lines)
    columns = [name.strip().lower().replace(" ", "_") for name in head]
    said = next((columns.index(name) for name in CAPTION_COLUMNS if name in columns), None)
    named = next((columns.index(name) for name in IMAGE_COLUMNS if name in columns), None)
    if said is None or (named is None and len(columns) > 2):
        yield from (_without_head(where, fields, comma) for where, fields in [first, *lines])
        return
    named = 1 - said if named is None else named
    split = columns.index("split") if "split" in columns else None
    for where, found in lines:
        fields = found
        slip = _NUMBER_AND_CAPTION.fullmatch(fields[-1])
        if len(fields) == len(columns) - 1 and slip:
            fields = [*fields[:-1], slip[1], slip[2]]
        elif len(fields) > len(columns) and said == len(columns) - 1:
            # A caption with commas that nobody quoted.
            fields = [*fields[:said], _BETWEEN[comma].join(fields[said:])]
        if len(fields) != len(columns):
            raise DataError(
                f"{where} has {len(fields)} fields, but the head line has {len(columns)}; quote the caption."
            )
        yield CaptionRow(where, fields[named], _captions(fields[said]), "" if split is None else fields[split])


def _without_head(where: str, fields: Sequence[str], comma: str) -> CaptionRow:
    """A line that begins with the image and ends with the caption, whose number may stand between."""
    image, *rest = fields
    if len(rest) > 1 and rest[0].isdecimal():
        del rest[0]
    if not rest or not image:
        raise DataError(f"{where} does not name an image and a caption; {_HINT}")
    return CaptionRow(where, image, [_BETWEEN[comma].join(rest)])


def _captions(said: str) -> list[str]:
    """The captions in a field: one, or several as JSON."""
    if said.startswith("[") and said.endswith("]"):
        try:
            return msgspec.json.decode(said, type=list[str])
        except msgspec.DecodeError:
            pass
    return [said]


def _fields(text: str, comma: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """File and line, and the fields, of every line that is not blank; `comma` is what stands between fields."""
    if comma in "\t|":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}, line {number}", [_unquoted(field.strip()) for field in line.split(comma)]
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield f"{path}, line {reader.line_num}", [field.strip() for field in fields]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; a quote in a quoted field is written twice."
        ) from error


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field
