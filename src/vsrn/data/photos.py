"""Photos read and decoded without trusting a byte of their files."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile

from vsrn.data.exif import date_of, orientation_of
from vsrn.data.kinds import FIRST_BYTES, Kind, extra_module, installed, kind_of, ought_to_be_photo
from vsrn.data.stills import END_BYTES, first_frame, preview_of
from vsrn.data.to_rgb import shrink_factor, shrunk_size, stored_bytes, to_rgb
from vsrn.errors import PhotoError, SkipKind, one_line
from vsrn.files import printable

# Formats that Pillow decodes by itself: EPS and the like start other programs, so they stay out. Then those of extras.
_PLAIN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FORMATS = (*_PLAIN, "AVIF", *installed())

MAX_PIXELS = 100_000_000
# Side to side. Such a strip shows nothing that a network could see, and its thin side cannot be shrunk.
MAX_RATIO = 200
# An uncompressed RGB TIFF of 100 megapixels, and a little more.
MAX_BYTES = 320_000_000
# Memory for one photo, for each pixel of the limit: 4 bytes as decoded and 4 as RGB where it does not shrink.
# 800 MB for 100 megapixels; and never less than 300 MB, what a WebP of 18 megapixels takes.
BYTES_PER_PIXEL = 8
LEAST_MEMORY = 300_000_000
# A JPEG is decoded at down to an eighth of its sides, so that its pixels are not what takes the memory; but each is
# unpacked, at about 100 megapixels a second. So many times the limit are.
JPEG_EXCESS = 10
READ_TRIES = 3
# Windows has no pipes among files, and must be told not to change line ends.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# Left, top and steps of the seven passes of an interlaced PNG.
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_PIECE = 1 << 20


@dataclass(frozen=True)
class FileContent:
    """A file as it was at one moment: its bytes, and the status that was the same before and after reading them.

    content      its bytes; of a video of more than twice `END_BYTES`, its first and its last `END_BYTES`
    size         of the file, in bytes
    modified_ns, changed_ns  times of the last change of its bytes, and of its bytes or status, in ns since 1970
    inode        its number on its disk
    ending       of its name, with the dot
    """

    content: bytes
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    ending: str = ""


@dataclass(frozen=True)
class DecodedPhoto:
    """A photo's picture, and what its file says of it.

    pixels         8 bits a channel, RGB, upright; may be smaller than the photo
    width, height  of the photo itself, upright, in pixels
    taken          when, by the clock of the camera that says so in EXIF; None where it says none
    """

    pixels: Image.Image
    width: int
    height: int
    taken: datetime | None


def decode_photo(
    source: Path | bytes | FileContent,
    *,
    max_pixels: int = MAX_PIXELS,
    target_size: int | None = None,
    always_twice: bool = False,
) -> Image.Image:
    """The picture alone of what `read_photo` gives; raises what that raises."""
    return read_photo(source, max_pixels=max_pixels, target_size=target_size, always_twice=always_twice).pixels


def read_file(path: Path) -> FileContent:
    """Read a whole file, again where it changes meanwhile; opening it cannot hang.

    Raises `PhotoError` where it is no regular file, cannot be read, has more than `MAX_BYTES` bytes, or changed during
    each of `READ_TRIES` readings.
    """
    name = printable(path)
    try:
        for _ in range(READ_TRIES):
            content = _read_once(path, name)
            if content is not None:
                return content
    except PhotoError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:
        raise _cannot_read(path, name, error) from error
    raise PhotoError(f"{name} keeps changing while it is read; run the command again later.", "unreadable")


def read_photo(
    source: Path | bytes | FileContent,
    *,
    max_pixels: int = MAX_PIXELS,
    target_size: int | None = None,
    always_twice: bool = False,
    name: str | None = None,
) -> DecodedPhoto:
    """Decode one photo into an RGB picture of 8 bits a channel, turned upright as its EXIF says.

    source        a path, the bytes of the file, or what `read_file` gave of it
    max_pixels    most that are decoded; a JPEG may have `JPEG_EXCESS` times as many, and is then decoded at a fraction
    target_size   the side, in pixels, that the caller is going to shrink to: the photo is brought to a fraction of its
                  size, never below twice this side, or below 15/16 of it where that is an eighth of a JPEG
    always_twice  whether an eighth, too, must have twice that side
    name          what messages call it; None for the path, or "this photo"

    Of a raw file of a camera the picture is its largest preview, of a video or an animation its first frame.
    Transparency is laid on white, 16-bit and floating-point greys are scaled to 8 bits. What the header claims is
    checked before decoding: the ratio of the sides, pixels, and memory (`BYTES_PER_PIXEL`, `LEAST_MEMORY`).

    Raises `PhotoError`, and nothing else, whatever the bytes are. Pillow's warnings, which name no file, are off.
    """
    if isinstance(source, Path):
        name = name or str(source)
        source = read_file(source)
    if isinstance(source, bytes):
        source = FileContent(source, len(source), 0, 0, 0, PurePath(name or "").suffix)
    name, content, ending = printable(name or "this photo"), source.content, source.ending
    kind = kind_of(content, ending)
    expected: SkipKind = "damaged" if ought_to_be_photo(content, ending) else "no-photo"
    if not content:
        raise PhotoError(f"{name} is empty (0 bytes); replace the file.", expected)
    if len(content) > MAX_BYTES:
        raise PhotoError(f"{name} has {len(content):,} bytes, more than the {MAX_BYTES:,} allowed.", "too-large")
    _silence_pillow()
    try:
        if kind == "VIDEO":
            content = first_frame(content, source.size, name, max_pixels)
        elif kind == "RAW":
            preview = preview_of(content, name)
            content, kind = (preview, kind) if preview is not None else (content, None)
        return _decode(content, kind, name, max_pixels, target_size, always_twice=always_twice)
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        if kind is not None:
            raise PhotoError(f"{name} is damaged or cut short; replace the file.") from error
        known = ", ".join(FORMATS)
        raise PhotoError(f"{name} is not an image in a format vsrn reads ({known}); convert it.", expected) from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{name} claims far more than {max_pixels:,} pixels; shrink it first.", "too-large") from error
    except MemoryError as error:
        raise PhotoError(f"{name} does not fit into this machine's memory; shrink it first.", "too-large") from error
    except Exception as error:
        # Decoders of damaged files raise whatever their parsing stumbles over. Raw formats of cameras begin like a
        # TIFF, and those that LibRaw does not know are no damaged one.
        is_tiff = kind is None and content[:4] in (b"II*\0", b"MM\0*")
        said = f"{name} is damaged or cut short ({reason_of(error)}); replace the file."
        raise PhotoError(said, expected if is_tiff else "damaged") from error


def _read_once(path: Path, name: str) -> FileContent | None:
    """Read a file; None where it changed meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise PhotoError(f"{name} is not a regular file; name an image file.", "unreadable")
        size = before.st_size
        with open(descriptor, "rb", closefd=False) as file:
            content, expected = file.read(min(FIRST_BYTES, size + 1)), size
            if size > 2 * END_BYTES and kind_of(content) == "VIDEO":
                content += file.read(END_BYTES - len(content))
                file.seek(size - END_BYTES)
                expected = 2 * END_BYTES
            elif size > MAX_BYTES:
                raise PhotoError(f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} allowed.", "too-large")
            content += file.read(expected + 1 - len(content))
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if _moment(before) != _moment(after) or len(content) != expected:
        return None
    return FileContent(content, size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino, path.suffix)


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _cannot_read(path: Path, name: str, error: OSError | ValueError) -> PhotoError:
    """What to say of a file that cannot be opened or read."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        if path.is_symlink():
            return PhotoError(f"{name} is a link that leads nowhere; delete it or mend it.", "link")
        return PhotoError(f"{name} does not exist; check the path.", "unreadable")
    if number == errno.ENXIO:  # what opening a socket gives
        return PhotoError(f"{name} is not a regular file; name an image file.", "unreadable")
    return PhotoError(f"{name} cannot be read ({reason_of(error)}); check its permissions.", "unreadable")


def _silence_pillow() -> None:
    # catch_warnings is not safe among threads, so one lasting filter on one module's warnings it is.
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode(
    content: bytes, kind: Kind | None, name: str, max_pixels: int, target_size: int | None, *, always_twice: bool
) -> DecodedPhoto:
    stream = io.BytesIO(content)
    # Image.open refuses 179 megapixels and more; the class itself leaves that to us.
    is_jpeg = content.startswith(b"\xff\xd8\xff")
    if kind == "HEIF":
        extra_module(kind, name).register_heif_opener()
    formats: tuple[str, ...] = (kind,) if kind in ("HEIF", "AVIF") else _PLAIN
    with JpegImageFile(stream) if is_jpeg else Image.open(stream, formats=formats) as image:
        size = image.size
        _check_size(size, name, max_pixels * (JPEG_EXCESS if is_jpeg else 1), max_pixels)
        buffers = _buffer_bytes(image, content, stream.tell())
        if is_jpeg:  # of a HEIC it would be the thumbnail within, which may show anything
            image.draft(None, _draft_size(size, max_pixels, target_size, always_twice=always_twice))
        _check_size(image.size, name, max_pixels, max_pixels)
        _check_memory(image, name, buffers, max_pixels, target_size)
        image.load()
        # Pillow opens some files with a header that their pixels then outgrow (a frame of a GIF).
        _check_size(image.size, name, max_pixels, max_pixels)
        # Counting a PNG's bytes takes as long as decoding it, so only one whose last row is zero is worth it.
        if image.format == "PNG" and not any(image.crop((0, image.height - 1, *image.size)).tobytes()):
            _check_whole_png(content, name)
        picture = to_rgb(image, shrink_factor(image.size, target_size))
        orientation = orientation_of(image)
        if orientation != 1:
            picture.getexif()[Base.Orientation] = orientation
            ImageOps.exif_transpose(picture, in_place=True)
        # From 5 to 8, width and height change places.
        return DecodedPhoto(picture, *(size[::-1] if 5 <= orientation <= 8 else size), date_of(image))


def _draft_size(
    size: tuple[int, int], max_pixels: int, target_size: int | None, *, always_twice: bool
) -> tuple[int, int]:
    """The least size to ask a JPEG's decoder for: it gives 1, 1/2, 1/4 or 1/8 of the sides, and at least this."""
    scale = 1
    while size[0] * size[1] > max_pixels * scale * scale:
        scale *= 2
    if target_size is None:
        return size[0] // scale, size[1] // scale
    # The embeddings of 16 photos of 12 megapixels, from an eighth and a quarter, have a cosine of 0.9985 at least.
    if not always_twice and min(size) // 8 >= target_size - target_size // 16:
        return size[0] // 8, size[1] // 8
    return min(size[0] // scale, 2 * target_size), min(size[1] // scale, 2 * target_size)


def _check_size(size: tuple[int, int], name: str, most: int, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PhotoError(f"{name} is {width} x {height} pixels; replace the file.")
    if width * height > most:
        raise PhotoError(
            f"{name} claims {width} x {height} pixels, more than the {max_pixels:,} allowed; shrink it first.",
            "too-large",
        )
    if max(size) > MAX_RATIO * min(size):
        raise PhotoError(
            f"{name} is {width} x {height} pixels, a strip of more than {MAX_RATIO} to 1; crop it.", "too-large"
        )


def _check_memory(image: Image.Image, name: str, buffers: int, max_pixels: int, target_size: int | None) -> None:
    """Raise `PhotoError` where decoding would take too much memory: the picture as stored, as RGB, and buffers."""
    width, height = image.size
    shrunk = shrunk_size(image.size, shrink_factor(image.size, target_size))
    needed = width * height * stored_bytes(image.mode) + 4 * shrunk[0] * shrunk[1] + buffers
    most = max(BYTES_PER_PIXEL * max_pixels, LEAST_MEMORY)
    if needed > most:
        raise PhotoError(
            f"{name} ({width} x {height} pixels) would take {needed / 1e6:,.0f} MB to decode, more than the"
            f" {most / 1e6:,.0f} allowed; shrink it first.",
            "too-large",
        )


def _buffer_bytes(image: Image.Image, content: bytes, header_end: int) -> int:
    """What the decoder takes beside the picture itself, whatever fraction of it is decoded."""
    width, height = image.size
    if isinstance(image, JpegImageFile):
        scan = content.rfind(b"\xff\xda", max(0, header_end - 16), header_end)
        if scan >= 0 and "progressive" not in image.info and content[scan + 4] == len(image.layer):
            return 0
        # One in several scans, progressive or with a first that lacks a component, is kept as coefficients of 2 bytes.
        samples = [across * down for _, across, down, _ in image.layer]
        most = max(across for _, across, _, _ in image.layer) * max(down for _, _, down, _ in image.layer)
        return 2 * width * height * sum(samples) // max(1, most)
    if image.format in ("WEBP", "AVIF", "HEIF"):
        # Two canvases of libwebp and a copy in bytes, 4 bytes a pixel each; planes of up to 16 bits and such a copy.
        return 12 * width * height
    if image.format == "TIFF" and any(tile[0] == "libtiff" for tile in getattr(image, "tile", ())):
        tags = getattr(image, "tag_v2", {})
        block_width = int(tags.get(Base.TileWidth, width))
        block_height = int(tags.get(Base.TileLength, min(int(tags.get(Base.RowsPerStrip, height)), height)))
        bits = tags.get(Base.BitsPerSample, (1,))
        bits_per_pixel = max(bits) * int(tags.get(Base.SamplesPerPixel, 1))
        return block_width * block_height * bits_per_pixel // 8
    return 0


def _check_whole_png(content: bytes, name: str) -> None:
    """Raise `PhotoError` where a PNG's pixels end before its last row: Pillow leaves such rows zero."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    expected = 0
    for left, top, across, down in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((left - width) // across), -((top - height) // down)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    unpacked, stream, place = 0, zlib.decompressobj(), 8
    while unpacked < expected and place + 8 <= len(content) and not stream.eof:
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        packed = content[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while packed:
            unpacked += len(stream.decompress(packed, _PIECE))
            packed = stream.unconsumed_tail
        place += length + 12
    if unpacked < expected:
        raise PhotoError(f"{name} is cut short ({unpacked:,} of {expected:,} bytes of pixels); replace the file.")


def reason_of(error: BaseException) -> str:
    """What an error, or the system that it comes from, says: one printable line without a full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return printable(one_line(said).rstrip("."))
