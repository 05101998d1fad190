"""Photos: every file is found, and whatever is in it, it decodes right or is refused in a sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsrn.data.photos import decode_photo, read_file, read_photo
from vsrn.errors import PhotoError

Pixels = npt.NDArray[np.uint8]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def quarters() -> Image.Image:
    """40 x 20: red and green above, blue and white below."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20], pixels[:10, 20:], pixels[10:, :20], pixels[10:, 20:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def pixels_of(content: bytes | Path, **options: Any) -> Pixels:
    photo = decode_photo(content, **options)
    assert photo.mode == "RGB"
    return np.asarray(photo)


def png(width: int, height: int, rows: Iterable[bytes], *, colour: int = 2, interlaced: int = 0) -> bytes:
    """A PNG file of 8 bits a channel that claims this size and holds these rows, each behind its filter's byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for row in rows) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A whole PNG file of a few bytes that claims this size."""
    return png(width, height, [b"\0"])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_drawn(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels_of(encoded(quarters(), kind, **options)), np.asarray(quarters()))


@pytest.mark.parametrize(("mode", "options"), [("RGB", {}), ("RGB", {"progressive": True}), ("CMYK", {})])
def test_jpegs_give_about_the_pixels_that_were_drawn(mode: str, options: dict[str, bool]) -> None:
    decoded = pixels_of(encoded(quarters().convert(mode), "JPEG", quality=95, **options))
    # Away from the edges between colours, where a JPEG blurs.
    inside = np.ix_([4, 15], [8, 30])
    assert np.abs(decoded[inside].astype(int) - np.asarray(quarters())[inside]).max() < 12


# How each EXIF orientation was taken: what undoes it, in numpy.
UNDO: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_photo_comes_out_upright(orientation: int, kind: str) -> None:
    upright = np.asarray(quarters())
    stored = Image.fromarray(np.ascontiguousarray(UNDO[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    photo = decode_photo(encoded(stored, kind, exif=exif, **options))
    assert np.array_equal(np.asarray(photo), upright)
    assert photo.getexif().get(0x0112, 1) == 1  # so that nobody turns it again


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_knows_its_size_upright_however_small_it_is_decoded(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read_photo(encoded(Image.new("RGB", (1600, 1000)), "JPEG", exif=exif), target_size=50)
    assert (photo.width, photo.height) == ((1600, 1000) if orientation < 5 else (1000, 1600))
    assert photo.pixels.width < 1000, "decoded at a fraction"
    assert photo.pixels.width / photo.pixels.height == pytest.approx(photo.width / photo.height, rel=0.01)


@pytest.mark.parametrize(
    ("original", "changed", "expected"),
    [
        ("2024:05:17 14:03:00", "2025:01:01 00:00:00", datetime(2024, 5, 17, 14, 3)),
        (None, "2025:01:01 00:00:00", datetime(2025, 1, 1)),
        ("2024:05:17 14:03:00\0", None, datetime(2024, 5, 17, 14, 3)),
        ("0000:00:00 00:00:00", None, None),
        ("0000:00:00 00:00:00", "2025:01:01 10:20:30", datetime(2025, 1, 1, 10, 20, 30)),
        ("    :  :     :  :  ", "2025:01:01 10:20:30", datetime(2025, 1, 1, 10, 20, 30)),
        ("9999:12:31 23:59:59", "2025:01:01 10:20:30", datetime(2025, 1, 1, 10, 20, 30)),
        ("2024-05-17 14:03:09", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024/05/17 14:03:09", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024.05.17 14:03:09", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024-05-17T14:03:09", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024:05:17 14:03", None, datetime(2024, 5, 17, 14, 3)),
        ("2024:05:17 14:03:09.250", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024:05:17 14:03:09+02:00", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024-05-17T14:03:09.25-0930", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024-05-17T14:03:09Z\0\0 ", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024:05:17 14:03:09\0junk", None, datetime(2024, 5, 17, 14, 3, 9)),
        ("2024:13:17 14:03:09", None, None),
        ("yesterday", None, None),
        (None, None, None),
    ],
)
def test_a_photo_knows_when_it_was_taken(original: str | None, changed: str | None, expected: datetime | None) -> None:
    exif = Image.Exif()
    if original is not None:
        exif.get_ifd(0x8769)[0x9003] = original
    if changed is not None:
        exif[0x0132] = changed
    assert read_photo(encoded(Image.new("RGB", (9, 9)), "JPEG", exif=exif)).taken == expected


def test_a_date_of_digitizing_comes_before_that_of_a_change() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    exif.get_ifd(0x8769)[0x9004] = "1994:08:02 09:00:00"
    exif[0x0132] = "2025:01:01 00:00:00"
    assert read_photo(encoded(Image.new("RGB", (9, 9)), "JPEG", exif=exif)).taken == datetime(1994, 8, 2, 9)


def test_damaged_exif_does_not_cost_the_photo() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert pixels_of(encoded(quarters(), "JPEG", exif=exif)).shape == (20, 40, 3)


def test_transparency_is_laid_on_white() -> None:
    alpha = np.zeros((20, 40), np.uint8)
    alpha[:, :20], alpha[10:, 20:] = 255, 128
    image = quarters()
    image.putalpha(Image.fromarray(alpha))
    decoded = pixels_of(encoded(image, "PNG"))
    assert tuple(decoded[5, 5]) == RED
    assert tuple(decoded[5, 30]) == WHITE  # green, but fully transparent
    half_black = Image.new("LA", (4, 4), (0, 128))
    assert np.array_equal(pixels_of(encoded(half_black, "PNG")), np.full((4, 4, 3), 127))


def test_a_transparent_colour_of_a_palette_is_laid_on_white() -> None:
    indices = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode=None).convert("P")
    indices.putpalette([*BLUE, *RED])
    for kind in ("PNG", "GIF"):
        decoded = pixels_of(encoded(indices, kind, transparency=0))
        assert decoded.tolist() == [[list(WHITE), list(RED)], [list(RED), list(WHITE)]]
    by_byte = pixels_of(encoded(indices, "PNG", transparency=bytes([255, 0])))
    assert by_byte.tolist() == [[list(BLUE), list(WHITE)], [list(WHITE), list(BLUE)]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_are_scaled_and_not_cut(kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = pixels_of(encoded(Image.fromarray(values), kind))
    assert np.array_equal(decoded[..., 0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),
        ([[0.0, 51.0, 255.0]], [0, 51, 255]),
        ([[0.0, 257.0, 65535.0]], [0, 1, 255]),
        ([[-1.0, 0.0, 1.0]], [0, 128, 255]),
        ([[0.0, float("nan"), float("inf")]], [0, 0, 0]),
        ([[-3e38, 0.0, 3e38]], [0, 128, 255]),
    ],
)
def test_floating_point_greys_are_scaled_to_their_white_point(values: list[list[float]], expected: list[int]) -> None:
    decoded = pixels_of(encoded(Image.fromarray(np.array(values, np.float32)), "TIFF"))
    assert np.abs(decoded[0, :, 0].astype(int) - expected).max() <= 1


def test_whole_numbers_of_32_bits_are_scaled_too() -> None:
    decoded = pixels_of(encoded(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32)), "TIFF"))
    assert decoded[0, :, 0].tolist() == [0, 100, 255]


def test_one_bit_a_pixel_is_black_and_white() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        decoded = pixels_of(encoded(Image.fromarray(np.eye(8, dtype=np.uint8) * 255).convert("1"), kind))
        assert np.array_equal(decoded[..., 1], np.eye(8) * 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels_of(content), np.full((8, 8, 3), RED))


def test_a_jpeg_with_a_second_picture_gives_its_first() -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(pixels_of(content).astype(int) - RED).max() < 8


def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_target() -> None:
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(gradient, (1200, 1))] * 3, axis=-1))
    content = encoded(image, "JPEG", quality=95)
    reduced = decode_photo(content, target_size=224)
    assert reduced.size == (800, 600)
    side = (224, 224)
    difference = np.asarray(reduced.resize(side), int) - np.asarray(decode_photo(content).resize(side), int)
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize(("size", "reduced"), [((2560, 1920), (320, 240)), ((2304, 1700), (1152, 850))])
def test_an_eighth_of_a_jpeg_is_enough_where_it_is_about_as_large_as_the_target(
    size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    content = encoded(Image.new("RGB", size, RED), "JPEG")
    assert decode_photo(content, target_size=240).size == reduced
    assert read_photo(content, target_size=240).width == size[0]


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_001), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header_and_without_a_warning(size: tuple[int, int]) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(PhotoError, match=r"claims .*more than") as refusal:
            decode_photo(png_header(*size))
    assert heard == []
    assert "100,000,000" in str(refusal.value)


def test_a_frame_that_outgrows_its_header_is_refused() -> None:
    content = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    frame = content.index(b"\x2c", 13)
    content[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(PhotoError):
        decode_photo(bytes(content))


def test_the_limit_can_be_moved() -> None:
    content = encoded(quarters(), "PNG")
    assert decode_photo(content, max_pixels=800).size == (40, 20)
    with pytest.raises(PhotoError, match=r"40 x 20 pixels, more than the 799 allowed"):
        decode_photo(content, max_pixels=799)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_photo_cut_short_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = encoded(noise, kind)
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(PhotoError):
            decode_photo(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"just some words", "not an image"),
        (b"\0" * 1000, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
        (b"P5 2 2 255 abcd", "not an image"),
        (b"\xff\xd8\xff\xe0", "this photo is"),
    ],
)
def test_what_is_no_photo_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(PhotoError, match=says):
        decode_photo(content)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=r"photo\.jpg"):
        decode_photo(path)


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    for name, says in [
        ("pipe.jpg", "not a regular file"),
        ("folder.jpg", "not a regular file"),
        ("broken.jpg", "a link that leads nowhere"),
        ("circle.jpg", "a link that leads nowhere"),
        ("missing.jpg", "does not exist"),
        ("a\0b.jpg", "cannot be read"),
    ]:
        with pytest.raises(PhotoError, match=says) as refusal:
            decode_photo(tmp_path / name)
        assert refusal.value.kind == ("link" if "link" in says else "unreadable")
        assert str(refusal.value).isprintable()


pillow_heif.register_heif_opener()
SEEDS = [
    encoded(quarters(), "JPEG"),
    encoded(
        quarters(), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    encoded(quarters().convert("CMYK"), "JPEG"),
    encoded(quarters(), "PNG"),
    encoded(quarters().convert("P"), "PNG", transparency=0),
    encoded(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(180)]),
    encoded(quarters(), "WEBP"),
    encoded(quarters(), "AVIF"),
    encoded(quarters(), "HEIF"),
    encoded(quarters(), "BMP"),
    encoded(quarters(), "TIFF"),
    encoded(quarters(), "TIFF", compression="tiff_lzw"),
    encoded(quarters(), "TIFF", compression="tiff_adobe_deflate"),
    encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
    encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
    encoded(quarters(), "MPO", save_all=True, append_images=[quarters()]),
]


@settings(max_examples=1500, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    keep=st.floats(0.3, 1),
)
def test_hostile_bytes_give_a_picture_or_a_photo_error(
    seed: bytes, changes: list[tuple[float, int]], keep: float
) -> None:
    content = bytearray(seed)
    for place, value in changes:
        # Headers are where the harm is: most changes fall near the beginning.
        content[int(place**3 * (len(content) - 1))] = value
    refusal, photo = None, None
    try:
        photo = decode_photo(bytes(content[: int(len(content) * keep)]), max_pixels=1_000_000)
    except PhotoError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("this photo")
        assert "\n" not in refusal
    if photo is not None:
        assert photo.mode == "RGB"
        assert np.asarray(photo).shape == (photo.height, photo.width, 3)


def test_a_strip_is_refused_by_its_header() -> None:
    for size in [(1, 99_000_000), (99_000_000, 1), (1, 201), (40_200, 200)]:
        with pytest.raises(PhotoError, match="a strip of more than 200 to 1") as refusal:
            decode_photo(png_header(*size))
        assert refusal.value.kind == "too-large"
    assert decode_photo(encoded(Image.new("RGB", (1, 200)), "PNG")).size == (1, 200)


# What a process takes at most that decodes one photo for a network of 224 x 224 pixels, in MB; 30 of them are Python's.
MEMORY_ALLOWED = 600
IN_A_PROCESS = """
import re, sys
from pathlib import Path
from vsrn.errors import PhotoError
from vsrn.data.photos import read_photo
try:
    print(read_photo(Path(sys.argv[1]), target_size=224).pixels.resize((224, 224)).size)
except PhotoError as error:
    print(error.kind)
# Unlike ru_maxrss, this does not count what the process was that started this one.
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1000)
"""


def large_photos() -> Iterator[tuple[str, Callable[[], bytes], str]]:
    shape = "(224, 224)"
    rgba, grey = b"\0" + b"\x80" * 4 * 9990, Image.new("I;16", (9990, 9990), 9000)
    yield "rgba", lambda: png(9990, 10_000, [rgba] * 10_000, colour=6), shape
    yield "16 bits", lambda: encoded(grey, "PNG", compress_level=1), shape
    yield "108 MP", lambda: encoded(Image.new("L", (12_000, 9000)), "JPEG"), shape
    yield "200 MP", lambda: encoded(Image.new("L", (16_320, 12_240)), "JPEG"), shape
    # All coefficients of a progressive JPEG are kept at once, 2 bytes each, however small it is decoded.
    yield "200 MP, progressive", lambda: encoded(Image.new("L", (16_320, 12_240)), "JPEG", progressive=True), shape
    # libwebp holds 16 bytes a pixel.
    yield "webp", lambda: encoded(Image.new("RGB", (9990, 9990)), "WEBP", quality=1, method=0), "too-large"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("make", "expected"),
    [pytest.param(make, expected, id=name) for name, make, expected in large_photos()],
)
def test_a_large_photo_takes_bounded_memory(make: Callable[[], bytes], expected: str, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(make())
    program = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path / "photo")]
    answer, memory = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    assert answer == expected
    assert int(memory) < MEMORY_ALLOWED


def test_memory_is_bounded_by_the_header_for_progressive_jpegs() -> None:
    # 9 megapixels of three full components are 54 MB of coefficients, beside which 300 MB are always allowed.
    image = Image.new("RGB", (8000, 7000))
    baseline = encoded(image, "JPEG", subsampling=0)
    progressive = encoded(image, "JPEG", subsampling=0, progressive=True)
    assert decode_photo(baseline, max_pixels=10_000_000, target_size=224).width == 1000
    with pytest.raises(PhotoError, match="would take 3[34][0-9] MB to decode, more than the 300 allowed") as refusal:
        decode_photo(progressive, max_pixels=10_000_000, target_size=224)
    assert refusal.value.kind == "too-large"


def test_a_jpeg_beyond_the_limit_is_decoded_at_a_fraction_within_it() -> None:
    content = encoded(Image.new("RGB", (1600, 1200)), "JPEG")
    photo = read_photo(content, max_pixels=500_000)
    assert (photo.width, photo.height, photo.pixels.size) == (1600, 1200, (800, 600))
    with pytest.raises(PhotoError, match="more than the 100,000 allowed"):
        decode_photo(content, max_pixels=100_000)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
def test_a_large_photo_shrinks_as_an_average_of_its_pixels(mode: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (900, 1300, 4), np.uint8)
    if mode in ("I;16", "F"):
        image = Image.fromarray(noise[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        image = Image.fromarray(noise).convert(mode)
    content = encoded(image, "TIFF" if mode in ("LA", "F") else "PNG")
    whole, small = read_photo(content), read_photo(content, target_size=100)
    assert (small.width, small.height, small.pixels.size) == (1300, 900, (325, 225))
    squares = np.asarray(whole.pixels, np.float64).reshape(225, 4, 325, 4, 3).mean(axis=(1, 3))
    assert np.abs(squares - np.asarray(small.pixels)).max() <= 1


@pytest.mark.parametrize("kept", [0, 1, 100, 699])
def test_a_png_whose_rows_end_early_is_damaged(kept: int) -> None:
    row = b"\0" + b"\x80" * 3 * 700
    assert pixels_of(png(700, 700, [row] * 700)).min() == 128
    with pytest.raises(PhotoError, match="cut short") as refusal:
        decode_photo(png(700, 700, [row] * kept))
    assert refusal.value.kind == "damaged"


def test_a_png_that_is_black_to_its_end_is_whole() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        for size in ((1, 1), (7, 3), (33, 17), (1300, 900)):
            assert decode_photo(encoded(Image.new(mode, size), "PNG")).size == size
    # The seven passes of 8 x 8 pixels hold 1, 1, 1, 2, 2, 4 and 4 rows of 1, 1, 2, 2, 4, 4 and 8.
    passes = [bytes(2), bytes(2), bytes(3), bytes(6), bytes(10), bytes(20), bytes(36)]
    assert decode_photo(png(8, 8, passes, colour=0, interlaced=1)).size == (8, 8)
    with pytest.raises(PhotoError, match="43 of 79 bytes"):
        decode_photo(png(8, 8, passes[:-1], colour=0, interlaced=1))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jpg", b"", "damaged"),
        ("a.JPG", b"some words", "damaged"),
        ("a.txt", b"some words", "no-photo"),
        ("a.txt", b"", "no-photo"),
        ("a", b"some words", "no-photo"),
        ("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(500), "damaged"),
        ("a.mp4", b"some words", "no-photo"),
        ("a.nef", b"MM\0*\0\0\0\x08" + bytes(500), "no-photo"),
        ("a.tif", b"MM\0*\0\0\0\x08" + bytes(500), "damaged"),
        ("a", encoded(quarters(), "JPEG")[:300], "damaged"),
        ("a.dat", encoded(quarters(), "PNG")[:60], "damaged"),
    ],
)
def test_what_ought_to_be_a_photo_is_damaged_and_other_files_are_none(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(PhotoError) as refusal:
            read_photo(source, name=name)
        assert refusal.value.kind == kind
        assert str(refusal.value).startswith(f"{name} is ")


def test_a_message_names_a_file_on_one_printable_line(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[2J\n.jpg"))
    path.write_bytes(b"no photo")
    with pytest.raises(PhotoError) as refusal:
        read_photo(path)
    assert str(tmp_path / "caf\\xe9\\x1b[2J\\x0a.jpg") in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_a_file_is_read_with_the_status_it_had(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    read, status = read_file(path), path.stat()
    assert (read.content, read.size) == (b"content", 7)
    assert read.modified_ns == 1_700_000_000_123_456_789
    assert (read.changed_ns, read.inode) == (status.st_ctime_ns, status.st_ino)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_file_that_is_longer_than_its_status_says_is_not_taken() -> None:
    # Such files say 0 bytes and hold more, as a file does that grows while it is read.
    with pytest.raises(PhotoError, match="keeps changing while it is read") as refusal:
        read_file(Path("/proc/self/status"))
    assert refusal.value.kind == "unreadable"


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with path.open("wb") as file:
        file.truncate(400_000_000)  # takes no room on the disk
    with pytest.raises(PhotoError, match="has 400,000,000 bytes, more than the 320,000,000 allowed") as refusal:
        read_photo(path)
    assert refusal.value.kind == "too-large"
