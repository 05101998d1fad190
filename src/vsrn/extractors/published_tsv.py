"""Features as bottom-up attention was published: files of tab-separated lines, one photo a line.

    391895  640  360  36  <boxes>  <features>

The fields are `FIELDS`; boxes, (num_boxes, 4) xyxy in pixels, and features, (num_boxes, F), are little-endian float32
in base64. Such files have tens of gigabytes, and their photos come in any order: they are looked through once
for where each photo is, and read line by line afterwards.
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
from typing import IO, Self, cast

import numpy as np

from vsrn.data.annotations import CaptionedPhoto, as_image_id, possible_names, read_karpathy
from vsrn.data.region_store import SkippedPhoto
from vsrn.data.region_writer import check_split_name, digest_of
from vsrn.data.regions import Regions
from vsrn.data.shards import SplitHeader
from vsrn.errors import DataError
from vsrn.extractors.extract import (
    ExtractedBatch,
    ExtractionReport,
    ProgressCallback,
    check_settings,
    choose_splits,
    made_ready,
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

# Called as progress(bytes looked through, bytes in all files).
ScanProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TsvLine:
    """Where the line of a photo is, and what its short fields say.

    place          file and line number, as errors name it
    file           descriptor of the file, or of its unpacked copy
    start, length  in bytes
    width, height  of the photo, in pixels
    """

    place: str
    file: int
    start: int
    length: int
    width: int
    height: int
    num_boxes: int


class TsvFiles:
    """Several files as one table.

    lines  by image id, in the order of the files; numbers are without leading zeros
    """

    def __init__(self, paths: Sequence[Path | str], unpack_in: Path, progress: ScanProgress | None = None) -> None:
        """Look through all files. One packed by gzip is unpacked, for as long as this object is open.

        unpack_in  folder on a disk with room for that; nothing in it is left behind

        Raises `DataError`, naming file and line, where a line is too long or its short fields are wrong, where an
        image comes twice, or where no file has a line.
        """
        self.lines: dict[str, TsvLine] = {}
        self._files = contextlib.ExitStack()
        try:
            sizes = [_size_of(Path(path)) for path in paths]
            for number, path in enumerate(map(Path, paths)):
                for at in self._look_through(path, unpack_in):
                    if progress is not None:
                        progress(sum(sizes[:number]) + at, sum(sizes))
            if not self.lines:
                raise DataError(f"{paths[0]} holds no lines; name a file in bottom-up attention's TSV layout.")
        except BaseException:
            self.close()
            raise

    def read(self, image_id: str) -> Regions:
        """The regions of one image: features as they are, boxes as fractions of its sides.

        Raises `DataError`, naming file and line, where the line is cut short, not base64, or does not hold
        `num_boxes` finite boxes within the photo and as many features that half precision can hold.
        """
        line = self.lines[image_id]
        fields = read_at(line.file, line.length, line.start).rstrip(b"\r\n").split(b"\t")
        if len(fields) != len(FIELDS):
            raise DataError(f"{line.place} has {len(fields)} fields, not {len(FIELDS)}; {_LAYOUT}")
        boxes = _table(fields[4], "boxes", line)
        if boxes.shape[1] != 4:
            raise DataError(f"{line.place}: its boxes have {boxes.shape[1]} numbers each, not 4; {_AGAIN}")
        features = _table(fields[5], "features", line)
        if np.abs(features).max() > _LARGEST_HALF:
            raise DataError(f"{line.place}: its features reach beyond {_LARGEST_HALF:,.0f}; {_AGAIN}")
        return Regions(features=features, boxes=_fractions(boxes, line))

    def close(self) -> None:
        """Close the files, and delete what was unpacked."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _look_through(self, path: Path, unpack_in: Path) -> Iterator[int]:
        """Note every line of a file; gives, now and then, how many bytes of it are done."""
        try:
            raw = self._files.enter_context(path.open("rb"))
            magic = read_at(raw.fileno(), 4, 0)
            if magic == b"PK\x03\x04":
                raise DataError(f"{path} is a zip archive; unpack it first.")
            copy = source = cast("IO[bytes]", raw)
            if magic.startswith(b"\x1f\x8b"):
                unpack_in.mkdir(parents=True, exist_ok=True)
                # It has no name, so that no kill can leave it behind.
                unpacked: IO[bytes] = tempfile.TemporaryFile(dir=unpack_in)  # noqa: SIM115 - closed with the others
                copy = self._files.enter_context(unpacked)
                source = cast("IO[bytes]", self._files.enter_context(gzip.GzipFile(fileobj=raw)))
        except OSError as error:
            raise DataError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
        start, reported = 0, 0
        for number, line in enumerate(_lines_of(source, path), start=1):
            if copy is not source:
                copy.write(line)
            if not line.isspace():
                self._note(line[:_LEAD_BYTES], f"{path}, line {number}", copy.fileno(), start, len(line))
            start += len(line)
            if start - reported > _BYTES_BETWEEN_REPORTS:
                reported = start
                yield os.lseek(raw.fileno(), 0, os.SEEK_CUR)
        copy.flush()
        yield _size_of(path)

    def _note(self, lead: bytes, place: str, file: int, start: int, length: int) -> None:
        # A fifth field must have begun, or the fourth may go on.
        image_id, *numbers = lead.split(b"\t")[:5]
        name = as_image_id(image_id.decode(errors="replace").strip())
        if len(numbers) < 4 or not name or not name.isprintable() or "\ufffd" in name:
            raise DataError(f"{place} does not begin with an image and three numbers; {_LAYOUT}")
        for field, number in zip(FIELDS[1:4], numbers[:3], strict=True):
            if not _WHOLE_NUMBER.fullmatch(number):
                raise DataError(f"{place}: {field} is {number[:40].decode(errors='replace')!r}, not a whole number.")
        width, height, num_boxes = map(int, numbers[:3])
        if num_boxes > MAX_BOXES:
            raise DataError(f"{place} speaks of {num_boxes:,} boxes; more than {MAX_BOXES:,} are not read.")
        if name in self.lines:
            raise DataError(
                f"{place}: image {name} has a line already ({self.lines[name].place}); remove one of the two."
            )
        self.lines[name] = TsvLine(place, file, start, length, width, height, num_boxes)


_LAYOUT = f"lines must read {', '.join(FIELDS)}, with tabs between."
_AGAIN = "get the file again."


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def _lines_of(source: IO[bytes], path: Path) -> Iterator[bytes]:
    number = 0
    try:
        while line := source.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number} is longer than {MAX_LINE_BYTES // 2**20} MB; {_LAYOUT}")
            yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged behind line {number} ({error}); {_AGAIN}") from error


def _table(field: bytes, name: str, line: TsvLine) -> FloatArray:
    """(num_boxes, ...) finite numbers of one field."""
    try:
        content = binascii.a2b_base64(field, strict_mode=True)
    except binascii.Error as error:
        raise DataError(f"{line.place}: its {name} are not base64 ({error}); {_AGAIN}") from error
    if not content or len(content) % (4 * line.num_boxes):
        raise DataError(
            f"{line.place}: its {name} are {len(content):,} bytes, which {line.num_boxes} boxes of float32 do not fill;"
            f" {_AGAIN}"
        )
    table = np.frombuffer(content, "<f4").reshape(line.num_boxes, -1)
    if not np.isfinite(table).all():
        raise DataError(f"{line.place}: its {name} hold NaN or infinite numbers; {_AGAIN}")
    return table


def _fractions(boxes: FloatArray, line: TsvLine) -> FloatArray:
    """(N, 4) pixels -> fractions of the photo's sides."""
    sides = np.array([line.width, line.height] * 2, np.float32)
    outside = (boxes < -_PIXELS_OUTSIDE) | (boxes > sides + _PIXELS_OUTSIDE)
    wrong = outside.any(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        corners = ", ".join(f"{corner:g}" for corner in boxes[wrong][0])
        raise DataError(
            f"{line.place}: box ({corners}) does not lie in a photo of {line.width} x {line.height} pixels; {_AGAIN}"
        )
    return np.clip(boxes / sides, 0, 1)


def import_tsv(
    tsv: TsvFiles,
    folder: Path | str,
    split: str,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> ExtractionReport:
    """All photos of the files into one split of the region store `folder`, in their order, without captions.

    batch_size  photos finished at a time; what a kill costs at most
    workers     threads that read ahead

    Killed at any moment and called again, it goes on. Raises `DataError` where a line is wrong (`TsvFiles.read`),
    where the split was made from other photos, or where the disk is full; `ConfigError` where `batch_size` or
    `workers` is below 1.
    """
    ids = {image_id: image_id for image_id in tsv.lines}
    return _write(tsv, folder, split, ids, None, batch_size, workers, progress)


def import_tsv_karpathy(
    tsv: TsvFiles,
    dataset: Path | str,
    folder: Path | str,
    *,
    splits: Sequence[str] = (),
    restval: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> list[ExtractionReport]:
    """The splits of a Karpathy JSON with their captions, in the JSON's order; a photo that no line has is skipped.

    splits   those to write; without any, all of which the files have a photo
    restval  whether `restval` images count as `train`

    A photo's line is the one named by its `cocoid`, its path, its file name with or without ending, or the number
    in COCO's file names. The rest, and what is raised, as in `import_tsv` and `read_karpathy`; `DataError` also for
    a split that the JSON does not have, or of which the files have no photo.
    """
    found = read_karpathy(dataset, restval=restval)
    wanted = choose_splits(dataset, found, splits)
    lines = {split: _caption_lines_of(found[split], tsv) for split in wanted}
    if not splits:
        wanted = [split for split in wanted if any(lines[split].values())]
    for split in wanted or list(found)[:1]:
        if not any(lines[split].values()):
            raise DataError(
                f"no line of the TSV files is of a photo of {dataset}'s split '{split}': it has photos such as"
                f" {found[split][0].id}, the files images such as {next(iter(tsv.lines))}."
            )
    return [
        _write(
            tsv,
            folder,
            split,
            lines[split],
            {photo.id: photo.captions for photo in found[split]},
            batch_size,
            workers,
            progress,
        )
        for split in wanted
    ]


def _caption_lines_of(photos: Sequence[CaptionedPhoto], tsv: TsvFiles) -> dict[str, str | None]:
    """Photo id -> the image id of its line, None where it has none."""
    return {
        photo.id: next((name for name in possible_names(photo.id, photo.cocoid) if name in tsv.lines), None)
        for photo in photos
    }


def _write(
    tsv: TsvFiles,
    folder: Path | str,
    split: str,
    lines: Mapping[str, str | None],
    captions: Mapping[str, Sequence[str]] | None,
    batch_size: int,
    workers: int,
    progress: ProgressCallback | None,
) -> ExtractionReport:
    check_settings(batch_size, workers)
    check_split_name(split)
    present = [line for line in lines.values() if line is not None]
    feature_dim = tsv.read(present[0]).features.shape[1]
    header = SplitHeader(
        # The weights that made published features are not known.
        extractor="",
        fingerprint="",
        photos=digest_of(list(lines)),
        num_regions=max(tsv.lines[line].num_boxes for line in present),
        feature_dim=feature_dim,
    )

    def read(photo_id: str) -> Regions | SkippedPhoto:
        line = lines[photo_id]
        if line is None:
            return SkippedPhoto(photo_id, f"{photo_id} has no line in the TSV files.")
        regions = tsv.read(line)
        if regions.features.shape[1] != feature_dim:
            place, others = tsv.lines[line].place, tsv.lines[present[0]].place
            raise DataError(
                f"{place} has features of {regions.features.shape[1]} numbers, but {others} of {feature_dim};"
                " files of different detectors do not mix."
            )
        return regions

    def batches_from(start: int) -> Iterator[ExtractedBatch]:
        for batch, got in made_ready(list(lines)[start:], read, batch_size, workers):
            pairs = [(photo_id, one) for photo_id, one in zip(batch, got, strict=True) if isinstance(one, Regions)]
            skipped = [one for one in got if isinstance(one, SkippedPhoto)]
            yield ExtractedBatch([photo_id for photo_id, _ in pairs], [regions for _, regions in pairs], skipped)

    return write_split(Path(folder), split, header, list(lines), batches_from, captions=captions, progress=progress)
