"""A scene of the toy world as a picture."""

from __future__ import annotations

from PIL import Image, ImageFilter

from vsrn.toy.backdrops import draw_backdrop
from vsrn.toy.scenes import PICTURE_SIZE, ToyObject, ToyScene
from vsrn.toy.sprites import draw_sprite

SHADOW_REACH = 8
SHADOW_DROP = (2, 4)


def draw_scene(scene: ToyScene) -> Image.Image:
    """The scene as an RGB picture of 224 x 224; the same scene always gives the same pixels."""
    picture = draw_backdrop(scene.background, scene.variant).copy()
    for thing in scene.objects:
        _draw_object(picture, thing)
    return picture


def _draw_object(picture: Image.Image, thing: ToyObject) -> None:
    """Paste one object and its soft shadow into its box."""
    left, top, right, _ = (round(edge * PICTURE_SIZE) for edge in thing.box)
    sprite = draw_sprite(thing.name, thing.colour, right - left)
    shadow = Image.new("L", (sprite.width + 2 * SHADOW_REACH,) * 2)
    shadow.paste(sprite.getchannel("A").point(lambda alpha: alpha * 2 // 5), (SHADOW_REACH, SHADOW_REACH))
    shadow = shadow.filter(ImageFilter.GaussianBlur(SHADOW_REACH / 3))
    corner = (left - SHADOW_REACH + SHADOW_DROP[0], top - SHADOW_REACH + SHADOW_DROP[1])
    picture.paste((20, 20, 40), corner, mask=shadow)
    picture.paste(sprite, (left, top), mask=sprite)
