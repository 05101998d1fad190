"""Raw files and videos, made from scratch: nothing but their few pixels is in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence

import av
import numpy as np
from PIL import Image

Tag = tuple[int, int, Sequence[int] | bytes]
_BYTE, _TEXT, _SHORT, _LONG = 1, 2, 3, 4
_SIZES = {_BYTE: 1, _TEXT: 1, _SHORT: 2, _LONG: 4}
_CODES = {_BYTE: "B", _SHORT: "H", _LONG: "I"}


def drawing(size: tuple[int, int]) -> Image.Image:
    """Black, with a red quarter at the top left."""
    image = Image.new("RGB", size, "black")
    image.paste("red", (0, 0, size[0] // 2, size[1] // 2))
    return image


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


class _Tiff:
    """A little-endian TIFF that grows: its tables in the first two kilobytes, behind them its pixels."""

    def __init__(self) -> None:
        self.content = bytearray(b"II*\0".ljust(2048, b"\0"))
        self.tables_end = 8

    def put(self, pixels: bytes) -> int:
        self.content += pixels
        return len(self.content) - len(pixels)

    def note(self, table: bytes) -> int:
        start = self.tables_end
        self.tables_end += len(table) + len(table) % 2
        self.content[start : start + len(table)] = table
        return start

    def directory(self, tags: list[Tag]) -> int:
        rows = []
        for tag, kind, values in sorted(tags):
            packed = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_CODES[kind]}", *values)
            count = len(packed) // _SIZES[kind]
            place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", self.note(packed))
            rows.append(struct.pack("<HHI", tag, kind, count) + place)
        return self.note(struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4))

    def picture(self, size: tuple[int, int], content: bytes, compression: int, colours: int, bits: int) -> list[Tag]:
        """Tags of a picture of this size in one strip."""
        channels = 1 if bits == 16 else 3
        return [
            *((254, _LONG, [int(bits == 8)]), (256, _LONG, [size[0]]), (257, _LONG, [size[1]])),
            *((258, _SHORT, [bits] * channels), (259, _SHORT, [compression]), (262, _SHORT, [colours])),
            *((273, _LONG, [self.put(content)]), (277, _SHORT, [channels])),
            *((278, _LONG, [size[1]]), (279, _LONG, [len(content)])),
        ]


def dng(previews: Sequence[Image.Image], orientation: int = 1, *, packed: bool = True) -> bytes:
    """A raw file of 640 x 480 sensor values, taken on 2024-05-17 at 14:03:00.

    previews  the first in the file's own directory, others in one below it; none at all leaves the sensor's values
    packed    whether previews are JPEG, or bare pixels
    """
    tiff = _Tiff()
    values = np.arange(640 * 480, dtype="<u2").tobytes()
    sensor = [*tiff.picture((640, 480), values, 1, 32803, 16), (33421, _SHORT, [2, 2]), (33422, _BYTE, [0, 1, 1, 2])]
    shown = [
        tiff.picture(image.size, jpeg(image), 7, 6, 8) if packed else tiff.picture(image.size, image.tobytes(), 1, 2, 8)
        for image in previews
    ]
    first = shown[0] if shown else sensor
    others = [tiff.directory(tags) for tags in ([sensor] if shown else []) + shown[1:]]
    exif = tiff.directory([(0x9003, _TEXT, b"2024:05:17 14:03:00\0")])
    camera: list[Tag] = [(271, _TEXT, b"Maker\0"), (272, _TEXT, b"Model\0"), (274, _SHORT, [orientation])]
    camera += [(34665, _LONG, [exif]), (50706, _BYTE, [1, 4, 0, 0]), (50708, _TEXT, b"Maker Model\0")]
    root = tiff.directory([*first, *camera, *([(330, _LONG, others)] if others else [])])
    tiff.content[4:8] = struct.pack("<I", root)
    return bytes(tiff.content)


def video(
    container: str = "mp4",
    codec: str = "mpeg4",
    size: tuple[int, int] = (160, 120),
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Eight frames; the first is a `drawing`, the others are green."""
    stream = io.BytesIO()
    options = {"movflags": "use_metadata_tags"} if container in ("mp4", "mov") else {}
    with av.open(stream, "w", format=container, options=options) as output:
        output.metadata.update(metadata or {})
        track = output.add_stream(codec, rate=10)
        assert isinstance(track, av.VideoStream)
        track.width, track.height, track.pix_fmt, track.bit_rate = *size, "yuv420p", 4_000_000
        for image in [drawing(size), *[Image.new("RGB", size, "lime")] * 7]:
            output.mux(track.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        output.mux(track.encode())
    return stream.getvalue()


def turned(content: bytes, matrix: Sequence[int]) -> bytes:
    """An MP4 that says how it is to be turned, in the four numbers of its track's matrix that can."""
    a, b, c, d = matrix
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    place = content.index(upright, content.index(b"tkhd"))
    changed = struct.pack(">9i", a * 0x10000, b * 0x10000, 0, c * 0x10000, d * 0x10000, 0, 0, 0, 0x40000000)
    return content[:place] + changed + content[place + len(changed) :]
