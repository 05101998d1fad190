"""`vsrn extract`: photos -> a region store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import vsrn
from vsrn.cli import options
from vsrn.cli.progress import ProgressBar, say
from vsrn.data.exclusion import Exclusion
from vsrn.data.shards import parse_shard, shard_folder
from vsrn.errors import ConfigError
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.extractors.base import RegionExtractor
    from vsrn.extractors.extract import ExtractionReport


def main(
    photos: options.Photos,
    *,
    output: options.Output,
    captions: Path | None = None,
    splits: options.Splits = (),
    restval: options.Restval = False,
    extractor: str = "grid",
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    weights: Path | None = None,
    classes: Path | None = None,
    attributes: Path | None = None,
    float32: options.Float32 = False,
    batch_size: options.BatchSize = 32,
    workers: options.Decoders = None,
    follow_links: options.FollowLinks = False,
    exclude: options.Exclude = (),
    shard: str | None = None,
    ray: options.Ray = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Turn a folder of photos into a region store: features, boxes and ids of each photo's regions.

    $ vsrn extract flickr8k/images -o data/flickr8k --captions dataset_flickr8k.json
    $ vsrn extract photos/ -o data/mine --extractor bottom-up --weights pytorch_model.bin

    Stopped or killed at any moment, the same command goes on where it was. Photos that cannot be read are listed.

    Args:
        captions: Captions: Karpathy's JSON, COCO's captions_*.json or their folder, Flickr's .token, CSV or TSV
            (docs/data-formats.md). Their splits and captions go into the store, and only their photos are read.
        extractor: `grid`, `bottom-up`, `timm:NAME`, `hf:NAME`, `onnx:FILE`, `torchvision:NAME` or `hf-detector:NAME`
            (docs/extractors.md).
        model: A run, an exported folder or a packaged model: extract as what it learned from was, to evaluate it.
        weights: Weights of the extractor; needed for `bottom-up`, for others instead of those they come with.
        classes: For `bottom-up` and `onnx`, a file of the detector's classes, one a line; regions then keep theirs.
        attributes: For `bottom-up`, the same of its attributes.
        shard: i/n, extract only the i-th of n parts, into shards/; all n are then read as one store.
    """
    part = None if shard is None else parse_shard(shard)
    split = check_splits(captions, splits, restval=restval)
    if exclude and captions is not None:
        raise ConfigError("--captions names the photos to read; leave out --exclude.")
    exclusion = Exclusion(photos, [glob for globs in exclude for glob in globs])
    made = extractor_of(extractor, model, {"weights": weights, "classes": classes, "attributes": attributes}, device)
    from vsrn.data.listing import find_photos
    from vsrn.extractors.extract import extract, extract_karpathy

    with ProgressBar("extracting") as bar, contextlib.ExitStack() as cluster:
        settings: dict[str, Any] = {"shard": part, "batch_size": batch_size, "workers": workers, "float32": float32}
        settings["progress"] = lambda split, done, total: bar.start(f"extracting {split}").at(done, total)
        settings["batches"] = options.batches_of(ray, device, cluster)
        if captions is None:
            found = find_photos(photos, leave_out=output, follow_links=follow_links, exclusion=exclusion)
            reports = [extract(found, made, output, split, **settings)]
        else:
            reports = extract_karpathy(captions, photos, made, output, splits=splits, restval=restval, **settings)
    store = output if part is None else shard_folder(output, *part)
    show(reports, store, (exclusion.num_folders, exclusion.num_files), json=json)


def extractor_of(name: str, model: str | None, files: Mapping[str, Path | None], device: str) -> RegionExtractor:
    """The extractor of a name and its files, or the one that made what a model learned from.

    Raises `ConfigError` where both a model and an extractor are named.
    """
    if model is None:
        say(f"Loading the extractor '{name}'...")
        from vsrn.extractors.base import make_extractor

        # A person typed the name, so what it stands for may be downloaded.
        return make_extractor(name, **files, download=True, device=device)
    if name != "grid" or any(files.values()):
        raise ConfigError("--model brings its extractor; leave out --extractor, --weights, --classes and --attributes.")
    say(f"Loading the extractor of {model}...")
    return vsrn.load(model, device).extractor


def check_splits(captions: Path | None, splits: tuple[str, ...], *, restval: bool) -> str:
    """The name of the one split of photos without captions.

    Raises `ConfigError` where there are no captions and options speak of their splits.
    """
    if captions is None and (restval or len(splits) > 1):
        option = "--restval" if restval else "--splits with several names"
        raise ConfigError(f"{option} chooses among the splits of a file of captions; name it with --captions.")
    return splits[0] if splits else "photos"


def show(reports: Sequence[ExtractionReport], store: Path, left_out: tuple[int, int] = (0, 0), *, json: bool) -> None:
    """Print what became of each split, and how many folders and files were left out, for a person or as JSON."""
    if json:
        splits = [vars(report) | {"skipped": options.skipped_json(report.skipped)} for report in reports]
        counts = dict(zip(("num_folders_left_out", "num_files_left_out"), left_out, strict=True))
        options.print_json({"store": str(store), "splits": splits, **counts})
        return
    for report in reports:
        was = " (finished before)" if report.already_done else ""
        lines = [f"{printable(store)}, split '{report.split}': {report.num_done:,} photos{was}"]
        lines += options.skipped_lines(report.skipped)
        if len(report.skipped) > options.SKIPPED_SHOWN:
            lines.append(f"  all that was skipped: {printable(store / f'{report.split}_skipped.json')}")
        print("\n".join(lines))
    print("".join(f"{line}\n" for line in options.left_out_lines(*left_out)), end="")
