"""Raw files of cameras by their previews, and videos by their first frames."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import av
import numpy as np
import pytest
from made_files import dng, drawing, turned, video
from PIL import Image

from vsrn.data.kinds import parts_of_photos
from vsrn.data.photos import decode_photo, read_file, read_photo
from vsrn.errors import PhotoError

TAKEN = datetime(2024, 5, 17, 14, 3)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


def red_corner(picture: Image.Image) -> str:
    """Which quarter of a picture is red; the others are black."""
    pixels = np.asarray(picture, int)
    far_y, far_x = picture.height - 9, picture.width - 9
    corners = [pixels[y, x] for y in (9, far_y) for x in (9, far_x)]
    red = [name for name, colour in zip(CORNERS, corners, strict=True) if np.abs(colour - (255, 0, 0)).max() < 16]
    assert len(red) == 1
    assert sum(np.abs(colour).max() < 16 for colour in corners) == 3
    return red[0]


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "top left"), (3, "bottom right"), (6, "top right"), (8, "bottom left")]
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_raw_file_is_its_largest_preview_upright(orientation: int, corner: str, packed: bool) -> None:
    previews = [Image.new("RGB", (80, 60), "lime"), drawing((320, 240))] if packed else [drawing((320, 240))]
    read = read_photo(dng(previews, orientation, packed=packed))
    assert (read.width, read.height) == ((240, 320) if orientation in (6, 8) else (320, 240))
    assert red_corner(read.pixels) == corner
    assert read.taken == (TAKEN if packed else None)


def test_a_raw_file_has_the_limits_of_other_photos() -> None:
    with pytest.raises(PhotoError, match="320 x 240 pixels, more than the 7,000 allowed") as error:
        decode_photo(dng([drawing((320, 240))]), max_pixels=7_000)  # a JPEG may have ten times as many
    assert error.value.kind == "too-large"
    with pytest.raises(PhotoError, match="200 to 1"):
        decode_photo(dng([Image.new("RGB", (4000, 10))]))
    with pytest.raises(PhotoError, match="this photo is a raw file without a preview that can be read") as error:
        decode_photo(dng([]))
    assert error.value.kind == "no-photo"
    content = dng([drawing((320, 240))])
    for kept in (-20, -1_000):
        with pytest.raises(PhotoError, match="^this photo is damaged or cut short") as error:
            decode_photo(content[:kept])
        assert error.value.kind == "damaged"


def test_a_tiff_that_only_looks_like_a_raw_file_is_read_as_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    drawing((64, 48)).save(path, tiffinfo={271: "Scanner", 254: 1})
    assert red_corner(decode_photo(path)) == "top left"


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mov", "mpeg4"),
        ("webm", "libvpx"),
        ("matroska", "mpeg4"),
        ("avi", "mpeg4"),
        ("3gp", "h263"),
    ],
)
def test_a_video_is_its_first_frame(container: str, codec: str) -> None:
    size = (176, 144) if codec == "h263" else (160, 120)
    read = read_photo(video(container, codec, size))
    assert (read.width, read.height) == size
    assert red_corner(read.pixels) == "top left"


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((0, 1, -1, 0), "top right"),
        ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"),
    ],
)
def test_a_video_is_turned_as_players_do(matrix: tuple[int, ...], corner: str) -> None:
    """The matrices are those of ISO 14496-12 for 0, 90, 180 and 270 degrees clockwise."""
    picture = decode_photo(turned(video(), matrix))
    assert picture.size == ((120, 160) if matrix[0] == 0 else (160, 120))
    assert red_corner(picture) == corner


def test_a_video_s_date_is_the_phone_s_or_that_of_its_moment_here() -> None:
    moment = datetime(2024, 5, 17, 14, 3, tzinfo=UTC)
    assert read_photo(video(metadata={"creation_time": moment.isoformat()})).taken == moment.astimezone().replace(
        tzinfo=None
    )
    phone = {"com.apple.quicktime.creationdate": "2024-05-17T16:03:00+0200", "creation_time": moment.isoformat()}
    assert read_photo(video("mov", metadata=phone)).taken == datetime(2024, 5, 17, 16, 3)
    assert read_photo(video()).taken is None


def test_a_video_has_limits_and_one_bad_one_is_one_error() -> None:
    with pytest.raises(PhotoError, match="frames of no size, or of more than the 19,199 pixels allowed") as error:
        decode_photo(video(), max_pixels=19_199)
    assert error.value.kind == "too-large"
    for container in ("mp4", "matroska", "avi"):
        content = video(container)
        for kept in (64, 300):
            with pytest.raises(PhotoError, match="^this photo is damaged or cut short") as error:
                decode_photo(content[:kept])
            assert error.value.kind == "damaged"


def test_sound_is_no_photo() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        track = output.add_stream("aac", rate=8000)
        assert isinstance(track, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        output.mux(track.encode(frame))
        output.mux(track.encode())
    with pytest.raises(PhotoError, match="this photo is a video without a picture") as error:
        decode_photo(stream.getvalue())
    assert error.value.kind == "no-photo"


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n", "v=0\r\nm=video 1 RTP/AVP 96\r\n{}\r\n"]
)
def test_a_file_that_names_others_as_its_film_is_no_video(text: str, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(video())
    (tmp_path / "list.mp4").write_text(text.format(tmp_path / "film.mp4"))
    with pytest.raises(PhotoError, match="list.mp4 is not an image in a format vsrn reads"):
        decode_photo(tmp_path / "list.mp4")


def test_of_a_long_video_only_the_ends_are_read(tmp_path: Path) -> None:
    content = video()
    tables = content.index(b"moov") - 4
    assert tables > content.index(b"mdat"), "its tables are at its end"
    padding = 3_000_000_000
    with (tmp_path / "long.mp4").open("wb") as file:
        file.write(content[:tables] + struct.pack(">I4s", padding, b"free"))
        file.seek(padding + tables)
        file.write(content[tables:])
    read = read_file(tmp_path / "long.mp4")
    assert (len(read.content), read.size) == (64_000_000, padding + len(content))
    assert red_corner(decode_photo(read)) == "top left"
    os.truncate(tmp_path / "long.mp4", padding)
    with pytest.raises(PhotoError, match="damaged or cut short"):
        decode_photo(tmp_path / "long.mp4")


def test_a_live_photo_s_video_and_a_camera_s_raw_file_are_part_of_the_photo() -> None:
    alone = ["a/1.mov", "b/1.HEIC", "a/2.dng", "a/2.mov", "a/3.png", "a/3.mp4", "a/4.jpg", "a/4.txt", "5.jpg", "5.avi"]
    assert parts_of_photos(alone) == set()
    pairs = ["a/1.HEIC", "a/1.MOV", "a/2.jpg", "a/2.NEF", "a/3.JPG", "a/3.mp4", "a/3.dng"]
    assert parts_of_photos([*alone[5:6], *pairs]) == {"a/1.MOV", "a/2.NEF", "a/3.mp4", "a/3.dng"}


def test_without_their_packages_they_name_their_extras(tmp_path: Path) -> None:
    (tmp_path / "a.dng").write_bytes(dng([drawing((80, 60))]))
    (tmp_path / "b.mov").write_bytes(video("mov"))
    program = """
import sys
sys.modules["rawpy"] = sys.modules["av"] = None
from pathlib import Path
from vsrn.data.photos import FORMATS, decode_photo
print(FORMATS[-1])
for name in ("a.dng", "b.mov"):
    for source in (Path(name), Path(name).read_bytes()):
        try:
            decode_photo(source)
        except ValueError as error:
            print(error.kind, error)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    raw = "is a camera's raw file, which needs the package rawpy; run `pip install '.[raw]'` in the checkout."
    film = "is a video, which needs the package av; run `pip install '.[video]'` in the checkout."
    assert ran.stdout.splitlines() == [
        "HEIF",
        f"needs-raw a.dng {raw}",
        f"needs-raw this photo {raw}",
        f"needs-video b.mov {film}",
        f"needs-video this photo {film}",
    ]
