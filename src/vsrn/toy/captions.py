"""Five sentences about one scene of the toy world, from the whole of it to a hint."""

from __future__ import annotations

import numpy as np

from vsrn.toy.scenes import ToyObject, ToyScene, pick

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
