"""What an extractor of regions must offer, and how one is found, or made known, by its name (docs/extractors.md)."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy.typing as npt
from PIL import Image

from vsrn.data.pictures import Photo, name_of, picture_of
from vsrn.data.regions import RegionNames, Regions
from vsrn.errors import ConfigError, PhotoError, did_you_mean, one_line
from vsrn.files import printable

# What to do about weights that are lacking; whoever uses a model has no option to do it with.
NAME_THEM = "; name their file with --weights."

Prepared = npt.NDArray[Any]


@dataclass(frozen=True)
class ExtractorFiles:
    """What a user names for an extractor; None where it has its own or needs none.

    weights     its weights: a file, or a folder as a hub gives it
    classes     names of a detector's classes, one a line
    attributes  names of its attributes, one a line
    download    whether weights that are not on this machine may be fetched from the extractor's hub
    device      where it computes: `cpu`, `cuda`, `mps` or `auto`; it is no part of what the extractor is
    """

    weights: Path | None = None
    classes: Path | None = None
    attributes: Path | None = None
    download: bool = False
    device: str = field(default="auto", compare=False)


class RegionExtractor(Protocol):
    """Turns photos into regions, in two steps so that the second never waits for the first.

    `prepare` is the half for processors (resize, crop, a detector that runs there); it runs in worker threads or
    processes and must not touch shared state. Calling the extractor is the half for a GPU, if there is one (the
    network); it runs on batches, in one thread.
    """

    @property
    def name(self) -> str:
        """What `vsrn extract --extractor` calls it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of its weights and settings: equal fingerprints give comparable regions."""

    @property
    def files(self) -> ExtractorFiles:
        """What it was made from: `make_extractor` makes it again from its name and these."""

    @property
    def num_regions(self) -> int:
        """Regions of every photo, N, or the most that a photo may have."""

    @property
    def feature_dim(self) -> int:
        """Numbers that describe one region, F."""

    @property
    def has_scores(self) -> bool:
        """Whether regions are detections and come with a confidence."""

    @property
    def names(self) -> RegionNames:
        """What its numbers of classes and attributes mean; those without names are not stored."""

    @property
    def photo_size(self) -> int | None:
        """The largest side, in pixels, that photos are read at; decoders may shrink towards it, unless it is None."""

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> the array that calling the extractor reads.

        Raises `PhotoError`, with a sentence that lacks the photo's name, where it cannot do with a photo of this shape.
        """

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """What `prepare` gave for each photo of a batch -> the regions of each, in the same order."""


@runtime_checkable
class ReadsCells(Protocol):
    """An extractor that can also read a photo more finely, to say where something is."""

    def with_cells(self, photo: Image.Image, prepared: Prepared) -> tuple[Regions, Regions]:
        """The regions of an RGB photo, given what `prepare` made of it, too, and smaller regions of the same photo."""


# Each is there only where there is a GPU that torch may compute on by CUDA or ROCm.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def may_be_gpu(device: str) -> bool:
    """Whether an extractor that was told to compute on `device` may do so by CUDA or ROCm; torch is not asked.

    device  as in `ExtractorFiles`
    """
    return device.startswith("cuda") or (device == "auto" and any(map(os.path.exists, _GPU_FILES)))


ExtractorFactory = Callable[[str, ExtractorFiles], RegionExtractor]

# Of each name what makes it, or where that is: listing the extractors does not load torch.
_EXTRACTORS: dict[str, ExtractorFactory | str] = {
    "bottom-up": "vsrn.extractors.bottom_up.extractor:make",
    "grid": "vsrn.extractors.grid_onnx:make",
    "hf": "vsrn.extractors.hubs:make_hugging_face",
    "hf-detector": "vsrn.extractors.hubs:make_hugging_face_detector",
    "onnx": "vsrn.extractors.onnx_detector:make",
    "timm": "vsrn.extractors.hubs:make_timm",
    "torchvision": "vsrn.extractors.torchvision_detector:make",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def register_extractor(name: str, factory: ExtractorFactory) -> None:
    """Make an extractor known by a name, for this process.

    name     what `vsrn extract --extractor` and `make_extractor` take, up to a colon: letters, digits, '_', '-', '.'
    factory  called as factory(argument, files): what follows the colon, and what the user names with --weights,
             --classes and --attributes. It gives a `RegionExtractor`, whose `name` begins with this one.

    Raises `ConfigError` where the name cannot be one, or is another extractor's.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name an extractor; use letters, digits, '_', '-' and '.'.")
    if _EXTRACTORS.setdefault(name, factory) != factory:
        raise ConfigError(f"there is an extractor '{name}' already; register yours under another name.")


def extractor_names() -> list[str]:
    """Every name that `make_extractor` takes, up to its colon."""
    return sorted(_EXTRACTORS)


def make_extractor(
    name: str,
    weights: Path | str | None = None,
    *,
    classes: Path | str | None = None,
    attributes: Path | str | None = None,
    download: bool = False,
    device: str = "auto",
) -> RegionExtractor:
    """Load an extractor and its weights.

    name        as `vsrn extract --extractor` takes it: `grid`, or with settings of its own `bottom-up:10-100`
    weights     file or folder of its weights; None for those that come with it
    classes     file that names bottom-up attention's classes, so that regions keep what they are called
    attributes  file that names its attributes
    download    whether weights that are not on this machine may be fetched from the extractor's hub; only where a
                person typed the extractor's name, never because a model, an index or a region store names it
    device      where it computes: `cpu`, `cuda`, `mps`, or `auto` for the best of these that is there

    Raises `ConfigError` where the name is unknown, weights are lacking or the device is not there, and
    `CheckpointError` where the weights do not fit.
    """
    family, _, argument = name.partition(":")
    if family not in _EXTRACTORS:
        known = ", ".join(extractor_names())
        raise ConfigError(f"there is no extractor '{name}'; there is {known}.{did_you_mean(family, _EXTRACTORS)}")
    make = _EXTRACTORS[family]
    if isinstance(make, str):
        make = cast("ExtractorFactory", pkgutil.resolve_name(make))
    paths = [None if path is None else Path(path) for path in (weights, classes, attributes)]
    return make(argument, ExtractorFiles(paths[0], paths[1], paths[2], download, device))


def check_no_names(name: str, files: ExtractorFiles) -> None:
    """Raise `ConfigError` where classes or attributes are named for an extractor that has none to be named."""
    for option, path in (("--classes", files.classes), ("--attributes", files.attributes)):
        if path is not None:
            raise ConfigError(f"{option} names what bottom-up attention finds, not '{name}'; leave it out.")


def prepare_photo(extractor: RegionExtractor, photo: Photo) -> Prepared:
    """Decode a photo of any form and prepare it for the extractor. Raises `PhotoError` where it cannot be read."""
    return prepare_pixels(extractor, picture_of(photo, extractor.photo_size), name_of(photo))


def prepare_pixels(extractor: RegionExtractor, photo: Image.Image, name: str) -> Prepared:
    """Prepare a decoded photo, which messages call `name`.

    Raises `PhotoError`, and nothing else, where the extractor cannot do with it: one odd photo must not stop a folder.
    """
    name = printable(name)
    try:
        return extractor.prepare(photo)
    except PhotoError as error:
        raise PhotoError(f"{name} {error}", "too-large") from error
    except MemoryError as error:
        raise PhotoError(f"{name} does not fit into this machine's memory; shrink it first.", "too-large") from error
    except Exception as error:
        said, size = printable(one_line(error)).rstrip("."), f"{photo.width} x {photo.height} pixels"
        raise PhotoError(
            f"{name} ({size}) cannot be prepared for '{extractor.name}' ({said}); replace the file."
        ) from error
