"""From a folder of photos to one split of a region store: decoded in threads, written as it goes, resumable.

extract(find_photos("photos/"), make_extractor("grid"), "store/", "train")
extract_karpathy("dataset.json", "photos/", make_extractor("grid"), "store/")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from vsrn.captions.karpathy import read_karpathy
from vsrn.errors import ConfigError, DataError, PhotoError, did_you_mean
from vsrn.regions.extractor import Prepared, RegionExtractor, prepare_photo
from vsrn.regions.photos import PhotoFile
from vsrn.regions.store import StoreInfo, read_lines, read_store_info
from vsrn.regions.writer import (
    RegionWriter,
    SkippedPhoto,
    SplitHeader,
    digest_of,
    finish_interrupted,
    refuse_split_name,
)

# Called as progress(split, settled, total): once before the first batch and again after each.
ProgressCallback = Callable[[str, int, int], None]

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ExtractionReport:
    """What became of a split.

    num_done      photos that have a row
    skipped       photos that have none, and why; also in `{split}_skipped.json`
    num_resumed   photos that an earlier, interrupted run had settled
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
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> ExtractionReport:
    """Extract the regions of `photos` into one split of the region store `folder`.

    captions    by photo id, each on one line; those of the extracted photos are written beside the regions
    batch_size  photos settled at a time; what a kill costs at most
    workers     threads that decode ahead of the extractor

    A photo that cannot be read is skipped and reported. Killed at any moment and called again, it goes on
    behind the last batch it had settled. Raises `DataError` where the split was made from other photos or
    by another extractor, where no photo could be read, or where the disk is full; `ConfigError` where
    `batch_size` or `workers` is below 1.
    """
    _refuse_settings(batch_size, workers)
    refuse_split_name(split)
    folder = Path(folder)
    finish_interrupted(folder, split)
    ids = [photo.id for photo in photos]
    if captions is not None and not captions.keys() >= set(ids):
        bare = next(photo_id for photo_id in ids if photo_id not in captions)
        raise DataError(f"photo {bare} of split '{split}' has no captions; write one or leave it out.")
    if (folder / f"{split}_ims.npy").exists():
        return _finished(folder, split, ids, extractor, captions)
    with RegionWriter(folder, split, _header(ids, extractor)) as writer:
        num_resumed = writer.num_seen
        _append_rest(
            writer,
            photos[num_resumed:],
            extractor,
            batch_size=batch_size,
            workers=workers,
            progress=partial(progress or _no_progress, split),
        )
        if not writer.ids:
            writer.discard()
            first = f", the first because {writer.skipped[0].reason}" if writer.skipped else "."
            raise DataError(f"none of the {len(photos)} photos of split '{split}' could be read{first}")
        writer.finish(None if captions is None else [captions[photo_id] for photo_id in writer.ids])
        return ExtractionReport(split, len(writer.ids), writer.skipped, num_resumed)


def extract_karpathy(
    dataset: Path | str,
    photo_root: Path | str,
    extractor: RegionExtractor,
    folder: Path | str,
    *,
    splits: Sequence[str] = (),
    restval: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> list[ExtractionReport]:
    """Extract the splits of a Karpathy JSON, or those named in `splits`, with their captions.

    photo_root  the folder that the JSON's file names start from
    restval     whether `restval` images count as `train`

    Raises what `extract` and `read_karpathy` raise, and `DataError` for a split that the JSON does not have.
    """
    found = read_karpathy(dataset, restval=restval)
    for split in [*splits, *found]:
        if split not in found:
            listed = ", ".join(found)
            raise DataError(f"{dataset} has no split '{split}'; it has {listed}.{did_you_mean(split, found)}")
        refuse_split_name(split)
    root = Path(photo_root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name the folder that holds the photos of {dataset}.")
    return [
        extract(
            [PhotoFile(photo.id, root / photo.id) for photo in found[split]],
            extractor,
            folder,
            split,
            captions={photo.id: photo.captions for photo in found[split]},
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        for split in dict.fromkeys(splits or found)
    ]


def _header(ids: Sequence[str], extractor: RegionExtractor) -> SplitHeader:
    return SplitHeader(
        extractor=extractor.name,
        fingerprint=extractor.fingerprint,
        photos=digest_of(ids),
        num_regions=extractor.num_regions,
        feature_dim=extractor.feature_dim,
        has_scores=extractor.has_scores,
    )


def _append_rest(
    writer: RegionWriter,
    photos: Sequence[PhotoFile],
    extractor: RegionExtractor,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    total = writer.num_seen + len(photos)
    progress(writer.num_seen, total)
    for batch in _prepared_batches(photos, extractor, batch_size=batch_size, workers=workers):
        readable = [(photo, got) for photo, got in batch if not isinstance(got, PhotoError)]
        skipped = [SkippedPhoto(photo.id, str(got)) for photo, got in batch if isinstance(got, PhotoError)]
        regions = extractor([prepared for _, prepared in readable])
        writer.append([photo.id for photo, _ in readable], regions, skipped)
        progress(writer.num_seen, total)


def _prepared_batches(
    photos: Sequence[PhotoFile], extractor: RegionExtractor, *, batch_size: int, workers: int
) -> Iterator[list[tuple[PhotoFile, Prepared | PhotoError]]]:
    """Batches by place in the list, so that a resumed run cuts the same ones; a few are prepared ahead."""

    def prepare(photo: PhotoFile) -> tuple[PhotoFile, Prepared | PhotoError]:
        try:
            return photo, prepare_photo(extractor, photo.path)
        except PhotoError as error:
            return photo, error

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[list[Future[tuple[PhotoFile, Prepared | PhotoError]]]] = deque()
    try:
        for start in range(0, len(photos), batch_size):
            ahead.append([pool.submit(prepare, photo) for photo in photos[start : start + batch_size]])
            if len(ahead) > _BATCHES_AHEAD:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(
    folder: Path,
    split: str,
    ids: Sequence[str],
    extractor: RegionExtractor,
    captions: Mapping[str, Sequence[str]] | None,
) -> ExtractionReport:
    """The report of a split that is there already. Raises `DataError` where it is not the one asked for."""
    done = read_lines(folder / f"{split}_ids.txt") if (folder / f"{split}_ids.txt").exists() else []
    skipped = _read_skipped(folder / f"{split}_skipped.json")
    without = {photo.id for photo in skipped}
    info = read_store_info(folder / f"{split}.json")
    other = None
    if (info.extractor, info.fingerprint) != (extractor.name, extractor.fingerprint):
        other = "with another extractor or other weights"
    elif [photo_id for photo_id in ids if photo_id not in without] != done or not without <= set(ids):
        other = "from another list of photos"
    elif captions is not None and not _same_captions(folder / f"{split}_caps.txt", info, done, captions):
        other = "with other captions"
    if other is not None:
        raise DataError(
            f"{folder} already holds a split '{split}', made {other};"
            f" choose another -o, or delete {folder / split}_* and {folder / split}.json."
        )
    return ExtractionReport(split, len(done), skipped, num_resumed=len(ids), already_done=True)


def _same_captions(path: Path, info: StoreInfo, ids: Sequence[str], captions: Mapping[str, Sequence[str]]) -> bool:
    if not path.exists():
        return False
    per_image = info.captions_per_image
    counts = [per_image] * len(ids) if isinstance(per_image, int) else per_image
    wanted = [captions[photo_id] for photo_id in ids]
    return counts == [len(of_photo) for of_photo in wanted] and read_lines(path) == [
        caption for of_photo in wanted for caption in of_photo
    ]


def _read_skipped(path: Path) -> list[SkippedPhoto]:
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[SkippedPhoto])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); extract this split again.") from error


def _refuse_settings(batch_size: int, workers: int) -> None:
    for name, value in (("batch-size", batch_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be 1 or more.")


def _no_progress(split: str, settled: int, total: int) -> None:
    """Nobody is watching."""
