"""Where torch computes: the one place that turns a device's name into a device."""

from __future__ import annotations

import torch

from vsrn.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for CUDA, else MPS, else the CPU.

    Raises `ConfigError` where the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"there is no device '{name}' here; use {' or '.join([*devices_here(), 'auto'])}.") from error
    return device


def devices_here() -> list[str]:
    """The kinds of device that torch can compute on here, `cpu` first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(name for name, available in there.items() if available)]
