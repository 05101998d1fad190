"""The toy world: what the captions say, what the boxes say and what the pixels show must agree."""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsrn.cli.demo import toy_config
from vsrn.config import check_config
from vsrn.data.annotations import read_karpathy
from vsrn.errors import DataError
from vsrn.toy.scenes import ToyObject, ToyScene, describe, invent_scenes
from vsrn.toy.world import draw_scene, draw_sprite, draw_toy_world

Relation = Callable[[ToyObject, ToyObject], bool]

NAME_OF_WORD = {
    **{word: word for word in ("ball", "box", "ring", "star", "boat")},
    **{"circle": "ball", "square": "box", "hoop": "ring", "sailboat": "boat"},
}
COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
LARGE, SMALL = ("big", "large", "huge"), ("small", "little", "tiny")
PLACE_WORDS = {
    "sky": ("sky", "clouds", "air"),
    "sea": ("sea", "water", "waves"),
    "sand": ("sand", "beach", "desert"),
    "grass": ("grass", "meadow", "lawn"),
    "night": ("night", "dark", "sunset"),
}
MENTION = re.compile(
    rf"(?:\b(?P<size>{'|'.join(LARGE + SMALL)}) )?"
    rf"(?:\b(?P<colour>{'|'.join(COLOUR_WORDS)})\b)? ?"
    rf"(?:\b(?P<noun>{'|'.join(NAME_OF_WORD)}|shape|thing|one)\b)?"
)


def _left(one: ToyObject, other: ToyObject) -> bool:
    return one.box[2] < other.box[0] + 1e-6


def _above(one: ToyObject, other: ToyObject) -> bool:
    return one.box[3] < other.box[1] + 1e-6


def _inside(one: ToyObject, other: ToyObject) -> bool:
    (a, b, c, d), (e, f, g, h) = one.box, other.box
    return e < a and f < b and c < g and d < h


def _bigger(one: ToyObject, other: ToyObject) -> bool:
    return one.box[2] - one.box[0] > other.box[2] - other.box[0] + 0.1


def _swapped(relation: Relation) -> Relation:
    return lambda one, other: relation(other, one)


# What may stand between the two things a caption mentions; the longest match decides.
BETWEEN: dict[str, Relation] = {
    "left of": _left,
    "right of": _swapped(_left),
    "above": _above,
    "over": _above,
    "below": _swapped(_above),
    "under": _swapped(_above),
    "underneath": _swapped(_above),
    "inside": _inside,
    "in the middle of": _inside,
    "within": _inside,
    "around": _swapped(_inside),
    "surrounding": _swapped(_inside),
    "bigger than": _bigger,
    "smaller than": _swapped(_bigger),
    "and": lambda one, other: one != other,
    "together with": lambda one, other: one != other,
}
# Where the colour of an object shows that has something else in its middle.
SPOTS = {"ring": (0.5, 0.08), "boat": (0.6, 0.5)}

scenes = st.integers(0, 2**32).map(lambda seed: invent_scenes(1, np.random.default_rng(seed))[0])


def mentions(caption: str) -> list[re.Match[str]]:
    """The places where a caption speaks of an object, by its name or by its colour alone."""
    return [found for found in MENTION.finditer(caption.lower()) if found["colour"] or found["noun"]]


def meant(mention: re.Match[str], scene: ToyScene) -> ToyObject:
    """The one object of the scene that fits what is said of it."""
    name = NAME_OF_WORD.get(mention["noun"] or "")
    fitting = [
        thing
        for thing in (scene.first, scene.second)
        if name in (None, thing.name) and mention["colour"] in (None, thing.colour)
    ]
    assert len(fitting) == 1, (mention[0], scene)
    return fitting[0]


def colour_word(pixel: tuple[int, int, int]) -> str:
    """The everyday word for a colour, by its hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    degrees = hue * 360
    if saturation < 0.15 and value > 0.8:
        return "white"
    edges = ((12, "red"), (38, "orange"), (60, "yellow"), (170, "green"), (230, "blue"), (290, "purple"))
    return next((word for edge, word in edges if degrees < edge), "pink" if saturation < 0.6 else "red")


@given(scene=scenes, seed=st.integers(0, 2**32))
def test_every_caption_speaks_of_the_two_objects_and_says_what_is_true_of_their_boxes(
    scene: ToyScene, seed: int
) -> None:
    for caption in describe(scene, np.random.default_rng(seed)):
        found = mentions(caption)
        assert len(found) == 2, caption
        one, other = (meant(mention, scene) for mention in found)
        assert one is not other, caption
        between = f" {caption.lower()[found[0].end() : found[1].start()]} "
        said = max((words for words in BETWEEN if f" {words} " in between), key=len)
        assert BETWEEN[said](one, other), (caption, scene)
        for mention, thing, against in ((found[0], one, other), (found[1], other, one)):
            if mention["size"]:
                compared = _bigger if mention["size"] in LARGE else _swapped(_bigger)
                assert compared(thing, against), (caption, scene)


@given(scene=scenes, seed=st.integers(0, 2**32))
def test_captions_name_the_background_they_have_and_no_other(scene: ToyScene, seed: int) -> None:
    captions = " ".join(describe(scene, np.random.default_rng(seed))).lower()
    named = {place for place, words in PLACE_WORDS.items() if re.search(rf"\b({'|'.join(words)})\b", captions)}
    assert named == {scene.background}


@given(scene=scenes, seed=st.integers(0, 2**32))
def test_captions_are_five_different_sentences(scene: ToyScene, seed: int) -> None:
    captions = describe(scene, np.random.default_rng(seed))
    assert len(set(captions)) == 5
    assert all(re.fullmatch(r"[A-Z][a-z ]+\.", caption) for caption in captions)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", " ".join(captions).lower())


@given(scene=scenes)
@settings(max_examples=60)
def test_an_object_shows_its_colour_where_its_box_is(scene: ToyScene) -> None:
    picture = draw_scene(scene)
    for thing in scene.objects:
        contains = scene.relation == "inside" and thing is scene.second
        x, y = (0.5, 0.08) if contains else SPOTS.get(thing.name, (0.5, 0.5))
        left, top, right, bottom = thing.box
        at = int(224 * (left + x * (right - left))), int(224 * (top + y * (bottom - top)))
        pixel = picture.getpixel(at)
        assert isinstance(pixel, tuple)
        assert colour_word((pixel[0], pixel[1], pixel[2])) == thing.colour, (thing, pixel)


@pytest.mark.parametrize("name", sorted(set(NAME_OF_WORD.values())))
def test_a_sprite_fills_its_box(name: str) -> None:
    opaque = np.asarray(draw_sprite(name, "red", 80).getchannel("A")) > 60
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    assert max(rows[0], columns[0]) <= 2
    assert min(rows[-1], columns[-1]) >= 77


def test_no_two_scenes_show_the_same() -> None:
    def shown(scene: ToyScene) -> tuple[object, ...]:
        things = [
            (thing.name, thing.colour, round(thing.side) if scene.relation == "inside" else _third(thing))
            for thing in scene.objects
        ]
        return (scene.background, scene.relation == "inside", frozenset(things))

    def _third(thing: ToyObject) -> tuple[int, int]:
        left, top, right, bottom = thing.box
        x, y = (left + right) / 2, (top + bottom) / 2
        return int(x * 3), int(y * 3)

    drawn = invent_scenes(3000, np.random.default_rng(0))
    assert max(Counter(map(shown, drawn)).values()) == 1


def test_every_object_colour_relation_and_background_occurs_often() -> None:
    drawn = invent_scenes(600, np.random.default_rng(0))
    things = [thing for scene in drawn for thing in scene.objects]
    for values, kinds in (
        ([thing.name for thing in things], 5),
        ([thing.colour for thing in things], 8),
        ([scene.relation for scene in drawn], 5),
        ([scene.background for scene in drawn], 5),
    ):
        counts = Counter(values)
        assert len(counts) == kinds
        assert min(counts.values()) > len(values) / kinds / 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    assert draw_toy_world(folder, train=7, val=3, seed=5) == folder / "dataset.json"
    return folder


def dataset(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return content


def test_the_json_follows_the_karpathy_layout(world: Path) -> None:
    content = dataset(world)
    images = content["images"]
    assert content["dataset"] == "toy"
    assert [image["split"] for image in images] == ["train"] * 7 + ["val"] * 3
    assert len({image["imgid"] for image in images}) == len(images)
    assert sorted(path.name for path in (world / "images").iterdir()) == [image["filename"] for image in images]
    sentids = [sentence["sentid"] for image in images for sentence in image["sentences"]]
    assert len(set(sentids)) == 50
    for image in images:
        assert [sentence["sentid"] for sentence in image["sentences"]] == image["sentids"]
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert " ".join(sentence["tokens"]) == sentence["raw"].lower().removesuffix(".")


def test_the_json_reads_like_any_other_of_its_layout(world: Path) -> None:
    splits = read_karpathy(world / "dataset.json")
    assert {split: len(photos) for split, photos in splits.items()} == {"train": 7, "val": 3}
    for photo in (photo for photos in splits.values() for photo in photos):
        assert (world / "images" / photo.id).is_file()
        assert len(photo.captions) == 5


def test_pictures_on_disk_show_the_objects_that_the_json_lists(world: Path) -> None:
    for image in dataset(world)["images"]:
        with Image.open(world / "images" / image["filename"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((224, 224), "RGB", "JPEG")
            for thing in image["objects"]:
                left, top, right, bottom = (round(224 * edge) for edge in thing["box"])
                inside = picture.crop((left, top, right, bottom)).resize((40, 40))
                words = Counter(colour_word(pixel) for pixel in map(tuple, np.asarray(inside).reshape(-1, 3)))
                assert words[thing["colour"]] > 0.2 * 1600, (image["filename"], thing, words)


def test_the_seed_decides_every_byte(world: Path, tmp_path: Path) -> None:
    draw_toy_world(tmp_path / "same", train=7, val=3, seed=5)
    draw_toy_world(tmp_path / "other", train=7, val=3, seed=6)
    files = [path.relative_to(world) for path in world.rglob("*.*")]
    assert len(files) == 11
    assert all((tmp_path / "same" / file).read_bytes() == (world / file).read_bytes() for file in files)
    assert not any((tmp_path / "other" / file).read_bytes() == (world / file).read_bytes() for file in files)


def test_a_folder_that_holds_a_dataset_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(DataError, match=r"dataset\.json already exists; name another folder"):
        draw_toy_world(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    assert (tmp_path / "dataset.json").read_text() == "mine"


@pytest.mark.parametrize(("train", "val"), [(0, 5), (5, 0), (-1, 5), (5_000, 1)])
def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path: Path, train: int, val: int) -> None:
    with pytest.raises(DataError, match=rf"{train} train and {val} val pictures; ask for"):
        draw_toy_world(tmp_path / "toy", train=train, val=val)
    assert not (tmp_path / "toy").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file/toy: Not a directory; name another folder"):
        draw_toy_world(tmp_path / "file" / "toy", train=1, val=1)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_demos_config_is_one_that_training_takes_whatever_the_epochs(tmp_path: Path, epochs: int) -> None:
    check_config(toy_config(tmp_path, epochs))
