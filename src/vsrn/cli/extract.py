"""`vsrn extract`: photos -> a region store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vsrn.cli.options import SKIPPED_SHOWN, Device, Json, Output, print_json, skipped_lines
from vsrn.cli.progress import ProgressBar, progress_bar, say
from vsrn.data.shards import parse_shard, shard_folder
from vsrn.errors import ConfigError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.extractors.extract import ExtractionReport

Photos = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
# Without captions there is one split; an option that names it is the same option as the one that names several.
Splits = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--split"])]

_JOINED = "a region store reads its shards/ as one, so nothing is to be merged"
_GONE = {
    "--merge": _JOINED,
    "--delete-shards": _JOINED,
    "--from-tsv": "that is a command of its own now, `vsrn import-tsv FILES -o STORE`",
    "--compare": "that is a command of its own now, `vsrn compare PHOTOS FEATURES.npy`",
}


def main_for(arguments: Sequence[str]) -> Callable[..., int]:
    """The command. Raises `ConfigError` for an option that has become a command, or is not needed any more."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in _GONE:
            raise ConfigError(f"vsrn extract has no {option}: {_GONE[option]}.")
    return main


def main(
    photos: Photos,
    *,
    output: Output,
    captions: Path | None = None,
    splits: Splits = (),
    restval: bool = False,
    extractor: str = "grid",
    weights: Path | None = None,
    classes: Path | None = None,
    attributes: Path | None = None,
    batch_size: int = 32,
    workers: int = 2,
    follow_links: bool = False,
    shard: str | None = None,
    ray: str | None = None,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Turn a folder of photos into a region store: features, boxes and ids of each photo's regions.

    $ vsrn extract photos/ -o data/mine
    $ vsrn extract flickr8k/images -o data/flickr8k --captions dataset_flickr8k.json

    Killed or stopped at any moment, the same command goes on where it was. Photos that cannot be read are
    skipped and listed at the end, damaged ones first; files that are no photos are counted. Many machines make the
    same store of millions of photos: as the jobs of a batch queue, here the third of 16, whose parts are read as one
    store when all are done; or as one command on a Ray cluster.

    $ vsrn extract photos/ -o data/mine --shard 3/16
    $ vsrn extract photos/ -o data/mine --ray ADDRESS

    Regions as the paper has them, by a detector whose published weights you name (docs/extractors.md):

    $ vsrn extract photos/ -o data/mine --extractor bottom-up --weights pytorch_model.bin

    Args:
        photos: Folder of photos, searched to the bottom.
        output: Folder of the region store, made where there is none.
        captions: Karpathy JSON; its splits and captions go into the store, and only its photos are read.
        splits: With --captions, the splits to extract [default: all]; without, the name of the one split that holds
            every photo [default: photos].
        restval: With --captions, count COCO's `restval` images as `train`.
        extractor: What makes the regions. `grid` is 36 windows of a small network, offline; `bottom-up` is 36 boxes
            of the paper's detector, `bottom-up:10-100` from 10 to 100 of them. `timm:NAME`, `hf:NAME` and
            `torchvision:NAME` are other people's networks (docs/extractors.md).
        weights: Weights of the extractor: for `grid` fine-tuned ones (.safetensors), for `bottom-up` the published,
            for the others a copy of what they would download.
        classes: For `bottom-up`, a file that names the detector's classes, one a line; regions then keep theirs.
        attributes: For `bottom-up`, a file that names the detector's attributes, one a line.
        batch_size: Photos that are finished, and safe on disk, at a time; the same for all shards.
        workers: Threads that decode photos ahead of the network (with --ray, each process decodes its own).
        follow_links: Read photos also where links lead out of the folder.
        shard: i/n, extract only the i-th of n parts, into shards/ of the store.
        ray: Address of a Ray cluster that sees the photos by the same paths, or `local` for one started here.
        json: Print the result as JSON.
    """
    from vsrn.data.listing import find_photos
    from vsrn.extractors.base import make_extractor
    from vsrn.extractors.extract import extract, extract_karpathy

    part = None if shard is None else parse_shard(shard)
    split = check_splits(captions, splits, restval=restval)
    say(f"Loading the extractor '{extractor}'...")
    # A person typed the name, so what it stands for may be downloaded.
    made = make_extractor(extractor, weights, classes=classes, attributes=attributes, download=True, device=device)
    try:
        with Bars() as bars, contextlib.ExitStack() as cluster:
            settings: dict[str, Any] = {
                "shard": part,
                "batch_size": batch_size,
                "workers": workers,
                "progress": bars.at,
            }
            if ray is not None:
                from vsrn.extractors.ray import ray_batches

                say(f"Connecting to Ray ({ray})...")
                settings["batches"] = cluster.enter_context(ray_batches(ray))
            if captions is None:
                found = find_photos(photos, leave_out=output, follow_links=follow_links)
                reports = [extract(found, made, output, split, **settings)]
            else:
                reports = extract_karpathy(captions, photos, made, output, splits=splits, restval=restval, **settings)
    except KeyboardInterrupt:
        return stopped()
    show(reports, output if part is None else shard_folder(output, *part), json=json)
    return 0


def check_splits(captions: Path | None, splits: tuple[str, ...], *, restval: bool) -> str:
    """The name of the one split of photos without captions.

    Raises `ConfigError` where there are no captions and options speak of their splits.
    """
    if captions is None and (restval or len(splits) > 1):
        option = "--restval" if restval else "--splits with several names"
        raise ConfigError(f"{option} chooses among the splits of a JSON; name it with --captions.")
    return splits[0] if splits else "photos"


def stopped() -> int:
    """Say that Ctrl-C costs nothing; gives the exit code."""
    say("Stopped; every finished batch is kept. The same command goes on from there.")
    return 130


class Bars:
    """One bar on the screen, for what is being done: usually a split that is extracted."""

    def __init__(self) -> None:
        self.shown = contextlib.ExitStack()
        self.what: str | None = None
        self.bar: ProgressBar | None = None

    def at(self, split: str, done: int, total: int) -> None:
        """A split has so many of its photos finished."""
        self._show(f"extracting {split}", "photos", done, total)

    def looked_through(self, done: int, total: int) -> None:
        """So many bytes of all files have been looked through."""
        self._show("looking through the files", "MB", done >> 20, total >> 20)

    def _show(self, what: str, unit: str, done: int, total: int) -> None:
        if self.bar is None or what != self.what:
            self.shown.close()
            self.what, self.bar = what, progress_bar(what, unit=unit)
            self.shown.enter_context(self.bar.of(total))
        self.bar.at(done)

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shown.close()


def show(reports: Sequence[ExtractionReport], store: Path, *, json: bool) -> None:
    """Print what became of each split, for a person or as JSON."""
    if json:
        print_json({"store": str(store), "splits": [_as_json(report) for report in reports]})
    else:
        print("\n".join(_summary(reports, store)))


def _summary(reports: Sequence[ExtractionReport], store: Path) -> list[str]:
    shown, lines = printable(store), []
    for report in reports:
        was = " (finished before)" if report.already_done else ""
        lines.append(f"{shown}, split '{report.split}': {report.num_done:,} photos{was}")
        lines += [f"  {line}" for line in skipped_lines([(one.id, one.kind, one.reason) for one in report.skipped])]
        if len(report.skipped) > SKIPPED_SHOWN:
            lines.append(f"  all that was skipped: {printable(store / f'{report.split}_skipped.json')}")
    return lines


def _as_json(report: ExtractionReport) -> dict[str, Any]:
    return {
        "split": report.split,
        "num_done": report.num_done,
        "num_resumed": report.num_resumed,
        "already_done": report.already_done,
        "skipped": [{"id": one.id, "kind": one.kind, "reason": one.reason} for one in report.skipped],
    }
