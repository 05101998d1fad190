"""Small pictures in the terminal, where environment variables say that it can show them.

Asking the terminal itself would need raw mode, and a wait for an answer that may never come.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping

ROWS = 8
KITTY_CHUNK = 4096
SIXEL_SIDE, SIXEL_COLOURS = 160, 64

# JPEG bytes -> what to print.
Draw = Callable[[bytes], str]


def picture_protocol(environment: Mapping[str, str] = os.environ) -> Draw | None:
    """The function that makes a picture for this terminal, or None where no variable says that it shows pictures."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term.startswith(("screen", "tmux")):
        # Multiplexers swallow the sequences.
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return kitty
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    if term.startswith(("foot", "mlterm", "contour")) or "sixel" in term:
        return sixel
    return None


def iterm2(jpeg: bytes) -> str:
    """A JPEG as an inline image of iTerm2: https://iterm2.com/documentation-images.html"""
    content = base64.b64encode(jpeg).decode()
    return f"\x1b]1337;File=inline=1;size={len(jpeg)};height={ROWS};preserveAspectRatio=1:{content}\x07"


def kitty(jpeg: bytes) -> str:
    """A JPEG in kitty's graphics protocol, which takes PNG: https://sw.kovidgoyal.net/kitty/graphics-protocol/"""
    from PIL import Image

    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")
    content = base64.b64encode(png.getvalue()).decode()
    chunks = [content[first : first + KITTY_CHUNK] for first in range(0, len(content), KITTY_CHUNK)]
    keys = [f"a=T,f=100,r={ROWS},", *[""] * (len(chunks) - 1)]
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{key}m={last};{chunk}\x1b\\" for key, last, chunk in zip(keys, more, chunks, strict=True))


def sixel(jpeg: bytes) -> str:
    """A JPEG as DEC's sixels: six rows at a time, one colour after the other, a character a column."""
    import numpy as np
    from PIL import Image

    photo = Image.open(io.BytesIO(jpeg)).convert("RGB")
    photo.thumbnail((SIXEL_SIDE, SIXEL_SIDE))
    few = photo.quantize(SIXEL_COLOURS)
    palette = np.array(few.getpalette(), dtype=int).reshape(-1, 3) * 100 // 255
    pixels = np.asarray(few)
    pixels = np.pad(pixels, ((0, -len(pixels) % 6), (0, 0)), constant_values=255)
    parts = [f'\x1bPq"1;1;{photo.width};{photo.height}']
    parts += [f"#{colour};2;{red};{green};{blue}" for colour, (red, green, blue) in enumerate(palette)]
    for band in pixels.reshape(-1, 6, photo.width):
        for colour in np.unique(band[band < SIXEL_COLOURS]):
            bits = ((band == colour) << np.arange(6)[:, None]).sum(axis=0)
            parts.append(f"#{colour}" + "".join(chr(63 + bit) for bit in bits) + "$")
        parts.append("-")
    return "".join(parts) + "\x1b\\"
