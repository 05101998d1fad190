"""`vsrn caption`: photos -> a sentence written for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import vsrn
from vsrn.cli.options import Beam, Decoders, Device, EncodedAtOnce, Json, Model, Precision, check_from_one, print_json
from vsrn.cli.progress import ProgressBar
from vsrn.errors import ConfigError
from vsrn.files import printable
from vsrn.pretrained import DEFAULT_MODEL

if TYPE_CHECKING:
    from vsrn.encoders.base import WrittenCaption


def main(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = (),
    *,
    model: Model = None,
    beam: Beam = 5,
    index: Annotated[Path | None, tyro.conf.arg(metavar="INDEX")] = None,
    id: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID...")] = (),
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: EncodedAtOnce = None,
    workers: Decoders = None,
    json: Json = False,
) -> None:
    """Write a sentence for each photo.

    $ vsrn caption beach.jpg snow.jpg
    $ vsrn caption --index idx --id holiday/beach.jpg

    Of the sentences in the beam, the one is taken that is probable and, by the model, similar to the photo. With --json
    each has a score too: the mean log-probability of its words.

    Args:
        images: Photo files.
        index: An index made by `vsrn index`: its model writes, from the regions that it keeps.
        id: Photos of the index, by their ids.
    """
    if bool(images) == bool(index) or bool(index) != bool(id) or (index and model):
        raise ConfigError("name photos, and --model if you like; or --index INDEX and --id ID for photos of an index.")
    check_from_one(batch_size=batch_size, workers=workers)
    if index:
        captioned = _of_index(index, id, beam, device, batch_size)
    else:
        encoder = vsrn.load(model or DEFAULT_MODEL, device, precision)
        written_ones = encoder.write_photo_captions(images, beam, batch_size=batch_size, workers=workers)
        captioned = zip(map(str, images), written_ones, strict=True)
    if json:
        found = []
        with ProgressBar("captioning", total=len(images or id)) as bar:
            for name, written in captioned:
                found.append({"image": printable(name), "caption": written.text, "score": round(written.score, 6)})
                bar.advance(1)
        print_json({"captions": found})
        return
    for name, written in captioned:
        text = printable(written.text)
        print(text if len(images or id) == 1 else f"{printable(name)}  {text}", flush=True)


def _of_index(
    folder: Path, ids: Sequence[str], beam: int, device: str, batch_size: int | None
) -> Iterator[tuple[str, WrittenCaption]]:
    from vsrn.data.regions import pad_regions
    from vsrn.encoders.backend import PHOTOS_AT_ONCE
    from vsrn.encoders.inputs import size_of_batches, slices

    with vsrn.open_index(folder, device=device) as index:
        for part in slices(len(ids), size_of_batches(batch_size, PHOTOS_AT_ONCE)):
            regions = pad_regions([index.regions(photo_id) for photo_id in ids[part]])
            yield from zip(ids[part], index.encoder.write_captions(*regions, beam), strict=True)
