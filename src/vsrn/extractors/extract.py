"""From a folder of photos to one split of a region store: decoded in threads, written as it goes, resumable.

extract(find_photos("photos/"), make_extractor("grid"), "store/", "train")
extract_karpathy("dataset.json", "photos/", make_extractor("grid"), "store/")
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vsrn.data.annotations import CaptionedPhoto, read_annotations
from vsrn.data.listing import PhotoFile, PhotoNames
from vsrn.data.region_store import SkippedPhoto, map_features, read_skipped, read_store_info
from vsrn.data.region_writer import RegionWriter, check_split_name, digest_of, finish_interrupted
from vsrn.data.regions import ARRAYS, RegionNames, Regions
from vsrn.data.shards import SHARD_FILE, Shard, SplitHeader, check_shard, read_header, shard_folder
from vsrn.errors import ConfigError, DataError, PhotoError, did_you_mean
from vsrn.extractors.base import ExtractorFiles, Prepared, RegionExtractor, make_extractor, prepare_photo
from vsrn.extractors.batches import BatchMaker, local_batches
from vsrn.extractors.provenance import check_same_weights, keep_weights
from vsrn.files import normal_name, read_lines


@dataclass(frozen=True)
class ExtractedBatch:
    """What became of neighbouring photos: `ids` and `regions` of those that could be read, and the others."""

    ids: list[str]
    regions: list[Regions]
    skipped: list[SkippedPhoto]


@dataclass(frozen=True)
class Extraction:
    """The `Work` that turns photos into regions, whose features stay float32 or are rounded to float16."""

    extractor: RegionExtractor
    float32: bool = False

    @property
    def device(self) -> str:
        """Where the extractor computes, as it was asked for."""
        return self.extractor.files.device

    def prepare(self, photo: PhotoFile) -> Prepared | PhotoError:
        """Decode and prepare one photo: what the extractor reads of it, or the error that says why it cannot."""
        if photo.refusal is not None:
            return photo.refusal
        try:
            return prepare_photo(self.extractor, photo.path)
        except PhotoError as error:
            return error

    def finish(self, photos: Sequence[PhotoFile], prepared: Sequence[Prepared | PhotoError]) -> ExtractedBatch:
        """Run the extractor on those photos of a batch that could be prepared."""
        pairs = list(zip(photos, prepared, strict=True))
        readable = [(photo, got) for photo, got in pairs if not isinstance(got, PhotoError)]
        regions = self.extractor([got for _, got in readable])
        return ExtractedBatch(
            ids=[photo.id for photo, _ in readable],
            regions=regions if self.float32 else [found.in_half_precision() for found in regions],
            skipped=[SkippedPhoto(photo.id, str(got), got.kind) for photo, got in pairs if isinstance(got, PhotoError)],
        )

    def path_of(self, photo: PhotoFile) -> Path | None:
        """The file of a photo, or None where it is not to be opened."""
        return photo.path if photo.refusal is None else None

    def elsewhere(self) -> Callable[[str, bool], Extraction]:
        """What makes the same extraction on another machine, which must have the same weights."""
        made = self.extractor
        return partial(_same_extraction, made.name, made.files, made.fingerprint, self.float32)


def _same_extraction(
    name: str, files: ExtractorFiles, fingerprint: str, float32: bool, device: str, _finishes: bool
) -> Extraction:
    """Make an extractor again. Raises what `make_extractor` raises, and `DataError` where it is another one here."""
    chosen = {"classes": files.classes, "attributes": files.attributes}
    extractor = make_extractor(name, files.weights, **chosen, download=files.download, device=device)
    if extractor.fingerprint != fingerprint:
        raise DataError(f"{platform.node()} has other weights of '{name}'; install the same vsrn everywhere.")
    return Extraction(extractor, float32)


# Called as progress(split, done, total), once before the first batch and again after each.
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExtractionReport:
    """What became of a split.

    num_done      photos that have a row
    skipped       photos that have none, and why; also in `{split}_skipped.json`
    num_resumed   photos that an earlier, interrupted run had finished
    already_done  whether the split was found finished
    """

    split: str
    num_done: int
    skipped: list[SkippedPhoto]
    num_resumed: int = 0
    already_done: bool = False


def extract(
    photos: Sequence[PhotoFile],
    extractor: RegionExtractor,
    folder: Path | str,
    split: str,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    shard: tuple[int, int] | None = None,
    float32: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    batches: BatchMaker = local_batches,
    progress: ProgressCallback | None = None,
) -> ExtractionReport:
    """Extract the regions of `photos` into one split of the region store `folder`.

    captions    by photo id, each on one line; those of the extracted photos are written beside the regions
    shard       (i, n): only the i-th of n blocks of `photos`, into `shard_folder(folder, i, n)`; the list,
                its captions and `batch_size` must be the same for all n. Such a block may come out empty.
    float32     whether features are kept as float32 instead of float16
    batch_size  photos finished at a time; what a kill costs at most
    workers     threads or processes that decode ahead of the extractor; None for one for each processor
    batches     who reads photos: this process, or others (`process_batches`), or a Ray cluster (`vsrn.extractors.ray`)

    A photo that cannot be read is skipped and reported. Killed at any moment and called again, it goes on after the
    last batch it had finished. Small weights that the user named are copied into the store. Raises `DataError` where
    the split was made from other photos or by another extractor, where the store keeps other weights, where no photo
    could be read, or where the disk is full; `ConfigError` where `batch_size` or `workers` is below 1, or `shard` not
    within 1..n.
    """
    check_settings(batch_size, workers)
    check_split_name(split)
    folder, ids = Path(folder), [photo.id for photo in photos]
    if captions is not None and not captions.keys() >= set(ids):
        bare = next(photo_id for photo_id in ids if photo_id not in captions)
        raise DataError(f"photo {bare} of split '{split}' has no captions; write one or leave it out.")
    header = msgspec.structs.replace(_header(ids, extractor), float32=float32)
    if shard is not None:
        check_shard(*shard)
        part = Shard(*shard, batch_size=batch_size, num_photos=len(photos))
        header, folder = msgspec.structs.replace(header, shard=part), shard_folder(folder, *shard)
        photos, ids = photos[part.block()], ids[part.block()]
    weights = extractor.files.weights
    if weights is not None:
        check_same_weights(folder, weights)

    def batches_from(start: int) -> Iterator[ExtractedBatch]:
        return batches(Extraction(extractor, float32), photos[start:], batch_size, workers)

    report = write_split(
        folder, split, header, ids, batches_from, captions=captions, names=extractor.names, progress=progress
    )
    if weights is not None:
        keep_weights(weights, folder)
    return report


def write_split(
    folder: Path,
    split: str,
    header: SplitHeader,
    ids: Sequence[str],
    batches_from: Callable[[int], Iterator[ExtractedBatch]],
    *,
    captions: Mapping[str, Sequence[str]] | None,
    names: RegionNames | None = None,
    progress: ProgressCallback | None,
) -> ExtractionReport:
    """Write a split, or what is left of it, from extracted batches.

    ids           of the photos, or of the shard's
    batches_from  called with the number of photos finished before: batches of the others, in order
    captions      by photo id
    names         of the regions' classes and attributes

    Raises `DataError` where the split is another one, where no photo could be read, or where the disk is full.
    """
    finish_interrupted(folder, split)
    if (folder / f"{split}_ims.npy").exists():
        return _finished_report(folder, split, ids, header, captions)
    with RegionWriter(folder, split, header) as writer:
        num_resumed = writer.num_seen
        seen = partial(progress or (lambda *_: None), split)
        seen(num_resumed, len(ids))
        for num_seen in _written(writer, batches_from(num_resumed)):
            seen(num_seen, len(ids))
        if not writer.ids and header.shard is None:
            writer.discard()
            first = f", the first because {writer.skipped[0].reason}" if writer.skipped else "."
            raise DataError(f"none of the {len(writer.skipped)} photos of split '{split}' could be read{first}")
        writer.finish(None if captions is None else [captions[photo_id] for photo_id in writer.ids], names)
        return ExtractionReport(split, len(writer.ids), writer.skipped, num_resumed)


def _written(writer: RegionWriter, batches: Iterator[ExtractedBatch]) -> Iterator[int]:
    """Write batches, each while the next one is extracted, since the disk is waited for; gives the photos on disk."""
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        for batch in batches:
            if writing is not None:
                writing.result()
                yield writer.num_seen
            writing = pool.submit(writer.append, batch.ids, batch.regions, batch.skipped)
        if writing is not None:
            writing.result()
            yield writer.num_seen


def extract_karpathy(
    dataset: Path | str,
    photo_root: Path | str,
    extractor: RegionExtractor,
    folder: Path | str,
    *,
    splits: Sequence[str] = (),
    restval: bool = False,
    **settings: Any,
) -> list[ExtractionReport]:
    """Extract the splits of a file or folder of captions, or those named in `splits`, with their captions.

    photo_root  the folder of the photos, which are found there by any name that `ImageNames` knows
    restval     whether `restval` images count as `train`
    settings    as in `extract`, from `shard` on; a shard is one of every split

    Raises what `extract` and `captioned_splits` raise, and `DataError` where there is no folder of photos.
    """
    found = captioned_splits(dataset, splits, restval=restval)
    root, names = Path(photo_root), PhotoNames(photo_root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name the folder that holds the photos of {dataset}.")
    return [
        extract(
            [PhotoFile(photo.id, names.find(photo.id, photo.cocoid) or root / photo.id) for photo in photos],
            extractor,
            folder,
            split,
            captions={photo.id: photo.captions for photo in photos},
            **settings,
        )
        for split, photos in found.items()
    ]


def captioned_splits(
    dataset: Path | str, splits: Sequence[str] = (), *, restval: bool = False
) -> dict[str, list[CaptionedPhoto]]:
    """The splits of a file or folder of captions (`read_annotations`), or those that are asked for, by name.

    splits   where the captions name no split, one name for the one that they are
    restval  whether `restval` images count as `train`

    Raises what `read_annotations` raises, and `DataError` for a split that the captions lack or that cannot be one.
    """
    found = read_annotations(dataset, restval=restval, name=splits[0] if len(splits) == 1 else "train")
    for split in [*splits, *found]:
        if split not in found:
            listed = ", ".join(found)
            raise DataError(f"{dataset} has no split '{split}'; it has {listed}.{did_you_mean(split, found)}")
        check_split_name(split)
    return {split: found[split] for split in splits or found}


def _header(ids: Sequence[str], extractor: RegionExtractor) -> SplitHeader:
    carried: dict[str, Any] = {
        f"has_{array.name}": bool(
            getattr(extractor.names, array.name) if array.named else getattr(extractor, f"has_{array.name}")
        )
        for array in ARRAYS
        if array.optional
    }
    return SplitHeader(
        extractor=extractor.name,
        fingerprint=extractor.fingerprint,
        photos=digest_of(ids),
        num_regions=extractor.num_regions,
        feature_dim=extractor.feature_dim,
        **carried,
    )


def _finished_report(
    folder: Path,
    split: str,
    ids: Sequence[str],
    header: SplitHeader,
    captions: Mapping[str, Sequence[str]] | None,
) -> ExtractionReport:
    """The report of a split that is there already. Raises `DataError` where it is not the one asked for."""
    done = read_lines(folder / f"{split}_ids.txt") if (folder / f"{split}_ids.txt").exists() else []
    features = map_features(folder / f"{split}_ims.npy")
    if not header.has_ids and len(features) == len(ids):
        done = list(ids)
    skipped = read_skipped(folder / f"{split}_skipped.json")
    # Earlier versions kept ids in the Unicode form that the disk had.
    done, without = [normal_name(name) for name in done], {normal_name(photo.id) for photo in skipped}
    info = read_store_info(folder / f"{split}.json")
    other = None
    if (info.extractor, info.fingerprint) != (header.extractor, header.fingerprint):
        other = "with another extractor or other weights"
    elif (features.dtype == np.float32) != header.float32:
        other = f"as {features.dtype}"
    elif header.shard is not None and (made := read_header(folder / f"{split}{SHARD_FILE}")) != header:
        other = made.difference(header)
    elif [photo_id for photo_id in ids if photo_id not in without] != done or not without <= set(ids):
        other = "from another list of photos"
    elif captions is not None and (
        info.caption_counts(len(done)) != [len(captions[photo_id]) for photo_id in done]
        or read_lines(folder / f"{split}_caps.txt") != [caption for photo_id in done for caption in captions[photo_id]]
    ):
        other = "with other captions"
    if other is not None:
        raise already_holds(folder, split, other)
    return ExtractionReport(split, len(done), skipped, num_resumed=len(ids), already_done=True)


def already_holds(folder: Path, split: str, made: str) -> DataError:
    """The error where a split is there already that was made otherwise."""
    return DataError(
        f"{folder} already holds a split '{split}', made {made}; choose another -o, or delete {folder / split}_* and"
        f" {folder / split}.json."
    )


def check_settings(batch_size: int, workers: int | None) -> None:
    """Raise `ConfigError` where one of them is below 1; None workers are one for each processor."""
    for name, value in (("batch-size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; it must be 1 or more.")
