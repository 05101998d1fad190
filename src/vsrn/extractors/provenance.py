"""What an extractor was made of, kept beside the regions that it made and the models that learned from them.

extractor.safetensors   its weights; the suffix is that of the file it is a copy of
extractor_names.json    beside a model: what its classes and attributes are called, as {split}_names.json in a store
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vsrn.data.region_store import RegionStore, StoreInfo
from vsrn.data.regions import RegionNames
from vsrn.data.shards import SHARDS
from vsrn.errors import CheckpointError, ConfigError, DataError
from vsrn.files import as_json, read_json, write_atomically

if TYPE_CHECKING:
    from vsrn.extractors.base import RegionExtractor

NAME = "extractor"
NAMES_FILE = "extractor_names.json"
# The grid's network as float32 takes 14 MB, a detector's 250.
MOST_BYTES = 16_000_000


def kept_weights(folder: Path) -> Path | None:
    """The weights in the folder of a store, of its shards or of a model: a file, a folder or a link to one; or None."""
    for place in (folder, *sorted((folder / SHARDS).glob("*-of-*"))):
        # A split may be called like that too; its page is JSON, weights never are.
        found = [path for path in sorted(place.glob(f"{NAME}*")) if path.stem == NAME and path.suffix != ".json"]
        if found:
            return found[0]
    return None


def check_same_weights(folder: Path, weights: Path) -> None:
    """Raise `DataError` where a store keeps other weights than these."""
    kept = kept_weights(folder)
    if kept is not None and _is_small(weights) and (not kept.is_file() or kept.read_bytes() != weights.read_bytes()):
        raise DataError(f"{folder} holds regions made with other weights, {kept}; choose another -o.")


def keep_weights(weights: Path, folder: Path) -> None:
    """Copy weights, unless they are large, beside regions that they made. Raises `DataError` where it keeps others."""
    check_same_weights(folder, weights)
    if kept_weights(folder) is None and _is_small(weights):
        write_atomically(folder / f"{NAME}{weights.suffix}", weights.read_bytes())


def carry_weights(weights: Path, folder: Path) -> None:
    """Give a model's folder its extractor's weights: small ones as a copy, large ones as a link."""
    place = folder / f"{NAME}{weights.suffix}"
    if _is_small(weights):
        write_atomically(place, weights.read_bytes())
    else:
        large = weights.resolve()
        # A folder that a model is saved in again has the link already.
        if place.is_symlink():
            place.unlink()
        place.symlink_to(large)


def kept_names(folder: Path) -> RegionNames:
    """What a model's folder says its regions are called. Raises `CheckpointError` where that cannot be read."""
    path, remedy = folder / NAMES_FILE, "copy the {split}_names.json of the model's region store there."
    return read_json(path, RegionNames, remedy, CheckpointError) if path.exists() else RegionNames()


def carry_names(names: RegionNames, folder: Path) -> None:
    """Give a model's folder the names of its regions, where they have any."""
    if names.classes or names.attributes:
        write_atomically(folder / NAMES_FILE, as_json(names))


def _is_small(weights: Path) -> bool:
    return weights.is_file() and weights.stat().st_size <= MOST_BYTES


def learned_extractor(learned_from: StoreInfo, weights: Path | None, device: str = "auto") -> RegionExtractor:
    """The extractor that made a model's training data.

    weights  what the model's folder keeps of it, or None
    device   where it computes: `cpu`, `cuda`, `mps` or `auto`

    Raises `DataError` where the extractor is unknown, lacks its weights or is another, and `ConfigError` where the
    device is not there.
    """
    # The list of a folder's files needs none of these.
    from vsrn.extractors.base import NAME_THEM, make_extractor  # noqa: PLC0415
    from vsrn.extractors.grid_onnx import runs_without_torch  # noqa: PLC0415

    name = learned_from.extractor
    if not name:
        raise DataError(
            "this model does not say which extractor made its regions, so it cannot read photos;"
            " give it region features instead."
        )
    remedy = (
        "put the weights that its photos were extracted with, or a link to them, into its folder and call them"
        " 'extractor' with their own suffix, as in extractor.safetensors"
    )
    with contextlib.nullcontext() if runs_without_torch(name, weights, device) else _torch_on(device):
        try:
            extractor = make_extractor(name, weights, device=device)
        except ConfigError as error:
            if weights is not None:
                raise
            reason = str(error).removesuffix(NAME_THEM).removesuffix(".")
            raise DataError(
                f"this model learned from '{name}', which cannot be made here ({reason}); {remedy}."
            ) from error
    if extractor.fingerprint != learned_from.fingerprint:
        raise DataError(
            f"the extractor '{name}' here has other weights or settings ({extractor.fingerprint[:12]}) than the one"
            f" this model learned from ({learned_from.fingerprint[:12]}); {remedy}, or install the version of vsrn that"
            " it was trained with."
        )
    return extractor


def _torch_on(device: str) -> contextlib.AbstractContextManager[None]:
    """Keep the user's random numbers, of which a new network draws some. Raises `ConfigError` without the device."""
    import torch  # noqa: PLC0415

    from vsrn.devices import pick_device  # noqa: PLC0415

    pick_device(device)
    return torch.random.fork_rng(devices=[])


def weights_of(store: RegionStore) -> Path | None:
    """The weights in a store's folder that made the regions of this split, or None where it keeps none of them."""
    from vsrn.extractors.base import make_extractor  # noqa: PLC0415 - torch and Pillow come with it

    kept = kept_weights(store.folder)
    if kept is None or not store.info.extractor:
        return None
    # Another split of the same folder may have been made without them. Nothing is computed, so the CPU will do.
    made = make_extractor(store.info.extractor, kept, device="cpu")
    return kept if made.fingerprint == store.info.fingerprint else None
