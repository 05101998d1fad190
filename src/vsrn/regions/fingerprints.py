"""What decides the regions that a network makes, as one number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint_of(settings: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a recipe and of weights by name, whatever file they came in.

    Tensors of whole numbers are left out: they count training steps or name places, and change nothing.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        if tensors[name].is_floating_point():
            digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
            digest.update(tensors[name].detach().cpu().float().contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()
