"""Features as bottom-up attention was published: files of tab-separated lines, one photo a line -> a region store.

    391895  640  360  36  <boxes>  <features>

The fields are `FIELDS`; boxes, (num_boxes, 4) xyxy in pixels, and features, (num_boxes, F), are little-endian float32
in base64. Such files have tens of gigabytes, and their photos come in any order: `find_lines` looks through them once
for where each photo is, and `read_line` reads one line at a time afterwards.
"""

from __future__ import annotations

import binascii
import contextlib
import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from vsrn.data.annotations import CaptionedPhoto
from vsrn.data.image_ids import ImageNames, as_image_id
from vsrn.data.photo_splits import made_ready
from vsrn.data.region_store import SkippedPhoto
from vsrn.data.region_writer import check_split_name, digest_of
from vsrn.data.regions import Regions
from vsrn.data.shards import SplitHeader
from vsrn.errors import DataError
from vsrn.extractors.extract import (
    ExtractedBatch,
    ExtractionReport,
    ProgressCallback,
    captioned_splits,
    check_settings,
    cut,
    write_split,
)
from vsrn.files import read_at
from vsrn.metrics import FloatArray

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
MAX_LINE_BYTES = 64 * 2**20
MAX_BOXES = 1000
# Within so many bytes the four short fields of a line must end.
_LEAD_BYTES = 400
_LARGEST_HALF = float(np.finfo(np.float16).max)
# Rounded and regressed boxes reach out of their photo by a pixel here and there.
_PIXELS_OUTSIDE = 1.5
_WHOLE_NUMBER = re.compile(rb"[1-9][0-9]{0,8}")
_BYTES_BETWEEN_REPORTS = 2**28
_LAYOUT = f"lines must read {', '.join(FIELDS)}, with tabs between."
_AGAIN = "get the file again."


@dataclass(frozen=True, slots=True)
class TsvLine:
    """Where the line of a photo is.

    place          file and line number, as errors name it
    file           descriptor of the file, or of its unpacked copy
    start, length  in bytes
    """

    place: str
    file: int
    start: int
    length: int
    num_boxes: int

    def read(self) -> Regions:
        """The regions of the photo. Raises what `read_line` raises."""
        return read_line(read_at(self.file, self.length, self.start), self.place)


def read_lead(line: bytes, place: str) -> tuple[str, int, int, int]:
    """A line, or its beginning -> image id, width and height in pixels, number of boxes.

    place  file and line number, as errors name it

    Raises `DataError` where these fields are wrong.
    """
    # A fifth field must have begun, or the fourth may go on.
    image_id, *numbers = line[:_LEAD_BYTES].split(b"\t")[:5]
    name = as_image_id(image_id.decode(errors="replace").strip())
    if len(numbers) < 4 or not name or not name.isprintable() or "\ufffd" in name:
        raise DataError(f"{place} does not begin with an image and three numbers; {_LAYOUT}")
    for field, number in zip(FIELDS[1:4], numbers[:3], strict=True):
        if not _WHOLE_NUMBER.fullmatch(number):
            raise DataError(f"{place}: {field} is {number[:40].decode(errors='replace')!r}, not a whole number.")
    width, height, num_boxes = map(int, numbers[:3])
    if num_boxes > MAX_BOXES:
        raise DataError(f"{place} speaks of {num_boxes:,} boxes; more than {MAX_BOXES:,} are not read.")
    return name, width, height, num_boxes


def read_line(line: bytes, place: str) -> Regions:
    """The regions of a line: features as they are, boxes as fractions of the photo's sides.

    place  file and line number, as errors name it

    Raises `DataError` where the line is cut short, not base64, or does not hold `num_boxes` finite boxes within the
    photo and as many features that half precision can hold.
    """
    _, width, height, num_boxes = read_lead(line, place)
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(FIELDS):
        raise DataError(f"{place} has {len(fields)} fields, not {len(FIELDS)}; {_LAYOUT}")
    boxes, features = (_table(fields[at], f"{place}: its {FIELDS[at]}", num_boxes) for at in (4, 5))
    if boxes.shape[1] != 4:
        raise DataError(f"{place}: its boxes have {boxes.shape[1]} numbers each, not 4; {_AGAIN}")
    if np.abs(features).max() > _LARGEST_HALF:
        raise DataError(f"{place}: its features reach beyond {_LARGEST_HALF:,.0f}; {_AGAIN}")
    sides = np.array([width, height] * 2, np.float32)
    outside = (boxes < -_PIXELS_OUTSIDE) | (boxes > sides + _PIXELS_OUTSIDE)
    wrong = outside.any(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        corners = ", ".join(f"{corner:g}" for corner in boxes[wrong][0])
        raise DataError(f"{place}: box ({corners}) does not lie in a photo of {width} x {height} pixels; {_AGAIN}")
    return Regions(features=features, boxes=np.clip(boxes / sides, 0, 1))


def _table(field: bytes, what: str, rows: int) -> FloatArray:
    """(rows, ...) finite numbers of one field."""
    try:
        content = binascii.a2b_base64(field, strict_mode=True)
    except binascii.Error as error:
        raise DataError(f"{what} are not base64 ({error}); {_AGAIN}") from error
    if not content or len(content) % (4 * rows):
        raise DataError(f"{what} are {len(content):,} bytes, which {rows} boxes of float32 do not fill; {_AGAIN}")
    table = np.frombuffer(content, "<f4").reshape(rows, -1)
    if not np.isfinite(table).all():
        raise DataError(f"{what} hold NaN or infinite numbers; {_AGAIN}")
    return table


@contextlib.contextmanager
def find_lines(
    paths: Sequence[Path], unpack_in: Path, progress: Callable[[int, int], None] = lambda *_: None
) -> Iterator[dict[str, TsvLine]]:
    """Look through files for the line of each image: by its id, in the order of the files; they stay open meanwhile.

    unpack_in  folder on a disk with room for files that gzip packed; nothing in it is left behind
    progress   called as progress(bytes looked through, bytes in all files)

    Raises `DataError`, naming file and line, where a line is too long or its short fields are wrong, where an image
    comes twice, or where no file has a line.
    """
    lines: dict[str, TsvLine] = {}
    with contextlib.ExitStack() as opened:
        try:
            sizes = [path.stat().st_size for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); check the path.") from error
        for number, path in enumerate(paths):
            for at in _look_through(path, unpack_in, lines, opened):
                progress(sum(sizes[:number]) + at, sum(sizes))
        if not lines:
            raise DataError(f"{paths[0]} holds no lines; name a file in bottom-up attention's TSV layout.")
        progress(sum(sizes), sum(sizes))
        yield lines


def _look_through(
    path: Path, unpack_in: Path, lines: dict[str, TsvLine], opened: contextlib.ExitStack
) -> Iterator[int]:
    """Note every line of a file; gives, now and then, how many bytes of it are done."""
    try:
        raw = source = cast("IO[bytes]", opened.enter_context(path.open("rb")))
        copy, magic = raw.fileno(), read_at(raw.fileno(), 4, 0)
        if magic == b"PK\x03\x04":
            raise DataError(f"{path} is a zip archive; unpack it first.")
        unpacked: IO[bytes] | None = None
        if magic.startswith(b"\x1f\x8b"):
            unpack_in.mkdir(parents=True, exist_ok=True)
            # It has no name, so that no kill can leave it behind.
            unpacked = opened.enter_context(tempfile.TemporaryFile(dir=unpack_in))  # noqa: SIM115
            copy = unpacked.fileno()
            source = cast("IO[bytes]", opened.enter_context(gzip.GzipFile(fileobj=raw)))
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    start = reported = number = 0
    try:
        while line := source.readline(MAX_LINE_BYTES):
            number += 1
            place = f"{path}, line {number}"
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{place} is longer than {MAX_LINE_BYTES // 2**20} MB; {_LAYOUT}")
            if unpacked is not None:
                unpacked.write(line)
            if not line.isspace():
                name, _, _, num_boxes = read_lead(line, place)
                if name in lines:
                    other = lines[name].place
                    raise DataError(f"{place}: image {name} has a line already ({other}); remove one of the two.")
                lines[name] = TsvLine(place, copy, start, len(line), num_boxes)
            start += len(line)
            if start - reported > _BYTES_BETWEEN_REPORTS:
                reported = start
                yield os.lseek(raw.fileno(), 0, os.SEEK_CUR)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged behind line {number} ({error}); {_AGAIN}") from error
    if unpacked is not None:
        unpacked.flush()


def import_tsv(
    lines: Mapping[str, TsvLine],
    folder: Path | str,
    *,
    dataset: Path | str | None = None,
    splits: Sequence[str] = (),
    restval: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> list[ExtractionReport]:
    """Write photos of `find_lines` into the region store `folder`.

    dataset     captions (`read_annotations`): their splits are written, in their order; a photo's line is the one that
                `ImageNames` finds, and a photo without one is skipped. Without them, one split of all photos in their
                order, without captions.
    splits      those to write; without any, all of which the files have a photo, or "photos" without captions
    restval     whether `restval` images count as `train`
    batch_size  photos finished at a time; what a kill costs at most
    workers     threads that read ahead

    Killed at any moment and called again, it goes on. Raises `DataError` where a line is wrong (`read_line`), where a
    split was made from other photos, is not in the captions or has no photo in the files, or where the disk is full;
    `ConfigError` where `batch_size` or `workers` is below 1; and what `read_annotations` raises.
    """
    check_settings(batch_size, workers)
    if dataset is None:
        found = {(splits or ["photos"])[0]: [CaptionedPhoto(image_id, []) for image_id in lines]}
    else:
        found = captioned_splits(dataset, splits, restval=restval)
    names = ImageNames(lines.items())
    lines_of = {
        split: {photo.id: names.find(photo.id, photo.cocoid) for photo in photos} for split, photos in found.items()
    }
    there = [split for split in found if any(lines_of[split].values())]
    absent = next((split for split in found if split not in there), None)
    if absent is not None and (splits or not there):
        raise DataError(
            f"no line of the TSV files is of a photo of {dataset}'s split '{absent}': it has photos such as"
            f" {found[absent][0].id}, the files images such as {next(iter(lines))}."
        )
    reports = []
    for split in there:
        check_split_name(split)
        header, batches_from = _source(lines_of[split], batch_size, workers)
        captions = None if dataset is None else {photo.id: photo.captions for photo in found[split]}
        ids = list(lines_of[split])
        reports.append(
            write_split(Path(folder), split, header, ids, batches_from, captions=captions, progress=progress)
        )
    return reports


def _source(
    lines: Mapping[str, TsvLine | None], batch_size: int, workers: int
) -> tuple[SplitHeader, Callable[[int], Iterator[ExtractedBatch]]]:
    """What `write_split` is told of the photos of one split, and where it has their batches from."""
    present = [line for line in lines.values() if line is not None]
    feature_dim = present[0].read().features.shape[1]

    def read(photo_id: str) -> Regions | SkippedPhoto:
        line = lines[photo_id]
        if line is None:
            return SkippedPhoto(photo_id, f"{photo_id} has no line in the TSV files.")
        regions = line.read()
        if regions.features.shape[1] != feature_dim:
            raise DataError(
                f"{line.place} has features of {regions.features.shape[1]} numbers, but {present[0].place} of"
                f" {feature_dim}; files of different detectors do not mix."
            )
        return regions

    def batches_from(start: int) -> Iterator[ExtractedBatch]:
        for batch, got in made_ready(cut(list(lines)[start:], batch_size), read, workers):
            pairs = [(photo_id, one) for photo_id, one in zip(batch, got, strict=True) if isinstance(one, Regions)]
            skipped = [one for one in got if isinstance(one, SkippedPhoto)]
            yield ExtractedBatch([photo_id for photo_id, _ in pairs], [regions for _, regions in pairs], skipped)

    # The weights that made published features are not known.
    most = max(line.num_boxes for line in present)
    header = SplitHeader("", "", digest_of(list(lines)), num_regions=most, feature_dim=feature_dim)
    return header, batches_from
