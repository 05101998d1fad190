"""Whether a device extracts from photos what the CPU extracts, and photos to extract from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from material import exact
from PIL import Image
from recording import Figures, Part

import vsrn
from golden import apart, judged
from vsrn.extractors.base import prepare_pixels
from vsrn.extractors.bottom_up.extractor import BottomUpExtractor, Recipe, ScaleRules
from vsrn.extractors.bottom_up.network import ProposalRules, SelectionRules
from vsrn.extractors.grid import GridExtractor


def grid_on(device: torch.device | str) -> GridExtractor:
    """The grid of the model in the box."""
    return GridExtractor(Path(vsrn.__file__).parent / "pretrained" / "flickr8k-small" / "extractor.onnx", str(device))


def photos(number: int, width: int, height: int) -> list[Image.Image]:
    """Smooth random photos."""
    noise = np.random.default_rng(4).integers(0, 256, (number, 6, 8, 3), np.uint8)
    return [Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC) for colours in noise]


def grid(part: Part) -> Figures:
    """Grid features on the device against the CPU's, as torch comes (TF32 in cuDNN's convolutions) and without TF32.

    One step is the distance of neighbouring float16 numbers at the value, which is what a store rounds to.
    """
    there, here = grid_on(part.device), grid_on("cpu")
    prepared = [prepare_pixels(here, photo, "random") for photo in photos(8, 500, 375)]
    expected = np.stack([regions.features for regions in here(prepared)])
    figures: Figures = {}
    for name, context in (("", exact), ("_as_torch_comes", None)):
        if context is None:
            found = np.stack([regions.features for regions in there(prepared)])
        else:
            with context():
                found = np.stack([regions.features for regions in there(prepared)])
        difference = np.abs(found - expected)
        largest_step = float(np.spacing(np.float16(np.abs(expected).max())))
        figures[f"largest_difference{name}"] = float(difference.max())
        figures[f"of_float16_at_the_largest_value{name}"] = float(difference.max()) / largest_step
        rounded = found.astype(np.float16) != expected.astype(np.float16)
        figures[f"share_of_stored_numbers_that_differ{name}"] = float(rounded.mean())
    return {"passed": figures["of_float16_at_the_largest_value"] <= 1} | figures


def bottom_up(part: Part) -> Figures:
    """The full-size detector with seeded weights against its recording, and photos on the device against the CPU."""
    from seeded_detector import hugging_face_file, recording  # noqa: PLC0415 - a helper of the tests

    weights = part.scratch / "pytorch_model.bin"
    torch.save(hugging_face_file(), weights)
    rules = Recipe(ScaleRules(96, 160), ProposalRules(after_nms=12), SelectionRules(3, 5, threshold=0.99))
    there = BottomUpExtractor(weights, rules, device=str(part.device))
    here = BottomUpExtractor(weights, rules, device="cpu")
    recorded = {name: tensor.to(part.device) for name, tensor in recording().items()}
    with exact(), torch.inference_mode():
        network = there.network
        feature_map = network.feature_map(recorded["image"])
        objectness, deltas = network.rpn(feature_map)
        features = network.describe(feature_map, recorded["boxes"])
        ours = {"res4": feature_map, "rpn_logits": objectness, "rpn_deltas": deltas, "pool5_flat": features}
        ours["class_logits"] = network.class_score(features)
        prepared = [prepare_pixels(here, photo, "random") for photo in photos(2, 90, 60)]
        pairs = list(zip(there(prepared), here(prepared), strict=True))
    largest = {name: float(recorded[name].abs().max()) for name in ours}
    checks = [(name, apart(value, recorded[name]), 1e-5 * largest[name]) for name, value in ours.items()]
    for number, (one, other) in enumerate(pairs):
        for array, values in other.arrays():
            allowed = 2.0**-11 * (float(np.abs(values).max()) or 1.0)
            checks.append((f"photo {number}: {array.name}", apart(getattr(one, array.name), values), allowed))
    return judged(checks)
