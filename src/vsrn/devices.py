"""Where torch computes, how arrays get there and back, and how work is cut for it (`Pace`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vsrn.errors import ConfigError


class Pace(NamedTuple):
    """How work is cut, and overlapped, on a kind of device.

    images_at_once    images of regions that are encoded in one call
    photos_at_once    photos that a network of an extractor reads in one call
    captions_at_once  captions that are read in one padded call
    shares_prefixes   whether captions that begin alike are read as a tree, word by word, where the encoder allows it
    readers           threads that read batches ahead of the device; 0 to read a batch when its turn comes
    launched_ahead    results that stay on the device before they are copied back, which waits for all of them
    """

    images_at_once: int = 128
    # A few photos at once stay in the processor's cache: twice the rate of 32 at once.
    photos_at_once: int = 4
    captions_at_once: int = 256
    shares_prefixes: bool = True
    readers: int = 0
    launched_ahead: int = 1


# 512 images of 36 x 2,048 float16 are 75 MB, so reading, checking and copying them takes one thread about as long as
# the device takes to encode several such batches. A tree of captions saves a third of the arithmetic and costs some 500
# small steps, each of which waits for indices from the processor; cuDNN reads 2,048 padded captions in one call.
PACES = {"cuda": Pace(512, 64, 2048, shares_prefixes=False, readers=8, launched_ahead=8)}


def pace_of(device: torch.device) -> Pace:
    """How work is cut on a device."""
    return PACES.get(device.type, Pace())


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for CUDA, else MPS, else the CPU.

    With a CUDA device, cuDNN computes in float32 rather than TF32 from here on, in all of the process.

    Raises `ConfigError` where the device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, available in there.items() if available]
    name = here[0] if name == "auto" else name
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"there is no device '{name}' here; use {' or '.join([*reversed(here), 'auto'])}.") from error
    if device.type == "cuda":
        # torch multiplies matrices in float32 unless told otherwise, but lets cuDNN's convolutions and GRUs round their
        # inputs to TF32's 10 bits, and features and embeddings would not be a processor's.
        torch.backends.cudnn.allow_tf32 = False
    return device


def tensor_for(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor on the CPU that can be moved to the device: page-locked for CUDA, which need not wait then.

    Elsewhere the tensor shares the array's memory where it can. Threads may call this.
    """
    if device.type == "cuda":
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        locked = torch.empty(array.shape, dtype=dtype, pin_memory=True)
        np.copyto(locked.numpy(), array)
        return locked
    # torch warns of arrays that nobody may write, such as those of a file that was opened to be read.
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else np.array(array))


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of `tensor_for` on the device, in the order of the calling thread's other work there."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def brought_back(results: Iterable[torch.Tensor], launched_ahead: int = 1) -> Iterator[npt.NDArray[np.float32]]:
    """Results on a device, in float32 on the CPU, in their order.

    launched_ahead  how many are asked for before the first of them is copied back, for which the device has to finish
    """
    results = iter(results)
    while waiting := [result.float() for result in itertools.islice(results, launched_ahead)]:
        yield from (each.cpu().numpy() for each in waiting)
