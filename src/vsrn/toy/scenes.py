"""The toy world: two objects, one relation and one background a scene, and five sentences about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]
T = TypeVar("T")

PICTURE_SIZE = 224
NUM_VARIANTS = 6

NAMES = ("ball", "box", "ring", "star", "boat")
CONTAINERS = ("ball", "box", "ring")
COLOURS: dict[str, RGB] = {
    "red": (219, 58, 52),
    "orange": (243, 146, 47),
    "yellow": (250, 212, 66),
    "green": (56, 161, 91),
    "blue": (46, 105, 214),
    "purple": (134, 76, 191),
    "pink": (245, 150, 190),
    "white": (250, 248, 244),
}
# Colours that hardly show on a background are not drawn there.
CLASHES = {
    "sky": {"blue", "white"},
    "sea": {"blue", "green"},
    "sand": {"yellow", "white"},
    "grass": {"green"},
    "night": {"blue", "purple"},
}
BACKGROUNDS = tuple(CLASHES)
PLACES = {
    "sky": ("in the sky", "among the clouds", "up in the air"),
    "sea": ("at sea", "on the water", "out on the waves"),
    "sand": ("on the sand", "on the beach", "in the desert"),
    "grass": ("on the grass", "in a meadow", "on the lawn"),
    "night": ("at night", "in the dark", "after sunset"),
}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "inside": "around"}
RELATIONS = tuple(INVERSE)
PHRASES = {
    "left of": ("to the left of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over", "high above"),
    "below": ("below", "under", "underneath"),
    "inside": ("inside", "in the middle of", "within"),
    "around": ("around", "surrounding"),
}
SYNONYMS = {"ball": "circle", "box": "square", "ring": "hoop", "boat": "sailboat"}
LARGE, SMALL = ("big", "large", "huge"), ("small", "little", "tiny")


@dataclass(frozen=True)
class ToyObject:
    """One drawn object.

    name    one of `NAMES`
    colour  a key of `COLOURS`
    box     x0, y0, x1, y1 as fractions of the picture's width and height
    """

    name: str
    colour: str
    box: Box

    @property
    def side(self) -> float:
        """Width of the (square) box, as a fraction of the picture."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class ToyScene:
    """One picture before it is drawn: `first` is `relation` `second`, on `background`.

    The two objects differ in name and in colour, so either word says which of them is meant.
    variant  0 to 5, which drawing of the background is used
    """

    background: str
    relation: str
    first: ToyObject
    second: ToyObject
    variant: int = 0

    @property
    def objects(self) -> tuple[ToyObject, ToyObject]:
        """Both objects, the lower one first: the order in which they are drawn."""
        return (self.second, self.first) if self.relation == "inside" else (self.first, self.second)


def invent_scenes(count: int, generator: np.random.Generator) -> list[ToyScene]:
    """Scenes of which no two show the same objects in the same places of the same background."""
    scenes: dict[tuple[object, ...], ToyScene] = {}
    while len(scenes) < count:
        scene = _invent(generator)
        first, second = ((thing.name, thing.colour) for thing in (scene.first, scene.second))
        # "A left of B" and "B right of A" show the same.
        seen = (INVERSE[scene.relation], second, first) if scene.relation in ("right of", "below") else None
        scenes.setdefault((scene.background, *(seen or (scene.relation, first, second))), scene)
    return list(scenes.values())


def _pick(generator: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, all equally likely."""
    return choices[int(generator.integers(len(choices)))]


def _invent(generator: np.random.Generator) -> ToyScene:
    background, relation = _pick(generator, BACKGROUNDS), _pick(generator, RELATIONS)
    second_name = _pick(generator, CONTAINERS if relation == "inside" else NAMES)
    first_name = _pick(generator, [name for name in NAMES if name != second_name])
    colours = [colour for colour in COLOURS if colour not in CLASHES[background]]
    first_colour, second_colour = (colours[index] for index in generator.permutation(len(colours))[:2])
    first_box, second_box = _inside(generator) if relation == "inside" else _apart(relation, generator)
    first, second = ToyObject(first_name, first_colour, first_box), ToyObject(second_name, second_colour, second_box)
    return ToyScene(background, relation, first, second, variant=int(generator.integers(NUM_VARIANTS)))


def _apart(relation: str, generator: np.random.Generator) -> tuple[Box, Box]:
    """Boxes of two objects side by side or one over the other, either of the same size or clearly not."""
    sides = _pick(generator, [(82, 82), (98, 56), (56, 98)])
    near, far = (int(generator.integers(54, 61)), int(generator.integers(164, 171)))
    along = (near, far) if relation in ("left of", "above") else (far, near)
    middle = int(generator.integers(92, 133))
    across = (middle, middle + int(generator.integers(-16, 17)))
    centres = [(a, b) if relation in ("left of", "right of") else (b, a) for a, b in zip(along, across, strict=True)]
    first, second = (_box(*centre, side) for centre, side in zip(centres, sides, strict=True))
    return first, second


def _inside(generator: np.random.Generator) -> tuple[Box, Box]:
    """Boxes of a small object in the middle of a large one."""
    x, y = (int(middle) for middle in generator.integers(92, 133, size=2))
    outer, inner = int(generator.integers(150, 169)), int(generator.integers(58, 67))
    return _box(x, y, inner), _box(x, y, outer)


def _box(x: int, y: int, side: int) -> Box:
    """A square of `side` pixels around (x, y), as fractions."""
    left, top = x - side // 2, y - side // 2
    x0, y0, x1, y1 = (round(pixel / PICTURE_SIZE, 6) for pixel in (left, top, left + side, top + side))
    return x0, y0, x1, y1


def describe(scene: ToyScene, generator: np.random.Generator) -> list[str]:
    """Five different English sentences that are true of the scene.

    The whole scene; the relation from the other object's side; both objects without their relation; colours without
    names; names without colours.
    """
    first, second = scene.first, scene.second

    def one_of(*choices: T) -> T:
        return _pick(generator, choices)

    def word(thing: ToyObject) -> str:
        return one_of(*filter(None, (thing.name, SYNONYMS.get(thing.name))))

    def noun(thing: ToyObject) -> str:
        return f"{thing.colour} {word(thing)}"

    phrases, places = PHRASES[scene.relation], PLACES[scene.background]
    # Each line draws from the generator, from left to right.
    one, other, between, where = noun(first), noun(second), one_of(*phrases), one_of(*places)
    opening = one_of("", "There is ", "Here is ")
    whole = f"{opening}{_a(one)} {between} {_a(other)} {where}"

    one, other, verb = noun(first), noun(second), one_of("is", "can be seen")
    turned = f"the {other} {verb} {one_of(*PHRASES[INVERSE[scene.relation]])} the {one}"

    nouns = [noun(first), noun(second)]
    one, other = (nouns[index] for index in generator.permutation(2))
    where, opening = one_of(*places), one_of("", "", "A picture of ", "We can see ")
    both = f"{opening}{_a(one)} {one_of('and', 'together with')} {_a(other)} {where}"

    between, where = one_of(*phrases), one_of(*places)
    one, other = one_of(
        (f"something {first.colour}", f"something {second.colour}"),
        (f"{_a(first.colour)} shape", f"{_a(second.colour)} one"),
        (f"{_a(first.colour)} thing", f"{_a(second.colour)} thing"),
    )
    colours = f"{one} {between} {other} {where}"

    one, other, where = word(first), word(second), one_of(*places)
    difference = first.side - second.side
    if abs(difference) < 0.1:
        names = f"{_a(one)} {one_of(*phrases)} {_a(other)} {where}"
    else:
        size, other_size = (one_of(*words) for words in ((LARGE, SMALL) if difference > 0 else (SMALL, LARGE)))
        between = one_of(*phrases)
        names = one_of(
            f"{_a(size)} {one} {between} {_a(other_size)} {other} {where}",
            f"{_a(size)} {one} and {_a(other_size)} {other} {where}",
            f"{_a(one)} that is {'bigger' if difference > 0 else 'smaller'} than the {other} {where}",
        )
    return [f"{words[0].upper()}{words[1:]}." for words in (whole, turned, both, colours, names)]


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
