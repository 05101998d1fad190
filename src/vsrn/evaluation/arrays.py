"""Similarities and embeddings as files, for other programs: .npy and .npz, which nothing in them can make run code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from vsrn.errors import ConfigError, DataError, one_line
from vsrn.evaluation.evaluate import Retrieval
from vsrn.files import replacing
from vsrn.metrics import Advance, FloatArray, IntArray

Array = npt.NDArray[Any]
OWNERS_ENDING = ".image_of_caption.npy"
PER_IMAGE = "-per-image"
SIMILARITIES, OWNERS = "similarities", "image_of_caption"


def check_similarities_path(path: Path) -> None:
    """Raise `ConfigError` where similarities are to be written to a file that is not .npy."""
    if path.suffix.lower() != ".npy":
        raise ConfigError(f"{path} is no .npy file; similarities are one array: name it, for instance, scores.npy.")


def owners_path(similarities: Path) -> Path:
    """Where the image of each caption lies beside similarities: `scores.image_of_caption.npy` for `scores.npy`."""
    return similarities.with_name(similarities.stem + OWNERS_ENDING)


def write_similarities(path: Path, retrieval: Retrieval, advance: Advance = lambda _: None) -> None:
    """Write (num_images, num_captions) float32 similarities, a block at a time, and beside them `owners_path`.

    advance  called with the number of images of each finished block
    """
    owners = retrieval.split.image_of_caption
    path.parent.mkdir(parents=True, exist_ok=True)
    # numpy adds an ending to a path that lacks it, and none to an open file.
    with replacing(owners_path(path)) as temporary, temporary.open("wb") as file:
        np.save(file, owners)
    with replacing(path) as temporary:
        shape = (retrieval.split.num_images, len(owners))
        written = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for first, block in retrieval.blocks()():
            written[first : first + len(block)] = block
            advance(len(block))
        written.flush()
        del written


def write_embeddings(place: Path, retrieval: Retrieval) -> list[str]:
    """Write the embeddings of the first model's images and captions, and return the arrays' names and shapes.

    place  a .npz file, or a folder for one .npy an array

    Arrays: `images` (num_images, D), `captions` (num_captions, D), `image_of_caption` (num_captions,) and `image_ids`
    (num_images,). Raises `DataError` where the model has no vectors.
    """
    encoded, split = retrieval.encoded[0], retrieval.split
    if not isinstance(encoded.images, np.ndarray):
        raise DataError("this model has no vector of an image; --similarities saves how it compares them.")
    arrays: dict[str, Array] = {
        "images": encoded.images,
        "captions": encoded.captions,
        OWNERS: split.image_of_caption,
        "image_ids": np.array(split.image_ids()),
    }
    if place.suffix.lower() == ".npz":
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    else:
        place.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            with replacing(place / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array)
    return [f"{name} {array.shape}" for name, array in arrays.items()]


def read_similarities(path: Path) -> FloatArray:
    """The array of a .npy file, memory-mapped, or of a .npz file that holds one or one of this name.

    Raises `DataError` where the file is missing or no array.
    """
    return cast("FloatArray", _read_array(path, SIMILARITIES, "similarities as a .npy array (numpy.save)"))


def read_owners(given: str, similarities: Sequence[Path]) -> IntArray | int | None:
    """The image of each caption: a file's, or n of `n-per-image`; where nothing is given, of the file beside.

    given         `5-per-image`, or a file: .npy, .npz (its `image_of_caption`), .json (a list), or text, one number a
                  line; "" for none
    similarities  the files that the captions are the columns of; None is returned where none has `owners_path`

    Raises `DataError` where the file cannot be read.
    """
    count = given.removesuffix(PER_IMAGE)
    if given.endswith(PER_IMAGE) and count.isascii() and count.isdigit():
        return int(count)
    beside = [owners_path(path) for path in similarities if owners_path(path).is_file()]
    if not given and not beside:
        return None
    path = Path(given) if given else beside[0]
    wanted = f"the row of each caption's image: a .npy or text file of whole numbers, or 5{PER_IMAGE}"
    if path.suffix.lower() in (".npy", ".npz"):
        return _read_array(path, OWNERS, wanted)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix.lower() == ".json" else text.split()
        return np.array([int(row) for row in rows], dtype=np.int64)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name {wanted}.") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} holds no whole numbers ({one_line(error)}); name {wanted}.") from error


def _read_array(path: Path, name: str, wanted: str) -> Array:
    if path.suffix.lower() not in (".npy", ".npz") and path.is_file():
        raise DataError(f"{path} is no .npy or .npz file; save {wanted}.")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            names = found.files
            if name not in names and len(names) != 1:
                raise DataError(f"{path} holds {', '.join(names) or 'nothing'}, and none is called {name}.")
            return np.asarray(found[name if name in names else names[0]])
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or one_line(error)}); name {wanted}.") from error
    except Exception as error:
        # numpy and zipfile raise many kinds of errors for a broken file, ValueError for an array of objects.
        raise DataError(f"{path} is not a readable array ({one_line(error)}); save {wanted}.") from error
