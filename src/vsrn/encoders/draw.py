"""An explanation as a picture: heat over the photo, boxes of the best regions with their share, the sentence below."""

from __future__ import annotations

import re
import textwrap
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from vsrn.encoders.explain import Explanation, WeighedRegion
from vsrn.errors import DataError
from vsrn.metrics import FloatArray

# The photo's longer side is brought between these, so that letters and lines fit it.
LEAST_SIDE, MOST_SIDE = 640, 1024
MARGIN = 12
TITLE_SIZE, TAG_SIZE, NOTE_SIZE = 22, 17, 15
MOST_LINES, MOST_LETTERS_OF_A_LABEL = 4, 24
INK, PAPER, GREY = (24, 24, 28), (255, 255, 255), (96, 96, 104)
# From cold to hot with growing brightness, so that it can be read without colours too.
RAMP = np.array([(48, 18, 92), (170, 38, 102), (240, 96, 48), (255, 226, 110)], dtype=np.float32)
HEAT_OPACITY = 0.72
# Boxes this near, as a fraction of the photo's side, touch.
TOUCHING = 0.01
# Fonts of common systems that have more letters than Pillow's own.
WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc")
NOTES = {
    "relevance": "similarity {score:.3f}; a box has its share of what fits the sentence",
    "words": "similarity {score:.3f}; the best place of each word",
    "sentence": "similarity {score:.3f}; a box has its share of what regions add to it",
    "image": "similarity {score:.3f}; a box has its share of the photo's own heat, whatever the sentence",
}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


def draw_explanation(photo: Image.Image, explanation: Explanation, sentence: str, k: int = 3) -> Image.Image:
    """The photo, RGB of any size, with its explanation drawn over it and the sentence below; k boxes at most.

    Boxes lie apart, so that neighbours in one hot place are one box; in the view "words" each word has its best one.

    Raises `DataError` where the explained regions have no boxes.
    """
    if explanation.heat is None:
        raise DataError("the regions have no boxes, so nothing can be drawn; extract the photo with `vsrn extract`.")
    scale = min(max(*photo.size, LEAST_SIDE), MOST_SIDE) / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    scaled = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    picture = _with_heat(scaled, explanation.heat)
    if explanation.view == "words":
        named = [region._replace(label=word) for word, region in explanation.places().items()]
        _draw_boxes(picture, sorted(named, key=lambda region: -region.share)[:k])
    else:
        _draw_boxes(picture, _apart(explanation.top(len(explanation.weights)))[:k])
    return _with_caption(picture, sentence, NOTES[explanation.view].format(score=explanation.score))


def _apart(regions: list[WeighedRegion]) -> list[WeighedRegion]:
    """Of regions, strongest first, those that neither meet nor touch a stronger one that is kept."""
    kept: list[WeighedRegion] = []
    for region in regions:
        if all(_gap(region, other) > TOUCHING for other in kept):
            kept.append(region)
    return kept


def _gap(one: WeighedRegion, other: WeighedRegion) -> float:
    """How far two boxes are apart along the axis where they are farthest, as a fraction; below 0 where they overlap."""
    assert one.box is not None, "an explanation without boxes is not drawn"
    assert other.box is not None, "an explanation without boxes is not drawn"
    return float(max(np.maximum(one.box[:2], other.box[:2]) - np.minimum(one.box[2:], other.box[2:])))


def _with_heat(photo: Image.Image, heat: FloatArray) -> Image.Image:
    """The photo in muted colours, with the ramp's laid over it where it is hot."""
    muted = ImageEnhance.Brightness(ImageEnhance.Color(photo).enhance(0.4)).enhance(0.85)
    smooth = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32)).resize(photo.size, Image.Resampling.BILINEAR)
    levels = np.asarray(smooth)
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(levels, stops, RAMP[:, channel]) for channel in range(3)], axis=-1)
    opacity = Image.fromarray(np.rint(255 * HEAT_OPACITY * levels).astype(np.uint8))
    return Image.composite(Image.fromarray(colours.astype(np.uint8)), muted, opacity)


def _draw_boxes(picture: Image.Image, regions: list[WeighedRegion]) -> None:
    """Draw a frame and a tag for each region, frames first, so that no frame crosses a tag."""
    draw = ImageDraw.Draw(picture)
    frames = [_pixels(region, picture.size) for region in regions]
    for frame in reversed(frames):
        # White between two black lines is seen on any photo.
        for inset, width, colour in ((-1, 5, INK), (0, 3, PAPER)):
            x0, y0, x1, y1 = frame
            draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), outline=colour, width=width)
    taken: list[Rectangle] = []
    for region, frame in zip(regions, frames, strict=True):
        name = _one_line(region.label or "")[:MOST_LETTERS_OF_A_LABEL]
        taken.append(_draw_tag(draw, f"{name} {region.share:.0%}".lstrip(), frame, taken, picture.size))


def _draw_tag(
    draw: ImageDraw.ImageDraw, text: str, frame: Rectangle, taken: list[Rectangle], size: tuple[int, int]
) -> Rectangle:
    """Write a tag into a corner of its frame where no other tag is; gives the rectangle that it fills."""
    font, text = _font(text, TAG_SIZE)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 12, bottom - top + 12
    x0, y0, x1, y1 = frame
    corners = [(x0, y0), (x1 - width, y0), (x0, y1 - height), (x1 - width, y1 - height)]
    places = [(min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height)) for x, y in corners]
    tags = [(x, y, x + width, y + height) for x, y in places]

    def is_free(x0: float, y0: float, x1: float, y1: float) -> bool:
        return not any(x0 < other[2] and other[0] < x1 and y0 < other[3] and other[1] < y1 for other in taken)

    tag = next((tag for tag in tags if is_free(*tag)), tags[0])
    draw.rectangle(tag, fill=INK, outline=PAPER)
    draw.text((tag[0] + 6 - left, tag[1] + 6 - top), text, PAPER, font)
    return tag


def _with_caption(picture: Image.Image, sentence: str, note: str) -> Image.Image:
    """The picture with a white strip below it that holds the sentence and the note."""
    blocks, y = [], float(picture.height + MARGIN)
    for text, size, colour in ((f'"{_one_line(sentence)}"', TITLE_SIZE, INK), (note, NOTE_SIZE, GREY)):
        font, letters = _font(text, size)
        lines = _wrapped(letters, font, picture.width - 2 * MARGIN)
        blocks.append(((MARGIN, y), lines, colour, font))
        # The strip is as high for "a cat" as for "a dog", whose g reaches below the line.
        tall = re.sub("[^\n]+", "Ag", lines)
        y = ImageDraw.Draw(picture).multiline_textbbox((MARGIN, y), tall, font)[3] + MARGIN
    page = ImageOps.expand(picture, (0, 0, 0, round(y) - picture.height), PAPER)
    for block in blocks:
        ImageDraw.Draw(page).multiline_text(*block)
    return page


def _wrapped(text: str, font: Font, width: float) -> str:
    """Lines that fit, broken between words or inside a word longer than a line; a text that is cut ends in dots."""
    lines: list[str] = []
    # No letter of a font of this size is narrower than 3 pixels.
    for letters in range(max(4, min(len(text), int(width) // 3)), 3, -1):
        lines = textwrap.wrap(text, letters, max_lines=MOST_LINES, placeholder="...")
        if all(font.getlength(line) <= width for line in lines):
            break
    return "\n".join(lines)


def _font(text: str, size: int) -> tuple[Font, str]:
    """A font for the text, and the text in letters that the font has."""
    if not text.isascii():
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size), text
            except OSError:
                continue
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return ImageFont.load_default(size), plain


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _pixels(region: WeighedRegion, size: tuple[int, int]) -> Rectangle:
    """A region's box in pixels, inside the picture and a pixel wide at least."""
    assert region.box is not None, "an explanation without boxes is not drawn"
    x0, y0, x1, y1 = (float(edge) for edge in np.clip(region.box, 0, 1) * np.array([*size, *size]))
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)
