"""`vsrn caption`: photos -> a sentence written for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.options import Device, Json, print_json
from vsrn.cli.progress import ProgressBar, progress_bar
from vsrn.errors import ConfigError
from vsrn.files import printable
from vsrn.pretrained import DEFAULT_MODEL

if TYPE_CHECKING:
    from vsrn.encoders.base import WrittenCaption

Captioned = tuple[str, "WrittenCaption"]


def main(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = (),
    *,
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    beam: int = 5,
    index: Annotated[Path | None, tyro.conf.arg(metavar="INDEX")] = None,
    id: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID...")] = (),
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Write a sentence for each photo.

    $ vsrn caption beach.jpg snow.jpg
    $ vsrn caption --index idx --id holiday/beach.jpg

    The sentences are the captioner's own, in the words of the captions it learned from.

    Args:
        images: Photo files.
        model: A run, an exported folder, or a packaged model [default: flickr8k-small].
        beam: Partial captions kept at every step, 1 to 100; 1 takes the most probable word each time.
        index: An index made by `vsrn index`: its model writes, from the regions that it keeps.
        id: Photos of the index, by their ids.
        json: Print the result as JSON, with how sure the model is: the mean log-probability of a word.
    """
    if bool(images) == bool(index) or bool(index) != bool(id) or (index and model):
        raise ConfigError("name photos, and --model if you like; or --index INDEX and --id ID for photos of an index.")
    captioned = (
        _of_index(index, id, beam, device) if index else _of_photos(images, model or DEFAULT_MODEL, beam, device)
    )
    if json:
        with progress_bar("captioning", unit="photos").of(len(images or id)) as bar:
            found = [_as_json(name, written, bar) for name, written in captioned]
        print_json({"captions": found})
        return 0
    for name, written in captioned:
        text = printable(written.text)
        print(text if len(images or id) == 1 else f"{printable(name)}  {text}", flush=True)
    return 0


def _of_photos(photos: Sequence[Path], model: str, beam: int, device: str) -> Iterator[Captioned]:
    import vsrn

    yield from zip(map(str, photos), vsrn.load(model, device).write_photo_captions(photos, beam), strict=True)


def _of_index(folder: Path, ids: Sequence[str], beam: int, device: str) -> Iterator[Captioned]:
    import vsrn
    from vsrn.data.regions import pad_regions
    from vsrn.encoders.base import PHOTOS_AT_ONCE, slices

    with vsrn.open_index(folder, device=device) as index:
        for part in slices(len(ids), PHOTOS_AT_ONCE):
            batch = ids[part]
            regions = pad_regions([index.regions(photo_id) for photo_id in batch])
            yield from zip(batch, index.encoder.write_captions(*regions, beam), strict=True)


def _as_json(name: str, written: WrittenCaption, bar: ProgressBar) -> dict[str, object]:
    bar.advance(1)
    return {"image": printable(name), "caption": written.text, "score": round(written.score, 6)}
