"""Shards -> the split that one process would have written, byte for byte.

Shards are contiguous blocks of one list, so merging is appending. It goes through the same writer as extraction,
a piece of a shard at a time, so a killed merge goes on where it was and no shard is ever whole in memory.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from msgspec.structs import replace

from vsrn.data.region_store import RegionNames, Regions, RegionStore, open_region_store, read_lines
from vsrn.data.region_writer import RegionWriter, SkippedPhoto, SplitHeader, finish_interrupted, read_header
from vsrn.data.shards import SHARD_FILE, SHARDS, Shard, shard_folder, shard_of_folder
from vsrn.errors import DataError
from vsrn.extractors.extract import ExtractionReport, ProgressCallback, finished_report, read_skipped, refuse_empty
from vsrn.extractors.provenance import keep_weights, kept_weights

_BYTES_AT_ONCE = 64 * 2**20
_MERGED = "shards.merged"
_KNOWN_BY = ("_ims.npy", "_journal.jsonl.partial")


@dataclass(frozen=True)
class _Part:
    """One finished shard: its memory-mapped regions, and what the small files beside them say."""

    store: RegionStore
    captions: list[list[str]] | None
    skipped: list[SkippedPhoto]


class _Whole:
    """The small files of all shards so far, joined."""

    def __init__(self) -> None:
        self.num_parts = 0
        self.ids: list[str] = []
        self.skipped: list[SkippedPhoto] = []
        self.captions: list[list[str]] | None = []
        self.names: RegionNames | None = None

    def add(self, part: _Part, split: str) -> None:
        """Join the next shard. Raises `DataError` where only some shards have captions."""
        if part.captions is None and self.num_parts == 0:
            self.captions = None
        if (part.captions is None) != (self.captions is None):
            raise DataError(f"only some shards of split '{split}' have captions; extract all of them alike.")
        self.num_parts += 1
        # All parts are by one extractor; one that came out empty has written its names all the same.
        self.names = part.store.names
        self.ids += part.store.ids
        self.skipped += part.skipped
        if self.captions is not None and part.captions is not None:
            self.captions += part.captions


def merge_shards(
    folder: Path | str, *, delete_shards: bool = False, progress: ProgressCallback | None = None
) -> list[ExtractionReport]:
    """Join the shards below the region store `folder` into its splits: every split that any shard holds.

    delete_shards  whether the shards go, once all of their splits are joined and safe on disk

    Every shard is looked for before anything is written. Killed at any moment and called again, it goes on;
    where only the deletion was left it ends that, and reports no split. Raises `DataError` where shards are
    missing or unfinished (all of them, by number), stem from different extractors, lists of photos or batch
    sizes, or are damaged; where `folder` holds another split of that name; where the disk is full.
    """
    folder = Path(folder)
    ended_deletion = _end_deletion(folder)
    found = _splits_in_shards(folder)
    if ended_deletion and not found:
        return []
    if not found:
        raise DataError(f"{folder} holds no shards; make them with `vsrn extract PHOTOS -o {folder} --shard i/n`.")
    if delete_shards:
        _refuse_foreign_files(folder / SHARDS)
    _refuse_missing(folder, found)
    headers = {split: _common_header(folder, split, of) for split, of in found.items()}
    reports = [_merge_split(folder, split, header, progress) for split, header in headers.items()]
    for of in set(found.values()):
        _keep_weights(folder, of)
    if delete_shards:
        # One renaming takes all of them away at once: half of the shards would look like a mistake.
        (folder / SHARDS).replace(folder / _MERGED)
        _end_deletion(folder)
    return reports


def _splits_in_shards(folder: Path) -> dict[str, int]:
    """Split -> how many shards it is cut into, for every split that a shard holds or has begun."""
    cuts: defaultdict[str, set[int]] = defaultdict(set)
    for path in (folder / SHARDS).glob("*/*"):
        shard = shard_of_folder(path.parent)
        for suffix in _KNOWN_BY:
            if shard is not None and path.name.endswith(suffix):
                cuts[path.name.removesuffix(suffix)].add(shard[1])
    for split, of in cuts.items():
        if len(of) > 1:
            several = " and ".join(map(str, sorted(of)))
            raise DataError(
                f"{folder / SHARDS} holds split '{split}' cut into {several} shards; delete the folders of one cut."
            )
    return {split: of.pop() for split, of in sorted(cuts.items())}


def _refuse_missing(folder: Path, found: dict[str, int]) -> None:
    lacking = []
    for split, of in found.items():
        absent = [number for number in range(1, of + 1) if not _is_finished(shard_folder(folder, number, of), split)]
        if absent:
            numbers = f"shard {absent[0]}" if len(absent) == 1 else f"shards {_spoken(absent)}"
            lacking.append(f"split '{split}' lacks {numbers} of {of}")
    if lacking:
        raise DataError(
            f"{folder / SHARDS} is not complete: {'; '.join(lacking)};"
            " run `vsrn extract` with --shard for each of them to its end, then merge again."
        )


def _spoken(numbers: Sequence[int]) -> str:
    """Rising numbers as the array options of batch queues take them.

    >>> _spoken([1, 4, 5, 6, 9, 10])
    '1,4-6,9-10'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _is_finished(folder: Path, split: str) -> bool:
    # A shard whose journal is locked or broken is as unfinished as one that was never begun: its own run says why.
    with contextlib.suppress(DataError):
        finish_interrupted(folder, split)
    return (folder / f"{split}_ims.npy").exists()


def _common_header(folder: Path, split: str, of: int) -> SplitHeader:
    """What the headers of all shards say alike. Raises `DataError` where they do not."""
    first: SplitHeader | None = None
    for number in range(1, of + 1):
        path = shard_folder(folder, number, of) / f"{split}{SHARD_FILE}"
        header = read_header(path)
        if header.shard is None or (header.shard.number, header.shard.of) != (number, of):
            raise DataError(f"{path} is of another shard; extract shard {number}/{of} again.")
        first = first or header
        differ = _difference(first, replace(header, shard=replace(header.shard, number=1)))
        if differ is not None:
            raise DataError(
                f"shards 1 and {number} of split '{split}' were made {differ};"
                f" delete the wrong one below {folder / SHARDS} and extract it again."
            )
    assert first is not None
    return first


def _difference(one: SplitHeader, other: SplitHeader) -> str | None:
    if one == other:
        return None
    assert one.shard is not None
    assert other.shard is not None
    if (one.extractor, one.fingerprint) != (other.extractor, other.fingerprint):
        return "by different extractors or weights"
    if one.photos != other.photos or one.shard.num_photos != other.shard.num_photos:
        return "from different lists of photos"
    if one.shard.batch_size != other.shard.batch_size:
        return f"with different --batch-size ({one.shard.batch_size} and {other.shard.batch_size})"
    return "with regions of different shapes"


def _merge_split(folder: Path, split: str, header: SplitHeader, progress: ProgressCallback | None) -> ExtractionReport:
    shard = header.shard
    assert shard is not None
    header = replace(header, shard=None, merged=True)
    finish_interrupted(folder, split)
    if (folder / f"{split}_ims.npy").exists():
        return _already_merged(folder, split, header, shard)
    with RegionWriter(folder, split, header) as writer:
        num_resumed = writer.num_seen
        if progress is not None:
            progress(split, num_resumed, shard.num_photos)
        whole = _Whole()
        for part in _parts(folder, split, shard):
            _append(writer, part, rows_before=len(whole.ids), skipped_before=len(whole.skipped))
            whole.add(part, split)
            if progress is not None:
                progress(split, len(whole.ids) + len(whole.skipped), shard.num_photos)
        if (whole.ids, whole.skipped) != (writer.ids, writer.skipped):
            writer.discard()
            raise DataError(f"the shards of split '{split}' changed while they were merged; merge again.")
        if not writer.ids:
            writer.discard()
            refuse_empty(split, writer.skipped)
        writer.finish(whole.captions, whole.names)
        return ExtractionReport(split, len(writer.ids), writer.skipped, num_resumed)


def _already_merged(folder: Path, split: str, header: SplitHeader, shard: Shard) -> ExtractionReport:
    """The report of a split that an earlier merge finished. Raises `DataError` where it is another one."""
    whole = _Whole()
    for part in _parts(folder, split, shard):
        whole.add(part, split)
    captions = None if whole.captions is None else dict(zip(whole.ids, whole.captions, strict=True))
    everything = whole.ids + [photo.id for photo in whole.skipped]
    return finished_report(folder, split, everything, header, captions)


def _append(writer: RegionWriter, part: _Part, *, rows_before: int, skipped_before: int) -> None:
    """Append what the writer does not have of a shard that stands behind so many rows and skipped photos."""
    store = part.store
    skipped = part.skipped[max(0, len(writer.skipped) - skipped_before) :]
    if skipped:
        writer.append([], [], skipped)
    row_bytes = store.num_regions * store.feature_dim * store.features.itemsize
    step = max(1, _BYTES_AT_ONCE // row_bytes)
    for start in range(max(0, len(writer.ids) - rows_before), len(store), step):
        rows = range(start, min(start + step, len(store)))
        writer.append([store.ids[row] for row in rows], [_regions(store, row) for row in rows])


def _regions(store: RegionStore, row: int) -> Regions:
    assert store.boxes is not None
    count = store.num_regions if store.counts is None else int(store.counts[row])
    scores = None if store.scores is None else store.scores[row, :count]
    classes = None if store.classes is None else store.classes[row, :count]
    attributes = None if store.attributes is None else store.attributes[row, :count]
    return Regions(store.features[row, :count], store.boxes[row, :count], scores, classes, attributes)


def _parts(folder: Path, split: str, shard: Shard) -> Iterator[_Part]:
    """Every shard in order, opened one at a time: a thousand memory maps are more than a process may hold."""
    for number in range(1, shard.of + 1):
        yield _open_part(shard_folder(folder, number, shard.of), split, replace(shard, number=number))


def _open_part(folder: Path, split: str, shard: Shard) -> _Part:
    store = open_region_store(folder, split)
    skipped = read_skipped(folder / f"{split}_skipped.json")
    block = shard.block()
    whole = len(store.ids) == len(store) and len(store) + len(skipped) == block.stop - block.start
    if not whole or store.boxes is None:
        raise DataError(
            f"{folder} does not hold the {block.stop - block.start} photos of its shard;"
            f" delete it and extract shard {shard.number}/{shard.of} again."
        )
    return _Part(store, _captions_of(store), skipped)


def _captions_of(store: RegionStore) -> list[list[str]] | None:
    """Captions of each row; None where the shard was extracted without."""
    path = store.folder / f"{store.split}_caps.txt"
    if not path.exists():
        return None
    per_image = store.info.captions_per_image
    counts = per_image if isinstance(per_image, list) else [per_image or 0] * len(store)
    lines = read_lines(path)
    if len(counts) != len(store) or sum(counts) != len(lines):
        raise DataError(f"{path} has {len(lines)} captions, not those of its {len(store)} photos; extract it again.")
    rest = iter(lines)
    return [list(islice(rest, count)) for count in counts]


def _keep_weights(folder: Path, of: int) -> None:
    """Shards of one extractor keep the same weights, so those of the first speak for all."""
    weights = kept_weights(shard_folder(folder, 1, of))
    if weights is not None:
        keep_weights(weights, folder)


def _refuse_foreign_files(shards: Path) -> None:
    for path in sorted(shards.iterdir()):
        if shard_of_folder(path) is None:
            raise DataError(f"{path} is no shard; move it away, or merge without --delete-shards.")


def _end_deletion(folder: Path) -> bool:
    """Remove the shards that a merge was done with; whether there were any."""
    merged = folder / _MERGED
    there = merged.exists()
    if there:
        shutil.rmtree(merged)
    return there
