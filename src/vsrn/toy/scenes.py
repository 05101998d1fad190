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
RELATIONS = ("left of", "right of", "above", "below", "inside")
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
CLASHES: dict[str, frozenset[str]] = {
    "sky": frozenset({"blue", "white"}),
    "sea": frozenset({"blue", "green"}),
    "sand": frozenset({"yellow", "white"}),
    "grass": frozenset({"green"}),
    "night": frozenset({"blue", "purple"}),
}
BACKGROUNDS = tuple(CLASHES)


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
    def centre(self) -> tuple[float, float]:
        """x and y of the box's middle, as fractions."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

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
        scenes.setdefault(_content(scene), scene)
    return list(scenes.values())


def pick(generator: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, all equally likely."""
    return choices[int(generator.integers(len(choices)))]


def _invent(generator: np.random.Generator) -> ToyScene:
    background = pick(generator, BACKGROUNDS)
    relation = pick(generator, RELATIONS)
    second_name = pick(generator, CONTAINERS if relation == "inside" else NAMES)
    first_name = pick(generator, [name for name in NAMES if name != second_name])
    colours = [colour for colour in COLOURS if colour not in CLASHES[background]]
    first_colour, second_colour = (colours[index] for index in generator.permutation(len(colours))[:2])
    first_box, second_box = _inside(generator) if relation == "inside" else _apart(relation, generator)
    return ToyScene(
        background,
        relation,
        ToyObject(first_name, first_colour, first_box),
        ToyObject(second_name, second_colour, second_box),
        variant=int(generator.integers(NUM_VARIANTS)),
    )


def _content(scene: ToyScene) -> tuple[object, ...]:
    """What a scene shows, read from left to right or from top to bottom."""
    first, second = ((thing.name, thing.colour) for thing in (scene.first, scene.second))
    if scene.relation in ("right of", "below"):
        first, second = second, first
    axis = {"left of": "across", "right of": "across", "above": "down", "below": "down", "inside": "inside"}
    return scene.background, axis[scene.relation], first, second


def _apart(relation: str, generator: np.random.Generator) -> tuple[Box, Box]:
    """Boxes of two objects side by side or one over the other, either of the same size or clearly not."""
    sides = pick(generator, [(82, 82), (98, 56), (56, 98)])
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


SYNONYMS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "circle"),
    "box": ("box", "square"),
    "ring": ("ring", "hoop"),
    "boat": ("boat", "sailboat"),
}
PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over", "high above"),
    "below": ("below", "under", "underneath"),
    "inside": ("inside", "in the middle of", "within"),
    "around": ("around", "surrounding"),
}
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "inside": "around",
}
PLACES: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "among the clouds", "up in the air"),
    "sea": ("at sea", "on the water", "out on the waves"),
    "sand": ("on the sand", "on the beach", "in the desert"),
    "grass": ("on the grass", "in a meadow", "on the lawn"),
    "night": ("at night", "in the dark", "after sunset"),
}
LARGE = ("big", "large", "huge")
SMALL = ("small", "little", "tiny")


def describe(scene: ToyScene, generator: np.random.Generator) -> list[str]:
    """Five different English sentences that are true of the scene.

    In this order: the whole scene; the relation from the other object's side; both objects without
    their relation; colours without names; names without colours.
    """
    return [writer(scene, generator) for writer in (_whole, _turned, _both, _colours_only, _names_only)]


def _whole(scene: ToyScene, generator: np.random.Generator) -> str:
    first, second = (_noun(thing, generator) for thing in (scene.first, scene.second))
    relation, place = pick(generator, PHRASES[scene.relation]), pick(generator, PLACES[scene.background])
    opening = pick(generator, ("", "There is ", "Here is "))
    return _sentence(f"{opening}{_a(first)} {relation} {_a(second)} {place}")


def _turned(scene: ToyScene, generator: np.random.Generator) -> str:
    first, second = (_noun(thing, generator) for thing in (scene.first, scene.second))
    verb = pick(generator, ("is", "can be seen"))
    return _sentence(f"The {second} {verb} {pick(generator, PHRASES[INVERSE[scene.relation]])} the {first}")


def _both(scene: ToyScene, generator: np.random.Generator) -> str:
    nouns = [_noun(thing, generator) for thing in (scene.first, scene.second)]
    one, other = (nouns[index] for index in generator.permutation(2))
    place = pick(generator, PLACES[scene.background])
    opening = pick(generator, ("", "", "A picture of ", "We can see "))
    return _sentence(f"{opening}{_a(one)} {pick(generator, ('and', 'together with'))} {_a(other)} {place}")


def _colours_only(scene: ToyScene, generator: np.random.Generator) -> str:
    first, second = scene.first.colour, scene.second.colour
    relation, place = pick(generator, PHRASES[scene.relation]), pick(generator, PLACES[scene.background])
    pairs = [
        (f"something {first}", f"something {second}"),
        (f"{_a(first)} shape", f"{_a(second)} one"),
        (f"{_a(first)} thing", f"{_a(second)} thing"),
    ]
    one, other = pick(generator, pairs)
    return _sentence(f"{one} {relation} {other} {place}")


def _names_only(scene: ToyScene, generator: np.random.Generator) -> str:
    """Names with sizes instead of colours, or names alone where both objects are equally large."""
    first, second = (_word(thing, generator) for thing in (scene.first, scene.second))
    difference = scene.first.side - scene.second.side
    place = pick(generator, PLACES[scene.background])
    if abs(difference) < 0.1:
        return _sentence(f"{_a(first)} {pick(generator, PHRASES[scene.relation])} {_a(second)} {place}")
    sizes = (LARGE, SMALL) if difference > 0 else (SMALL, LARGE)
    first_size, second_size = (pick(generator, words) for words in sizes)
    relation = pick(generator, PHRASES[scene.relation])
    comparison = "bigger" if difference > 0 else "smaller"
    sentences = (
        f"{_a(first_size)} {first} {relation} {_a(second_size)} {second} {place}",
        f"{_a(first_size)} {first} and {_a(second_size)} {second} {place}",
        f"{_a(first)} that is {comparison} than the {second} {place}",
    )
    return _sentence(pick(generator, sentences))


def _noun(thing: ToyObject, generator: np.random.Generator) -> str:
    return f"{thing.colour} {_word(thing, generator)}"


def _word(thing: ToyObject, generator: np.random.Generator) -> str:
    return pick(generator, SYNONYMS.get(thing.name, (thing.name,)))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
