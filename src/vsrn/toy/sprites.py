"""One object of the toy world as a picture with a transparent ground, like a paper cut-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageChops, ImageDraw

from vsrn.toy.scenes import COLOURS, RGB

SCALE = 4
BROWN: RGB = (121, 85, 61)
CREAM: RGB = (255, 246, 222)
DARK: RGB = (72, 56, 52)

Point = tuple[float, float]


class Pen:
    """Draws on a square of side 1 whose (0, 0) is the top left corner."""

    def __init__(self, side: int, colour: RGB) -> None:
        self.colour = colour
        self.side = side * SCALE
        self.image = Image.new("RGBA", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], fill: RGB | None = None) -> None:
        """A filled polygon, in the object's colour where no other is given."""
        self.draw.polygon([(x * (self.side - 1), y * (self.side - 1)) for x, y in points], fill or self.colour)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None) -> None:
        """The filled ellipse that touches all sides of a box."""
        self.draw.ellipse(self._pixels(x0, y0, x1, y1), fill or self.colour)

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, *, fill: RGB | None = None, radius: float = 0.02
    ) -> None:
        """A filled box with rounded corners."""
        self.draw.rounded_rectangle(self._pixels(x0, y0, x1, y1), radius * self.side, fill or self.colour)

    def erase_ellipse(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Make the inside of an ellipse transparent."""
        self.draw.ellipse(self._pixels(x0, y0, x1, y1), (0, 0, 0, 0))

    def darker(self, share: float) -> RGB:
        """The object's colour, mixed with this share of a dark brown."""
        red, green, blue = (
            round(ours * (1 - share) + dark * share) for ours, dark in zip(self.colour, DARK, strict=True)
        )
        return red, green, blue

    def _pixels(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        last = self.side - 1
        return x0 * last, y0 * last, x1 * last, y1 * last


def draw_sprite(name: str, colour: str, side: int) -> Image.Image:
    """One object, `side` pixels wide and high, RGBA; it touches all four sides of its picture."""
    pen = Pen(side, COLOURS[colour])
    SHAPES[name](pen)
    return _lit_from_above(pen.image).reduce(SCALE)


def _lit_from_above(image: Image.Image) -> Image.Image:
    """Darken the lower half a little, and leave what is transparent alone."""
    light = Image.linear_gradient("L").resize(image.size).point(lambda level: 255 - level // 8)
    alpha = image.getchannel("A")
    shaded = ImageChops.multiply(image.convert("RGB"), Image.merge("RGB", (light,) * 3))
    shaded.putalpha(alpha)
    return shaded


def _ball(pen: Pen) -> None:
    pen.ellipse(0, 0, 1, 1)


def _box(pen: Pen) -> None:
    pen.rectangle(0, 0, 1, 1, radius=0.07)


def _triangle(pen: Pen) -> None:
    pen.polygon([(0.5, 0), (1, 1), (0, 1)])


def _star(pen: Pen) -> None:
    corners = [
        (radius * math.sin(math.pi * step / 5), -radius * math.cos(math.pi * step / 5))
        for step, radius in enumerate([1.0, 0.45] * 5)
    ]
    pen.polygon(_stretched(corners))


def _ring(pen: Pen) -> None:
    pen.ellipse(0, 0, 1, 1)
    pen.erase_ellipse(0.17, 0.17, 0.83, 0.83)


def _heart(pen: Pen) -> None:
    turns = [2 * math.pi * step / 120 for step in range(120)]
    outline = [
        (
            16 * math.sin(turn) ** 3,
            -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)),
        )
        for turn in turns
    ]
    pen.polygon(_stretched(outline))


def _house(pen: Pen) -> None:
    pen.rectangle(0.7, 0.06, 0.82, 0.4, fill=pen.darker(0.55))
    pen.rectangle(0.1, 0.38, 0.9, 1)
    pen.polygon([(0.5, 0), (1, 0.42), (0, 0.42)], fill=pen.darker(0.35))
    pen.rectangle(0.57, 0.64, 0.77, 1, fill=BROWN)
    pen.rectangle(0.2, 0.64, 0.42, 0.83, fill=CREAM)


def _tree(pen: Pen) -> None:
    pen.polygon([(0.45, 0.5), (0.55, 0.5), (0.6, 1), (0.4, 1)], fill=BROWN)
    pen.ellipse(0, 0.26, 0.56, 0.76)
    pen.ellipse(0.44, 0.26, 1, 0.76)
    pen.ellipse(0.18, 0, 0.82, 0.6)


def _boat(pen: Pen) -> None:
    pen.rectangle(0.4, 0, 0.44, 0.76, fill=BROWN)
    pen.polygon([(0.47, 0.03), (0.98, 0.64), (0.47, 0.64)])
    pen.polygon([(0.37, 0.16), (0.37, 0.64), (0.06, 0.64)])
    pen.polygon([(0, 0.71), (1, 0.71), (0.82, 1), (0.18, 1)], fill=pen.darker(0.2))


def _flower(pen: Pen) -> None:
    """Eight petals around a dark heart small enough to leave the petals' colour the main one."""
    petals = [(math.sin(math.pi * step / 4), math.cos(math.pi * step / 4)) for step in range(8)]
    for x, y in petals:
        middle, radius = (0.5 + 0.33 * x, 0.5 + 0.33 * y), 0.17
        pen.ellipse(middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    pen.ellipse(0.24, 0.24, 0.76, 0.76)
    pen.ellipse(0.37, 0.37, 0.63, 0.63, fill=pen.darker(0.6))


def _stretched(points: Sequence[Point]) -> list[Point]:
    """The same outline, touching all four sides of the unit square."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return [((x - min(xs)) / width, (y - min(ys)) / height) for x, y in points]


SHAPES: dict[str, Callable[[Pen], None]] = {
    "ball": _ball,
    "box": _box,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "flower": _flower,
}
