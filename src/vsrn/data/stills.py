"""One JPEG, with EXIF, of a file that is no picture itself: a camera's raw file (its preview), a video (a frame)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

from vsrn.data.kinds import extra_module
from vsrn.errors import PhotoError

# Of a video, so many bytes are read at the beginning and at the end, where its tables lie.
END_BYTES = 32_000_000
# 8K, 7680 x 4320. A frame takes 1.5 to 3 bytes a pixel as decoded and 3 as RGB.
MOST_FRAME_PIXELS = 36_000_000
MOST_PACKETS = 300
SECONDS = 20.0
# So much of a preview's end tells that the file has it.
ENDING_BYTES = 64

_JPEG_QUALITY = 95
# LibRaw's numbers of turned sensors, and EXIF's; FFmpeg's degrees, counter-clockwise, and EXIF's.
_FLIPS = {3: 3, 5: 8, 6: 6}
_ROTATIONS = {90: 8, 180: 3, 270: 6}
_APPLE_DATE, _UTC_DATE = "com.apple.quicktime.creationdate", "creation_time"
# What phones and cameras write. FFmpeg has 500 more decoders, and each is a parser of hostile bytes.
_DECODERS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,msmpeg4,msmpeg4v2,h263,mjpeg,mpeg1video,mpeg2video,prores,dvvideo"


class _Ends:
    """A file of `size` bytes of which `content` has the first and, as many, the last; between them nothing is read."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content, self._half = content, len(content) // 2
        self._size, self._place = size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, count: int = -1) -> bytes:
        start, end = self._place, self._size if count < 0 else self._place + count
        if start < self._half:
            found = self._content[start : min(end, self._half)]
        else:
            skipped = self._size - len(self._content)
            found = self._content[start - skipped : end - skipped] if start - skipped >= self._half else b""
        self._place += len(found)
        return found


def preview_of(content: bytes, name: str) -> bytes | None:
    """The largest preview in a raw file of a camera, as JPEG; None of a TIFF that is no raw file after all.

    Raises `PhotoError`, naming the file `name`, where the extra or a preview is missing, and what LibRaw raises.
    """
    rawpy: Any = extra_module("RAW", name)
    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            found, flip = raw.extract_thumb(), raw.sizes.flip
    except rawpy.LibRawFileUnsupportedError:
        return None
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
        said = f"{name} is a raw file without a preview that can be read; convert it to JPEG."
        raise PhotoError(said, "no-photo") from error
    if found.format == rawpy.ThumbFormat.JPEG:
        preview = bytes(found.data)
        # Of a file that is cut LibRaw gives the preview's whole length, and its end is whatever was in memory.
        if preview[-ENDING_BYTES:] not in content:
            raise PhotoError(f"{name} is damaged or cut short; replace the file.")
        return preview
    return _as_jpeg(Image.fromarray(found.data), _FLIPS.get(flip, 1), None)


def first_frame(content: bytes, size: int, name: str, max_pixels: int) -> bytes:
    """The first frame of a video that is complete in itself, as JPEG.

    content     the file; of a longer one its first and last bytes, as many of each
    size        of the file, in bytes
    max_pixels  of a frame

    Raises `PhotoError`, naming the file `name`, where the extra or a frame is missing, and what FFmpeg raises.
    """
    av: Any = extra_module("VIDEO", name)
    most = str(min(max_pixels, MOST_FRAME_PIXELS))
    container = av.open(
        io.BytesIO(content) if len(content) == size else _Ends(content, size),
        format="matroska" if content[:1] == b"\x1a" else "avi" if content[:4] == b"RIFF" else "mov",
        # No file that it names is opened.
        options={"protocol_whitelist": "none", "codec_whitelist": _DECODERS, "ignore_editlist": "1"},
        stream_options=[{"max_pixels": most}] * 8,
        metadata_errors="ignore",
        timeout=SECONDS,
    )
    with container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise PhotoError(f"{name} is a video without a picture; leave it out.", "no-photo")
        context = stream.codec_context
        # FFmpeg forgets the size of frames that are larger than it may decode.
        if not 0 < context.width * context.height <= int(most):
            said = f"{name} has frames of no size, or of more than the {int(most):,} pixels allowed; leave it out."
            raise PhotoError(said, "too-large")
        context.options, context.thread_count = {"max_pixels": most}, 1
        for number, packet in enumerate(container.demux(stream)):
            # One frame is decoded by itself, so that a decoder does not keep a dozen.
            found = (packet.decode() or context.decode(None)) if packet.is_keyframe and packet.size else []
            if found:
                taken = _date_of({**stream.metadata, **container.metadata})
                return _as_jpeg(found[0].to_image(), _ROTATIONS.get(found[0].rotation % 360, 1), taken)
            if number == MOST_PACKETS:
                break
        raise PhotoError(f"{name} has no frame that can be decoded; replace the file.")


def _date_of(metadata: Mapping[str, str]) -> datetime | None:
    """When a video was taken: by the clock of the phone, or else by this machine's of the moment that it names."""
    try:
        if _APPLE_DATE in metadata:
            return datetime.fromisoformat(metadata[_APPLE_DATE])
        return datetime.fromisoformat(metadata[_UTC_DATE]).astimezone()
    except (KeyError, ValueError, OverflowError, OSError):
        return None


def _as_jpeg(picture: Image.Image, orientation: int, taken: datetime | None) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[Base.Orientation] = orientation
    if taken is not None:
        exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = taken.strftime("%Y:%m:%d %H:%M:%S")
    picture.convert("RGB").save(stream, "JPEG", quality=_JPEG_QUALITY, exif=exif)
    return stream.getvalue()
