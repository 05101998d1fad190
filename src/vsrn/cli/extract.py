"""`vsrn extract`: photos -> a region store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vsrn.cli.options import SKIPPED_SHOWN, Device, Json, call, print_json, printable, skipped_lines
from vsrn.cli.progress import ProgressBar, progress_bar, say
from vsrn.data.shards import parse_shard, shard_folder
from vsrn.errors import ConfigError

if TYPE_CHECKING:
    from vsrn.extractors.base import RegionExtractor
    from vsrn.extractors.extract import ExtractionReport

Store = Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
Photos = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PHOTOS]")]


def run(arguments: Sequence[str]) -> int:
    """Parse and run."""
    return call(main, "extract", arguments)


def main(
    photos: Photos = None,
    *,
    output: Store = None,
    captions: Path | None = None,
    splits: tuple[str, ...] = (),
    restval: bool = False,
    split: str = "photos",
    extractor: str = "grid",
    weights: Path | None = None,
    classes: Path | None = None,
    attributes: Path | None = None,
    batch_size: int = 32,
    workers: int = 2,
    follow_links: bool = False,
    shard: str | None = None,
    merge: bool = False,
    delete_shards: bool = False,
    ray: str | None = None,
    from_tsv: tuple[Path, ...] = (),
    compare: Path | None = None,
    first: int = 20,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Turn a folder of photos into a region store: features, boxes and ids of each photo's regions.

    $ vsrn extract photos/ -o data/mine
    $ vsrn extract flickr8k/images -o data/flickr8k --captions dataset_flickr8k.json

    Killed or stopped at any moment, the same command goes on where it was. Photos that cannot be read are
    skipped and listed at the end, damaged ones first; files that are no photos are counted. Many machines make the
    same store of millions of photos: as the jobs of a batch queue, here the third of 16, joined when all are done;
    or as one command on a Ray cluster.

    $ vsrn extract photos/ -o data/mine --shard 3/16
    $ vsrn extract --merge -o data/mine
    $ vsrn extract photos/ -o data/mine --ray ADDRESS

    Regions as the paper has them, by a detector whose published weights you name (docs/extractors.md):

    $ vsrn extract photos/ -o data/mine --extractor bottom-up --weights pytorch_model.bin

    Features published as bottom-up attention's TSV become a store without photos, with their boxes.

    $ vsrn extract --from-tsv trainval_36.tsv -o data/coco --captions dataset_coco.json --restval

    Does an extractor, with the weights you have, make the features you have? Exit status 0 where it does, 1 where not.

    $ vsrn extract photos/ --compare data/mine/photos_ims.npy

    Args:
        photos: Folder of photos, searched to the bottom.
        output: Folder of the region store, made where there is none; needed unless --compare is given.
        captions: Karpathy JSON; its splits and captions go into the store, and only its photos are read.
        splits: With --captions, the splits to extract [default: all].
        restval: With --captions, count COCO's `restval` images as `train`.
        split: Without --captions, the name of the one split that holds every photo.
        extractor: What makes the regions. `grid` is 36 windows of a small network, offline; `bottom-up` is 36 boxes
            of the paper's detector, `bottom-up:10-100` from 10 to 100 of them. `timm:NAME`, `hf:NAME` and
            `torchvision:NAME` are other people's networks (docs/extractors.md).
        weights: Weights of the extractor: for `grid` fine-tuned ones (.safetensors), for `bottom-up` the published,
            for the others a copy of what they would download.
        classes: For `bottom-up`, a file that names the detector's classes, one a line; regions then keep theirs.
        attributes: The same for its attributes.
        batch_size: Photos that are finished, and safe on disk, at a time; the same for all shards.
        workers: Threads that decode photos ahead of the network (with --ray, each process decodes its own).
        follow_links: Read photos also where links lead out of the folder.
        shard: i/n, extract only the i-th of n parts, into a store of its own below -o.
        merge: Check that every shard below -o is there and finished, and join them. Needs no photos.
        delete_shards: With --merge, delete the shards once they are joined.
        ray: Address of a Ray cluster that sees the photos by the same paths, or `local` for one started here.
        from_tsv: Files in bottom-up attention's TSV layout, plain or gzipped, instead of photos; with --captions,
            images are found by COCO's number or their file name.
        compare: Write nothing; extract the first photos and compare their regions with this .npy file's. Rows are
            found by the ids beside the file; else they are the photos, or the captions' one split, in order.
        first: With --compare, how many photos.
        json: Print the result as JSON.
    """
    made_by = _Extractor(extractor, weights, classes, attributes, device)
    source = _Source(photos, captions, splits, split, restval=restval, follow_links=follow_links)
    way = _Way(None if shard is None else parse_shard(shard), ray, from_tsv, merge=merge, delete_shards=delete_shards)
    _refuse_contradictions(source, way, made_by)
    if compare is not None:
        return _compare(source, compare, output, way, made_by, first, json=json)
    if output is None:
        raise ConfigError("no region store is named; write vsrn extract PHOTOS -o FOLDER.")
    settings = {"batch_size": batch_size, "workers": workers}
    try:
        with _Bars() as bars:
            if merge:
                reports = _merge(output, way, bars)
            elif from_tsv:
                reports = _convert(source, output, way, bars, settings)
            else:
                reports = _extract(source, output, way, made_by, bars, settings)
    except KeyboardInterrupt:
        say("Stopped; every finished batch is kept. The same command goes on from there.")
        return 130
    _show(reports, output if way.shard is None else shard_folder(output, *way.shard), json=json)
    return 0


@dataclass(frozen=True)
class _Source:
    """What to extract, as asked for."""

    photos: Path | None
    captions: Path | None
    splits: tuple[str, ...]
    split: str
    restval: bool
    follow_links: bool


@dataclass(frozen=True)
class _Extractor:
    """What makes the regions, as asked for."""

    name: str
    weights: Path | None
    classes: Path | None
    attributes: Path | None
    device: str

    def load(self) -> RegionExtractor:
        """The extractor itself."""
        say(f"Loading the extractor '{self.name}'...")
        from vsrn.extractors.base import make_extractor

        # A person typed the name, so what it stands for may be downloaded.
        return make_extractor(
            self.name,
            self.weights,
            classes=self.classes,
            attributes=self.attributes,
            download=True,
            device=self.device,
        )


@dataclass(frozen=True)
class _Way:
    """How to go about it, as asked for."""

    shard: tuple[int, int] | None
    ray: str | None
    from_tsv: tuple[Path, ...]
    merge: bool
    delete_shards: bool


def _extract(
    source: _Source, output: Path, way: _Way, made_by: _Extractor, bars: _Bars, settings: dict[str, Any]
) -> list[ExtractionReport]:
    assert source.photos is not None
    extractor = made_by.load()
    from vsrn.data.photos import find_photos
    from vsrn.extractors.extract import extract, extract_karpathy

    settings |= {"shard": way.shard, "progress": bars.at}
    with contextlib.ExitStack() as cluster:
        if way.ray is not None:
            from vsrn.extractors.ray import ray_batches

            say(f"Connecting to Ray ({way.ray})...")
            settings["batches"] = cluster.enter_context(ray_batches(way.ray))
        if source.captions is None:
            found = find_photos(source.photos, leave_out=output, follow_links=source.follow_links)
            return [extract(found, extractor, output, source.split, **settings)]
        settings |= {"splits": source.splits, "restval": source.restval}
        return extract_karpathy(source.captions, source.photos, extractor, output, **settings)


def _compare(
    source: _Source, existing: Path, output: Path | None, way: _Way, made_by: _Extractor, first: int, *, json: bool
) -> int:
    beside = {"-o": output is not None, "--shard": way.shard is not None, "--ray": way.ray is not None}
    _refuse_beside("--compare writes nothing", beside | {"--merge": way.merge, "--from-tsv": bool(way.from_tsv)})
    assert source.photos is not None
    if first < 1:
        raise ConfigError(f"--first is {first}; it must be 1 or more.")
    from vsrn.cli.compare import compare_with

    return compare_with(
        existing,
        source.photos,
        made_by.load(),
        captions=source.captions,
        splits=source.splits,
        restval=source.restval,
        follow_links=source.follow_links,
        first=first,
        json=json,
    )


def _merge(output: Path, way: _Way, bars: _Bars) -> list[ExtractionReport]:
    from vsrn.extractors.merge import merge_shards

    return merge_shards(output, delete_shards=way.delete_shards, progress=bars.at)


def _convert(source: _Source, output: Path, way: _Way, bars: _Bars, settings: dict[str, Any]) -> list[ExtractionReport]:
    from vsrn.extractors.published_tsv import TsvFiles, extract_tsv, extract_tsv_karpathy

    with TsvFiles(way.from_tsv, output, bars.looked_through) as tsv:
        settings |= {"progress": bars.at}
        if source.captions is None:
            return [extract_tsv(tsv, output, source.split, **settings)]
        settings |= {"splits": source.splits, "restval": source.restval}
        return extract_tsv_karpathy(tsv, source.captions, output, **settings)


class _Bars:
    """One bar on the screen, for what is being done: usually a split that is extracted."""

    def __init__(self) -> None:
        self.shown = contextlib.ExitStack()
        self.what: str | None = None
        self.bar: ProgressBar | None = None

    def at(self, split: str, settled: int, total: int) -> None:
        """A split has settled this many of its photos."""
        self._show(f"extracting {split}", "photos", settled, total)

    def looked_through(self, done: int, total: int) -> None:
        """So many bytes of the files are known."""
        self._show("looking through the files", "MB", done >> 20, total >> 20)

    def _show(self, what: str, unit: str, done: int, total: int) -> None:
        if self.bar is None or what != self.what:
            self.shown.close()
            self.what, self.bar = what, progress_bar(what, unit=unit)
            self.shown.enter_context(self.bar.of(total))
        self.bar.at(done)

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shown.close()


def _refuse_contradictions(source: _Source, way: _Way, made_by: _Extractor) -> None:
    elsewhere = {
        f"the folder {source.photos}": source.photos is not None,
        "--follow-links": source.follow_links,
        "--shard": way.shard is not None,
        "--ray": way.ray is not None,
        "--weights": made_by.weights is not None,
        "--classes": made_by.classes is not None,
        "--attributes": made_by.attributes is not None,
    }
    captioned = {
        "--captions": source.captions is not None,
        "--splits": bool(source.splits),
        "--restval": source.restval,
        "--split": source.split != "photos",
    }
    if way.merge:
        beside = elsewhere | captioned | {"--from-tsv": bool(way.from_tsv)}
        _refuse_beside("--merge joins every shard below -o and reads no photos", beside)
        return
    if way.delete_shards:
        raise ConfigError("--delete-shards deletes what was joined; say it with --merge.")
    if way.from_tsv:
        _refuse_beside("--from-tsv reads features and no photos", elsewhere)
    elif source.photos is None:
        raise ConfigError("no photos are named; write vsrn extract PHOTOS -o FOLDER, or --merge to join shards.")
    if way.ray is not None and way.shard is not None:
        raise ConfigError("--ray shares out the photos by itself; leave out --shard.")
    if source.captions is not None and source.follow_links:
        raise ConfigError(
            "--follow-links is about a folder that is searched, but --captions names its photos; leave it out."
        )
    if source.captions is None and (source.splits or source.restval):
        option = "--splits" if source.splits else "--restval"
        raise ConfigError(f"{option} chooses among the splits of a JSON; name it with --captions.")
    if source.captions is not None and source.split != "photos":
        raise ConfigError(f"--split names photos without captions; with --captions say --splits {source.split}.")


def _refuse_beside(reason: str, given: Mapping[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise ConfigError(f"{reason}; leave out {option}.")


def _show(reports: Sequence[ExtractionReport], store: Path, *, json: bool) -> None:
    if json:
        print_json({"store": str(store), "splits": [_as_json(report) for report in reports]})
    else:
        print("\n".join(_summary(reports, store)))


def _summary(reports: Sequence[ExtractionReport], store: Path) -> list[str]:
    shown = printable(store)
    lines = [] if reports else [f"{shown}: what was left of its shards is deleted"]
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
