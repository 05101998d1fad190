"""The captioned images that a model reads: regions from a store, or photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vsrn.config import Config, NetworkConfig
from vsrn.data.splits import CaptionedImages, open_split
from vsrn.errors import ConfigError


def seen_by(split: CaptionedImages, network: NetworkConfig) -> CaptionedImages:
    """A split of photos as another network's settings bring them to size."""
    from vsrn.data.photo_splits import PhotoSplit, View  # noqa: PLC0415 - decoding photos takes packages

    assert isinstance(split, PhotoSplit), "a split that is no store of regions is a folder of photos"
    return replace(split, view=View.of(network))


def open_split_for(
    config: Config, split: str, *, data: Path | str | None = None, photos: Path | str | None = None
) -> CaptionedImages:
    """Open a split as the config's model reads it; `val` and `dev` stand for each other.

    data    region store, or captions of photos, instead of the config's own
    photos  folder of photos, instead of the config's own

    Raises `ConfigError` where neither config nor arguments say where the data is, and `DataError` where it cannot be
    read.
    """
    if not config.model.network.name:
        if not (data or config.data.path):
            raise ConfigError(
                "data.path is not set: name the folder of a region store with captions (`vsrn evaluate` takes it as"
                " --data)."
            )
        return open_split(data or config.data.path, split).in_order(config.data.region_order)
    data, photos = data or config.data.annotations, photos or config.data.photos
    if not data or not photos:
        raise ConfigError(
            "this model reads photos, and nobody says where they are: set data.photos to their folder and"
            " data.annotations to their captions (`vsrn evaluate` takes them as --photos and --data)."
        )
    # Decoding photos takes packages that regions do without.
    from vsrn.data.photo_splits import View, open_photo_split  # noqa: PLC0415

    return open_photo_split(photos, data, split, View.of(config.model.network), restval=config.data.restval)
