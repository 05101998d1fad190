"""A small invented world in the real file formats: coloured things in relations, five captions a picture."""

from __future__ import annotations

from vsrn.toy.scenes import ToyObject, ToyScene, describe, invent_scenes
from vsrn.toy.world import draw_scene, draw_toy_world

__all__ = ["ToyObject", "ToyScene", "describe", "draw_scene", "draw_toy_world", "invent_scenes"]
