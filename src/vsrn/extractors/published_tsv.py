"""Features published as tables of tab-separated lines, one image a line -> where each image is.

Such files have tens of gigabytes: `find_lines` looks through them once, and a line is read on its own afterwards
(`vsrn.extractors.tsv_lines`, where the layouts are).
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, cast

from vsrn.data.regions import RegionNames, Regions
from vsrn.errors import DataError
from vsrn.extractors.published import Published, PublishedImage, carried_by
from vsrn.extractors.tsv_lines import Lead, head_of, layout_of, read_lead, read_line
from vsrn.files import read_at

MAX_LINE_BYTES = 64 * 2**20
_BYTES_BETWEEN_REPORTS = 2**28


@dataclass(frozen=True, slots=True)
class TsvLine:
    """Where the line of an image is.

    place          file and line number, as errors name it
    file           descriptor of the file, or of its unpacked copy
    start, length  in bytes
    layout         fields of the line
    """

    place: str
    file: int
    start: int
    length: int
    num_boxes: int
    layout: tuple[str, ...]

    def content(self) -> bytes:
        """The line."""
        return read_at(self.file, self.length, self.start)

    def read(self, names: RegionNames) -> Regions:
        """The regions of the image, whose classes and attributes `names` numbers. Raises what `read_line` raises."""
        return read_line(self.content(), self.layout, self.place, names)


@dataclass
class _Scan:
    """What was found so far: lines by image, names of regions, and sentences on what was passed over."""

    lines: dict[str, TsvLine] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    equal: int = 0

    def add(self, lead: Lead, line: TsvLine, content: bytes) -> None:
        """Take up a line. Raises `DataError` where its image has another line already that says something else."""
        known = self.lines.get(lead.image)
        if known is not None:
            if known.content().rstrip(b"\r\n") != content.rstrip(b"\r\n"):
                raise DataError(
                    f"{line.place}: image {lead.image} has a line already ({known.place}), which says something else;"
                    " remove one of the two."
                )
            self.equal += 1
            return
        self.classes |= lead.classes
        self.attributes |= lead.attributes
        self.lines[lead.image] = line


@contextlib.contextmanager
def find_lines(
    paths: Sequence[Path], unpack_in: Path, progress: Callable[[int, int], None] = lambda *_: None
) -> Iterator[Published]:
    """Look through files for the line of each image, in the order of the files; they stay open meanwhile.

    unpack_in  folder on a disk with room for files that gzip packed; nothing in it is left behind
    progress   called as progress(bytes looked through, bytes in all files)

    Lines that come twice count once. Raises `DataError`, naming file and line, where a line is too long or its short
    fields are wrong, where an image has two lines that differ, or where no file has a line.
    """
    scan = _Scan()
    with contextlib.ExitStack() as opened:
        try:
            sizes = [path.stat().st_size for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); check the path.") from error
        for number, path in enumerate(paths):
            for at in _look_through(path, unpack_in, scan, opened):
                progress(sum(sizes[:number]) + at, sum(sizes))
        if not scan.lines:
            raise DataError(f"{paths[0]} holds no lines; name a file in bottom-up attention's TSV layout.")
        progress(sum(sizes), sum(sizes))
        if scan.equal:
            scan.notes.append(
                f"{scan.equal:,} images have a second line that is equal to the first; it was passed over."
            )
        # In the order of the alphabet, whatever the order of the lines.
        names = RegionNames(sorted(scan.classes), sorted(scan.attributes))
        first = next((line for line in scan.lines.values() if line.num_boxes), None)
        if first is not None and "json" in first.layout and "boxes" not in carried_by(first.read(names)):
            scan.notes.append(f"{first.place}: the sizes of the photos are not said, so no boxes are kept.")
        images = [
            (image, PublishedImage(line.place, line.num_boxes, partial(line.read, names)))
            for image, line in scan.lines.items()
        ]
        yield Published(images, names=names, notes=scan.notes)


def _look_through(path: Path, unpack_in: Path, scan: _Scan, opened: contextlib.ExitStack) -> Iterator[int]:
    """Note every line of a file; gives, now and then, how many bytes of it are done."""
    raw, source, unpacked = _opened(path, unpack_in, opened)
    copy = raw.fileno() if unpacked is None else unpacked.fileno()
    start = reported = number = 0
    layout: tuple[str, ...] | None = None
    try:
        while line := source.readline(MAX_LINE_BYTES):
            number += 1
            place, length = f"{path}, line {number}", len(line)
            if length == MAX_LINE_BYTES:
                raise DataError(f"{place} is longer than {MAX_LINE_BYTES // 2**20} MB; name a file of features.")
            if unpacked is not None:
                unpacked.write(line)
                unpacked.flush()
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            line = line[mark:]
            if (head := head_of(line)) is not None:
                layout = head
                scan.notes.append(f"{place} names the fields; it was passed over.")
            elif not line.isspace() and line:
                layout = layout or layout_of(line, place)
                lead = read_lead(line, layout, place)
                found = TsvLine(place, copy, start + mark, length - mark, lead.num_boxes, layout)
                scan.add(lead, found, line)
            start += length
            if start - reported > _BYTES_BETWEEN_REPORTS:
                reported = start
                yield os.lseek(raw.fileno(), 0, os.SEEK_CUR)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged behind line {number} ({error}); get the file again.") from error


def _opened(path: Path, unpack_in: Path, opened: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes], IO[bytes] | None]:
    """A file, what its lines are read from, and where they are copied to where it is gzipped."""
    try:
        raw = cast("IO[bytes]", opened.enter_context(path.open("rb")))
        magic = read_at(raw.fileno(), 4, 0)
        if magic == b"PK\x03\x04":
            raise DataError(f"{path} is a zip archive; unpack it first.")
        if not magic.startswith(b"\x1f\x8b"):
            return raw, raw, None
        unpack_in.mkdir(parents=True, exist_ok=True)
        # It has no name, so that no kill can leave it behind.
        unpacked = opened.enter_context(tempfile.TemporaryFile(dir=unpack_in))  # noqa: SIM115
        return raw, cast("IO[bytes]", opened.enter_context(gzip.GzipFile(fileobj=raw))), unpacked
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
