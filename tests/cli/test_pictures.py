"""Pictures for the terminal, decoded again by the slowest reading of each protocol."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vsrn.cli.search import Draw, iterm2, kitty, picture_protocol, sixel


def jpeg(width: int = 90, height: int = 50) -> bytes:
    """Four flat quarters, which any palette holds."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = (255, 0, 0), (0, 255, 0)
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = (0, 0, 255), (255, 255, 255)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95, subsampling=0)
    return content.getvalue()


def pixels_of(content: bytes) -> npt.NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int64)


@pytest.mark.parametrize(
    ("environment", "draw"),
    [
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, iterm2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, iterm2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, iterm2),
        ({"TERM": "xterm-kitty"}, kitty),
        ({"TERM": "xterm-ghostty"}, kitty),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "foot"}, sixel),
        ({"TERM": "mlterm"}, sixel),
    ],
)
def test_a_terminal_gets_what_its_name_promises(environment: Mapping[str, str], draw: Draw | None) -> None:
    assert picture_protocol(environment) is draw


def test_iterm2_gets_the_file() -> None:
    said = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);[^:]*:([A-Za-z0-9+/=]+)\x07", iterm2(jpeg()))
    assert said is not None
    assert base64.b64decode(said[2]) == jpeg()
    assert int(said[1]) == len(jpeg())


def test_kitty_gets_a_png_in_chunks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(120, 120, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG")
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(content.getvalue()))
    assert len(commands) > 2
    assert "".join(f"\x1b_G{keys};{chunk}\x1b\\" for keys, chunk in commands) == kitty(content.getvalue())
    assert commands[0][0].startswith("a=T,f=100,")
    assert [keys[-3:] for keys, _ in commands] == ["m=1"] * (len(commands) - 1) + ["m=0"]
    assert all(len(chunk) <= 4096 and len(chunk) % 4 == 0 for _, chunk in commands)
    png = base64.b64decode("".join(chunk for _, chunk in commands))
    np.testing.assert_array_equal(pixels_of(png), pixels_of(content.getvalue()))


def draw_sixels(said: str) -> npt.NDArray[np.int64]:
    """A terminal, a character at a time."""
    begin = re.match(r'\x1bPq"1;1;(\d+);(\d+)', said)
    assert begin is not None
    assert said.endswith("\x1b\\")
    width, height = int(begin[1]), int(begin[2])
    screen = np.full((height + 6, width, 3), -1)
    palette: dict[int, list[float]] = {}
    left, top, colour = 0, 0, 0
    for command in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|[$-]|[?-~]", said[begin.end() : -2]):
        if command.startswith("#") and ";" in command:
            number, _, *rgb = map(int, command[1:].split(";"))
            palette[number] = [share * 2.55 for share in rgb]
        elif command.startswith("#"):
            colour = int(command[1:])
        elif command == "$":
            left = 0
        elif command == "-":
            left, top = 0, top + 6
        else:
            for row in range(6):
                if (ord(command) - 63) >> row & 1:
                    screen[top + row, left] = palette[colour]
            left += 1
    return screen[:height]


@pytest.mark.parametrize("size", [(90, 50), (12, 6), (7, 13), (400, 300)])
def test_sixels_draw_the_picture(size: tuple[int, int]) -> None:
    drawn = draw_sixels(sixel(jpeg(*size)))
    photo = Image.open(io.BytesIO(jpeg(*size)))
    photo.thumbnail((160, 160))
    assert drawn.min() >= 0, "every pixel is drawn"
    assert np.median(np.abs(drawn - np.asarray(photo, dtype=np.int64))) < 6
