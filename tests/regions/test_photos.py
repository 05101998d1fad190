"""Photos: every file is found, and whatever is in it, it decodes right or is refused in a sentence."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsrn.errors import DataError, PhotoError
from vsrn.regions.photos import decode_photo, find_photos, read_photo

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


def pixels_of(content: bytes | Path, **options: int) -> Pixels:
    photo = decode_photo(content, **options)
    assert photo.mode == "RGB"
    return np.asarray(photo)


def png_header(width: int, height: int) -> bytes:
    """A whole PNG file of a few bytes that claims this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


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
        ("circle.jpg", "cannot be opened"),
        ("missing.jpg", "does not exist"),
        ("a\0b.jpg", "cannot be opened"),
    ]:
        with pytest.raises(PhotoError, match=says):
            decode_photo(tmp_path / name)


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


def test_every_file_is_found_and_none_is_judged(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.png", "a/b/c.txt", "a/A.jpg", ".hidden.jpg", ".git/x.jpg", "a-b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "broken.jpg").symlink_to("nothing.jpg")
    photos = find_photos(tmp_path)
    assert [photo.id for photo in photos] == ["a-b.jpg", "a/A.jpg", "a/b/c.txt", "a/z.png", "b.jpg", "broken.jpg"]
    assert [photo.path for photo in photos] == [tmp_path / photo.id for photo in photos]


def test_links_to_folders_are_followed_but_never_round_in_a_circle(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    (photos / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"x")
    (photos / "deep" / "near.jpg").write_bytes(b"x")
    (photos / "deep" / "up").symlink_to(photos)
    (photos / "linked").symlink_to(elsewhere)
    assert [photo.id for photo in find_photos(photos)] == ["deep/near.jpg", "linked/far.jpg"]


def test_the_store_among_the_photos_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "photos_ids.txt").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [photo.id for photo in find_photos(tmp_path, leave_out=tmp_path / "store")] == ["a.jpg"]


def test_an_id_is_one_line_of_utf_8_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", "Straße 犬.jpg".encode(), b"two\nlines.jpg", b" edge.jpg"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"x")
    photos = find_photos(tmp_path)
    assert sorted(photo.id for photo in photos) == [
        "Straße 犬.jpg",
        "\\x20edge.jpg",
        "caf\\xe9.jpg",
        "two\\x0alines.jpg",
    ]
    assert all(photo.path.read_bytes() == b"x" for photo in photos)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no files"):
        find_photos(tmp_path)
