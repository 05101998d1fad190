"""Fine-tuned weights of the grid's network as halves, for an exported folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from vsrn.errors import CheckpointError
from vsrn.model.weights import write_tensors
from vsrn.regions.grid import GridExtractor, read_fine_tuned
from vsrn.regions.kept import NAME

# Least cosine of the features of a photo by the weights as they were and as halves.
LEAST_COSINE = 0.9999


def halve_extractor(weights: Path, folder: Path) -> str:
    """Write what decides the grid's regions, without the classifier, as float16.

    Gives the fingerprint of the extractor that it has become; of weights that were halves before it is the same.
    Raises `CheckpointError` where the features change by it.
    """
    place = folder / f"{NAME}.safetensors"
    halves = {name: tensor.half() for name, tensor in read_fine_tuned(weights).items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights}: '{name}' is beyond float16; export without --half.")
    write_tensors(place, halves, {})
    whole, half = GridExtractor(weights), GridExtractor(place)
    photos = _soft_noise(2, whole.photo_size)
    with torch.inference_mode():
        before, after = whole.features(photos).flatten(1), half.features(photos).flatten(1)
    least = float(functional.cosine_similarity(before, after).min())
    if not least >= LEAST_COSINE:
        raise CheckpointError(
            f"the extractor's weights {weights} cannot be stored as float16: features change to a cosine of"
            f" {least:.4f}; export without --half."
        )
    return half.fingerprint


def _soft_noise(photos: int, side: int) -> torch.Tensor:
    """(photos, 3, side, side) scaled pixels of colours that flow into one another, as in a photo out of focus."""
    colours = torch.rand(photos, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return 2 * functional.interpolate(colours, size=(side, side), mode="bilinear", align_corners=False) - 1
