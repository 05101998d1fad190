"""From published features to a region store: what `vsrn extract --from-tsv` does.

with TsvFiles(["trainval_36.tsv"], unpack_in=Path("store")) as tsv:
    extract_tsv(tsv, "store", "photos")
    extract_tsv_karpathy(tsv, "dataset_coco.json", "store", restval=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vsrn.captions.karpathy import CaptionedPhoto, read_karpathy
from vsrn.errors import DataError
from vsrn.regions.batches import SettledBatch, made_ready
from vsrn.regions.extract import ExtractionReport, ProgressCallback, choose_splits, refuse_settings, write_split
from vsrn.regions.names import names_of
from vsrn.regions.store import Regions
from vsrn.regions.tsv import TsvFiles
from vsrn.regions.writer import SkippedPhoto, SplitHeader, digest_of, refuse_split_name


def extract_tsv(
    tsv: TsvFiles,
    folder: Path | str,
    split: str,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> ExtractionReport:
    """All photos of the files into one split of the region store `folder`, in their order, without captions.

    batch_size  photos settled at a time; what a kill costs at most
    workers     threads that read ahead

    Killed at any moment and called again, it goes on. Raises `DataError` where a line is wrong (`TsvFiles.read`),
    where the split was made from other photos, or where the disk is full; `ConfigError` where `batch_size` or
    `workers` is below 1.
    """
    ids = {image_id: image_id for image_id in tsv.lines}
    return _write(tsv, folder, split, ids, None, batch_size, workers, progress)


def extract_tsv_karpathy(
    tsv: TsvFiles,
    dataset: Path | str,
    folder: Path | str,
    *,
    splits: Sequence[str] = (),
    restval: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    progress: ProgressCallback | None = None,
) -> list[ExtractionReport]:
    """The splits of a Karpathy JSON with their captions, in the JSON's order; a photo that no line has is skipped.

    splits   those to write; without any, all of which the files have a photo
    restval  whether `restval` images count as `train`

    A photo's line is the one named by its `cocoid`, its path, its file name with or without ending, or the number
    in COCO's file names. The rest, and what is raised, as in `extract_tsv` and `read_karpathy`; `DataError` also for
    a split that the JSON does not have, or of which the files have no photo.
    """
    found = read_karpathy(dataset, restval=restval)
    wanted = choose_splits(dataset, found, splits)
    lines = {split: _lines_of(found[split], tsv) for split in wanted}
    if not splits:
        wanted = [split for split in wanted if any(lines[split].values())]
    for split in wanted or list(found)[:1]:
        if not any(lines[split].values()):
            raise DataError(
                f"no line of the TSV files is of a photo of {dataset}'s split '{split}': it has photos such as"
                f" {found[split][0].id}, the files images such as {next(iter(tsv.lines))}."
            )
    return [
        _write(
            tsv,
            folder,
            split,
            lines[split],
            {photo.id: photo.captions for photo in found[split]},
            batch_size,
            workers,
            progress,
        )
        for split in wanted
    ]


def _lines_of(photos: Sequence[CaptionedPhoto], tsv: TsvFiles) -> dict[str, str | None]:
    """Photo id -> the image id of its line, None where it has none."""
    return {
        photo.id: next((name for name in names_of(photo.id, photo.cocoid) if name in tsv.lines), None)
        for photo in photos
    }


def _write(
    tsv: TsvFiles,
    folder: Path | str,
    split: str,
    lines: Mapping[str, str | None],
    captions: Mapping[str, Sequence[str]] | None,
    batch_size: int,
    workers: int,
    progress: ProgressCallback | None,
) -> ExtractionReport:
    refuse_settings(batch_size, workers)
    refuse_split_name(split)
    present = [line for line in lines.values() if line is not None]
    feature_dim = tsv.read(present[0]).features.shape[1]
    header = SplitHeader(
        # Nobody knows the weights that made published features; stores of precomputed features do not name them either.
        extractor="",
        fingerprint="",
        photos=digest_of(list(lines)),
        num_regions=max(tsv.lines[line].num_boxes for line in present),
        feature_dim=feature_dim,
    )

    def read(photo_id: str) -> Regions | SkippedPhoto:
        line = lines[photo_id]
        if line is None:
            return SkippedPhoto(photo_id, f"{photo_id} has no line in the TSV files.")
        regions = tsv.read(line)
        if regions.features.shape[1] != feature_dim:
            place, others = tsv.lines[line].place, tsv.lines[present[0]].place
            raise DataError(
                f"{place} has features of {regions.features.shape[1]} numbers, but {others} of {feature_dim};"
                " files of different detectors do not mix."
            )
        return regions

    def settle_from(start: int) -> Iterator[SettledBatch]:
        for batch, got in made_ready(list(lines)[start:], read, batch_size, workers):
            pairs = [(photo_id, one) for photo_id, one in zip(batch, got, strict=True) if isinstance(one, Regions)]
            skipped = [one for one in got if isinstance(one, SkippedPhoto)]
            yield SettledBatch([photo_id for photo_id, _ in pairs], [regions for _, regions in pairs], skipped)

    return write_split(Path(folder), split, header, list(lines), settle_from, captions=captions, progress=progress)
