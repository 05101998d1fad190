"""AVIF and HEIC photos, as Pillow and pillow-heif write them, whole and damaged."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from vsrn.data.photos import decode_photo, read_photo
from vsrn.errors import PhotoError

KINDS = ["AVIF", "HEIF"]


def photo(kind: str, size: tuple[int, int] = (160, 80), mode: str = "RGB", exif: bytes = b"") -> bytes:
    """Black above white, with a red square at the top left."""
    pillow_heif.register_heif_opener()
    image = Image.new("RGB", size, "black")
    image.paste("white", (0, size[1] // 2, *size))
    image.paste("red", (0, 0, size[1] // 4, size[1] // 4))
    stream = io.BytesIO()
    image = image.convert(mode)
    if kind == "HEIF" and exif:
        # Its writer turns the orientation, as phones do, into a box of the file where the picture itself has it.
        image.info["exif"] = exif
        image.save(stream, kind, quality=95)
    else:
        image.save(stream, kind, quality=95, **({"exif": exif} if exif else {}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_pixels_are_about_those_that_were_drawn(kind: str, mode: str) -> None:
    decoded = decode_photo(photo(kind, mode=mode))
    assert (decoded.mode, decoded.size) == ("RGB", (160, 80))
    red = (255, 0, 0) if mode != "L" else (76, 76, 76)
    for place, colour in (((10, 10), red), ((100, 20), (0, 0, 0)), ((10, 70), (255, 255, 255))):
        assert np.abs(np.asarray(decoded, int)[place[::-1]] - colour).max() < 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_comes_out_upright_with_its_date(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is at the right
    exif.get_ifd(0x8769)[0x9003] = "2024:05:17 14:03:00"
    read = read_photo(photo(kind, exif=exif.tobytes()))
    assert (read.width, read.height, read.pixels.size) == (80, 160, (80, 160))
    assert np.abs(np.asarray(read.pixels, int)[10, 70] - (255, 0, 0)).max() < 16
    assert read.taken == datetime(2024, 5, 17, 14, 3)


def test_a_moving_avif_gives_its_first_frame() -> None:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(stream, "AVIF", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode_photo(stream.getvalue()), int) - (255, 0, 0)).max() < 16


def test_of_several_photos_in_one_heic_the_primary_one_is_taken() -> None:
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    first, *others = (Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue"))
    first.save(stream, "HEIF", quality=95, save_all=True, append_images=others, primary_index=1)
    assert np.abs(np.asarray(decode_photo(stream.getvalue()), int) - (0, 255, 0)).max() < 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_cut_short_is_damaged(kind: str) -> None:
    content = photo(kind)
    for share in (0.1, 0.3, 0.6, 0.9):
        with pytest.raises(PhotoError, match="^this photo is damaged or cut short") as error:
            decode_photo(content[: int(len(content) * share)])
        assert error.value.kind == "damaged"


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_that_claims_a_huge_size_is_refused_before_it_is_decoded(kind: str) -> None:
    with pytest.raises(PhotoError, match=r"160 x 80 pixels, more than the 12,799 allowed") as error:
        decode_photo(photo(kind), max_pixels=12_799)
    assert error.value.kind == "too-large"
    content, (width, height) = photo(kind), (160, 80)
    written = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    for claimed in (12_000, 60_000, 2**31, 2**32 - 1):
        changed = content.replace(written, claimed.to_bytes(4, "big") * 2)
        assert changed != content
        with pytest.raises(PhotoError):
            decode_photo(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_decoding_takes_is_bounded(kind: str) -> None:
    content = photo(kind, (5000, 4200))
    # 21 megapixels at 16 bytes are more than the 300 MB that are always allowed.
    with pytest.raises(PhotoError, match="would take 3[0-9]{2} MB to decode") as error:
        decode_photo(content, max_pixels=25_000_000, target_size=224)
    assert error.value.kind == "too-large"
    assert min(decode_photo(content, target_size=224).size) >= 448


def test_without_the_package_a_heic_names_its_extra(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(photo("HEIF"))
    (tmp_path / "b.avif").write_bytes(photo("AVIF"))
    program = """
import sys
sys.modules["pillow_heif"] = None
from pathlib import Path
from vsrn.data.photos import decode_photo
print(decode_photo(Path("b.avif")).size)
try:
    decode_photo(Path("IMG_1.HEIC"))
except ValueError as error:
    print(error.kind, error)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    needs = "needs the package pillow-heif; run `pip install '.[heif]'` in the checkout."
    assert ran.stdout.splitlines() == ["(160, 80)", f"needs-heif IMG_1.HEIC is HEIC, which {needs}"]
