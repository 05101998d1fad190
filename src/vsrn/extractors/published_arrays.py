"""Features as arrays, in the forms that people keep them in -> `Published`.

test_ims.npz, .h5, .safetensors, .npy   one array (rows, N, F), with test_caps.txt and so on beside it
coco.npz, .h5, .safetensors             an array an image, named by the image; or a group, or 17_features, 17_boxes
features/17.npy, 17.npz                 a file an image
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from vsrn.data.image_ids import images_of_rows
from vsrn.data.region_store import RegionStore, store_around
from vsrn.data.regions import Regions, padded
from vsrn.data.splits import read_captions
from vsrn.errors import DataError
from vsrn.extractors.array_files import Array, ArrayEntry, open_arrays
from vsrn.extractors.array_images import MEANING, Fields, num_regions_of, regions_of
from vsrn.extractors.published import Published, PublishedImage, carried_by
from vsrn.extractors.tsv_lines import MAX_BOXES
from vsrn.files import normal_name
from vsrn.metrics import FloatArray, IntArray

# Names that only count: what numpy.savez calls arrays that nobody named, and numbers alone.
_NUMBERED = re.compile(r"(?:arr_)?([0-9]+)")
_ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".safetensors")
_SPLIT_FILE = re.compile(r"(.+)_ims\.[a-z0-9]+")


def files_of(paths: Sequence[Path]) -> list[list[Path]]:
    """What is imported together: all tables; every file of arrays and every folder alone.

    Of a folder with files such as train_ims.npz, these files.
    """
    each: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*_ims.*")) if path.is_dir() else []
        each += [file for file in inside if _SPLIT_FILE.fullmatch(file.name)] or [path]
    alone = [path for path in each if path.is_dir() or path.suffix.lower() in _ENDINGS]
    tables = [path for path in each if path not in alone]
    return [*([tables] if tables else []), *([path] for path in alone)]


def open_published_arrays(path: Path, unpack_in: Path, opened: contextlib.ExitStack) -> Published | None:
    """The images of a file of arrays, or of a folder with a file an image; None where it is something else.

    unpack_in, opened  as in `open_arrays`

    Raises what `open_arrays` raises, and `DataError` where it holds no features.
    """
    if path.is_dir():
        return _of_folder(path)
    entries = open_arrays(path, unpack_in, opened)
    if entries is None:
        return None
    whole = [entry for entry in entries.values() if len(entry.shape) in (2, 3) and not entry.objects]
    if len(whole) == len(entries) == 1:
        return _of_rows(path, whole[0].rows())
    return _of_images(path, _images_in(entries, path))


class _LazyRows:
    """(num_rows, N, F) features, of which one row is read at a time; what `RegionStore` asks of a memory map."""

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, row: Callable[[int], Array], shape: tuple[int, int, int]) -> None:
        self._row, self.shape = row, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        which, *inside = rows if isinstance(rows, tuple) else (rows,)
        wanted = np.arange(len(self))[which]
        if wanted.ndim == 0:
            return self._row(int(wanted))[tuple(inside)]
        return np.stack([self._row(int(row))[tuple(inside)] for row in wanted])


def _of_rows(path: Path, values: Any) -> Published:
    """The rows of one array, with what lies beside its file."""
    rows, *rest = values.shape
    shape = (rows, *rest) if len(rest) == 2 else (rows, 1, *rest)
    if not all(shape):
        raise DataError(f"{path} holds an array of shape {tuple(values.shape)}, in which there are no features.")
    if shape[1] > max(MAX_BOXES, shape[2]):
        raise DataError(
            f"{path} holds {shape[1]:,} regions of {shape[2]:,} numbers an image, too many; if these axes are the"
            " other way round, save numpy.swapaxes(array, 1, 2) instead."
        )
    return _of_store(path, _LazyRows(lambda row: np.asarray(values[row]).reshape(shape[1:]), shape))


def _of_ragged(path: Path, images: Sequence[PublishedImage]) -> Published:
    """Images that are the rows of a split, each with as many regions as it has."""
    counts = np.array([image.num_boxes for image in images])
    if not counts.all():
        raise DataError(f"{images[int(counts.argmin())].place} has no regions; take it and its captions out.")

    def padded_row(row: int) -> Array:
        return padded([images[row].read().features], int(counts.max()))[0]

    features = _LazyRows(padded_row, (len(images), int(counts.max()), padded_row(0).shape[1]))
    return _of_store(path, features, counts)


def _of_store(path: Path, rows: _LazyRows, counts: IntArray | None = None) -> Published:
    """Rows with what lies beside them, read as a store is; `counts` is (num_rows,) regions of each, if they differ."""
    split = _split_of(path)
    store = store_around(cast("FloatArray", rows), path.parent, split or path.name)
    if counts is not None:
        store = replace(store, counts=counts)
    first: IntArray = np.arange(len(store))
    captions = None
    beside = path.parent / f"{split}_caps.txt"
    if split and beside.is_file():
        said = read_captions(beside)
        first, image_of_caption = images_of_rows(store, beside, len(said))
        captions = [[said[at] for at in np.flatnonzero(image_of_caption == image)] for image in range(len(first))]
    names = [store.ids[row] if store.ids else str(place) for place, row in enumerate(first)]
    sizes = np.full(len(store), store.num_regions) if store.counts is None else store.counts
    images = [PublishedImage(f"{path}, row {row}", int(sizes[row]), partial(_row, store, int(row))) for row in first]
    return Published(
        [*zip(names, images, strict=True)],
        has_ids=bool(store.ids),
        names=store.names,
        split=split,
        captions=None if captions is None else dict(zip(names, captions, strict=True)),
        info=store.info,
    )


def _row(store: RegionStore, row: int) -> Regions:
    regions = store.read_regions(row)
    if regions.features.dtype.kind != "f":
        raise DataError(f"{store.where(row)} holds {regions.features.dtype}; features must be floats.")
    return regions


def _split_of(path: Path) -> str:
    named = _SPLIT_FILE.fullmatch(path.name)
    return named[1] if named else ""


def _images_in(entries: Fields, path: Path) -> list[tuple[str | None, Fields]]:
    """Id, or None where a file has rows without ids, and arrays of each image of a file, by what they are."""
    plain = _by_meaning(entries)
    if "features" in plain:
        if len(plain["features"].shape) == 3 or "ids" in plain or "spans" in plain:
            return _of_each_row(plain, path)
        return [(path.stem, plain)]
    for between in ("/", "_"):
        images: dict[str, dict[str, ArrayEntry]] = {}
        for name, entry in entries.items():
            # The longest ending counts: of 17_image_features not "features". "x" alone may end the name of an image.
            ends = [end for end in MEANING if (between == "/" or len(end) > 3) and name.lower().endswith(between + end)]
            if ends:
                end = max(ends, key=len)
                images.setdefault(name[: -len(end) - 1], {})[MEANING[end]] = entry
        if any("features" in fields for fields in images.values()):
            return [(name, fields) for name, fields in images.items() if "features" in fields]
    numbers = [_NUMBERED.fullmatch(name) for name in entries]
    order = [int(found[1]) for found in numbers if found]
    if sorted(order) == list(range(len(entries))):
        # Numbers from 0 on without a gap are places, not names; other numbers are ids, as COCO's are.
        in_order = sorted(zip(order, entries.values(), strict=True), key=lambda pair: pair[0])
        return [(None, {"features": entry}) for _, entry in in_order]
    return [(name, {"features": entry}) for name, entry in entries.items()]


def _of_each_row(arrays: Fields, path: Path) -> list[tuple[str | None, Fields]]:
    """The arrays of each image, of arrays that hold all images: a row each, or regions one after another and spans."""
    spans = arrays["spans"].read().tolist() if "spans" in arrays else None
    rows = arrays["features"].shape[0] if spans is None else len(spans)
    if spans is not None and (np.ndim(spans) != 2 or np.min(spans) < 0 or np.max(spans) > arrays["features"].shape[0]):
        raise DataError(f"{path}: its spans of regions do not fit its {arrays['features'].shape[0]:,} regions.")
    ids: list[str | None] = [None] * rows
    if "ids" in arrays and arrays["ids"].shape == (rows,) and not arrays["ids"].objects:
        ids = [one.decode() if isinstance(one, bytes) else str(one) for one in arrays["ids"].read().tolist()]
    images: list[tuple[str | None, Fields]] = []
    opened = {what: entry.rows() for what, entry in arrays.items() if what not in ("ids", "spans")}
    for row, name in enumerate(ids):
        fields = {}
        for what, values in opened.items():
            at: int | slice = row
            shape = values.shape[1:]
            if spans is not None and what not in ("width", "height", "count"):
                start, stop = spans[row]
                at, shape = slice(start, stop), (stop - start, *shape)
            elif values.shape[0] != rows:
                continue
            fields[what] = ArrayEntry(shape, False, partial(values.__getitem__, at), lambda: None)
        images.append((name, fields))
    return images


def _of_images(path: Path, images: Sequence[tuple[str | None, Fields]]) -> Published:
    """Images that have arrays of their own in one file."""
    listed = []
    for row, (name, fields) in enumerate(images):
        place = f"{path}, row {row}" if name is None else f"{path}: {name}"
        listed.append(PublishedImage(place, num_regions_of(fields, place), partial(regions_of, fields, place)))
    if not listed:
        raise DataError(f"{path} holds no images; name a file that holds features.")
    ids = [normal_name(name) for name, _ in images if name is not None]
    if not ids and set(images[0][1]) == {"features"} and _split_of(path):
        return _of_ragged(path, listed)
    names = ids or [str(row) for row in range(len(listed))]
    return _of_named(path, names, listed, images[0][1], has_ids=bool(ids), split=_split_of(path))


def _of_named(
    path: Path,
    names: Sequence[str],
    images: Sequence[PublishedImage],
    first: Fields,
    *,
    has_ids: bool = True,
    split: str = "",
) -> Published:
    """Images by their names, and a sentence where boxes are left out, which the arrays of the first image tell."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{path} has image {twice} twice; remove one of the two.")
    notes = []
    if "boxes" in first and images[0].num_boxes and "boxes" not in carried_by(images[0].read()):
        notes.append(f"{images[0].place}: boxes are in pixels without the photo's size; none are kept.")
    return Published([*zip(names, images, strict=True)], has_ids=has_ids, split=split, notes=notes)


def _of_folder(folder: Path) -> Published:
    """A folder with a file an image."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".npy", ".npz") and path.is_file())
    # Beside the features of some, files of Python objects hold what the detector said else.
    paths = [path for path in paths if not path.stem.endswith("_info")]
    if not paths:
        raise DataError(f"{folder} holds no .npy and .npz files; name a file, or the folder that has one an image.")
    names = [normal_name(path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    images = []
    for path in paths:
        with contextlib.ExitStack() as opened:
            count = num_regions_of(_fields_of(path, opened), str(path))
        images.append(PublishedImage(str(path), count, partial(_read_file, path)))
    with contextlib.ExitStack() as opened:
        return _of_named(folder, names, images, _fields_of(paths[0], opened))


def _fields_of(path: Path, opened: contextlib.ExitStack) -> Fields:
    """The arrays of the one image of a file, by what they are."""
    entries = open_arrays(path, path.parent, opened) or {}
    plain = _by_meaning(entries)
    return plain if "features" in plain or len(entries) != 1 else {"features": next(iter(entries.values()))}


def _by_meaning(entries: Fields) -> Fields:
    """Arrays by what they are, of those whose names tell it."""
    return {what: entry for name, entry in entries.items() if (what := MEANING.get(name.lower()))}


def _read_file(path: Path) -> Regions:
    with contextlib.ExitStack() as opened:
        return regions_of(_fields_of(path, opened), str(path))
