"""`vsrn evaluate`: runs -> Recall@K on a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.options import Beam, Device, Json, print_json, say_unknown_share
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vsrn.data.splits import CaptionedImages
    from vsrn.encoders.base import Encoder
    from vsrn.evaluation.caption_scores import CaptionScores
    from vsrn.evaluation.eccv import ExtendedEvaluation
    from vsrn.evaluation.evaluate import Evaluation, Retrieval
    from vsrn.metrics import Ranks


def main(
    models: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")
    ],
    *,
    data: Path | None = None,
    split: str = "test",
    five_fold: bool = False,
    html: Path | None = None,
    photos: Path | None = None,
    ranks: Path | None = None,
    rerank: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
    top: int = 50,
    captions: bool = False,
    beam: Beam = 5,
    eccv: bool = False,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Recall@1, 5 and 10 both ways, median and mean rank and rsum, with 95% intervals over images.

    $ vsrn evaluate runs/flickr8k --split val
    $ vsrn evaluate runs/one runs/two --split val
    $ vsrn evaluate runs/flickr8k --split val --rerank runs/scan --top 50

    Several models are an ensemble: their similarities are averaged, as the paper does.

    Args:
        models: Runs, or models made by `vsrn convert`.
        data: Region store, or the captions for a model that reads photos [default: what the first model learned from].
        split: Name of the split on disk: train, dev, test, testall, ...
        five_fold: Average over consecutive blocks of 1,000 images: COCO 1K, on its testall split.
        html: Also write a report with example queries to this file.
        photos: Folder of the photos, for the pictures in the report and for a model that reads photos.
        ranks: Also save the rank of every query, from 0, to this .npz file.
        rerank: A second model, usually a SCAN, that re-orders the best matches of every query.
        top: Number of matches of a query that the second model re-orders.
        captions: Also write a caption for each image, and print BLEU-4 and CIDEr-D against the split's.
        eccv: Also judge COCO's 5,000 test images by CxC and ECCV Caption (docs/results.md; extra `eval`).
    """
    _check_options(models, photos=photos, html=html, captions=captions, eccv=eccv, rerank=rerank)
    from vsrn.data.photo_splits import open_split_for
    from vsrn.encoders import load_encoder
    from vsrn.evaluation.eccv import check_split, extended_evaluation

    encoders = [load_encoder(model, device) for model in models]
    opened = open_split_for(encoders[0].config, split, data=data, photos=photos)
    if eccv:
        check_split(opened)
    scores = _score_captions(encoders[0], data, split, beam) if captions else None
    retrieval = _judge(encoders, opened, None if rerank is None else load_encoder(rerank, device), str(rerank), top)
    evaluation, found = _rank(retrieval, models, five_fold=five_fold, num_examples=6 if html else 0)
    extended = extended_evaluation(opened, retrieval.blocks()) if eccv else None
    if ranks is not None:
        _save_ranks(ranks, found)
    if html is not None:
        _write_report(html, evaluation, photos, models[0])
    say_unknown_share(evaluation.unknown_share, "the model's vocabulary")
    _show(evaluation, extended, scores, beam, json=json)
    return 0


def _check_options(
    models: Sequence[Path],
    *,
    photos: Path | None,
    html: Path | None,
    captions: bool,
    eccv: bool,
    rerank: Path | None,
) -> None:
    """Raise `CheckpointError` where no model is named, and `ConfigError` for options that contradict each other."""
    if not models:
        raise CheckpointError("name at least one run to evaluate, such as runs/flickr8k.")
    if photos is not None and html is None and not any(map(_reads_photos, models)):
        raise ConfigError("--photos is for the report; add --html FILE.")
    if captions and len(models) > 1:
        raise ConfigError("--captions are those of one model; name one run.")
    if eccv and rerank is not None:
        raise ConfigError("--eccv judges whole rankings, and --rerank changes only their beginning; leave out one.")


def _reads_photos(model: Path) -> bool:
    """Whether a model has an image network of its own."""
    from vsrn.config import read_config

    config = model / "config.toml"
    return config.is_file() and bool(read_config(config).model.network.name)


def _score_captions(encoder: Encoder, data: Path | None, split: str, beam: int) -> CaptionScores:
    """Write a caption for each image of a split and score them, drawing the progress."""
    from vsrn.data.splits import open_split
    from vsrn.evaluation.caption_scores import caption_scores
    from vsrn.evaluation.evaluate import write_captions

    opened = open_split(data or encoder.config.data.path, split)
    with ProgressBar("captioning", "images", opened.num_images) as bar:
        return caption_scores(write_captions(encoder, opened, beam, bar.advance), opened.captions_by_image())


def _judge(
    encoders: Sequence[Encoder], split: CaptionedImages, second: Encoder | None, name: str, top: int
) -> Retrieval:
    """Encode a split by every model, drawing the progress; a `second` model of this `name` is to re-order."""
    from vsrn.evaluation.evaluate import Retrieval
    from vsrn.evaluation.rerank import TwoStageRetrieval

    total = (len(encoders) + (second is not None)) * (split.num_images + len(split.captions))
    with ProgressBar("encoding", "images and captions", total) as bar:
        if second is None:
            return Retrieval(encoders, split, bar.advance)
        return TwoStageRetrieval(encoders, second, split, name=name, top=top, advance=bar.advance)


def _rank(
    retrieval: Retrieval, models: Sequence[Path], *, five_fold: bool, num_examples: int
) -> tuple[Evaluation, Ranks]:
    """Rank what was encoded, drawing the progress."""
    from vsrn.evaluation.evaluate import evaluate

    with ProgressBar("comparing", "images", retrieval.split.num_images * retrieval.stages) as bar:
        names = [str(model) for model in models]
        return evaluate(retrieval, names, five_fold=five_fold, num_examples=num_examples, advance=bar.advance)


def _save_ranks(path: Path, ranks: Ranks) -> None:
    """Ranks, from 0, as an .npz with one array per direction."""
    import numpy as np

    from vsrn.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(ranks))
    say(f"Ranks of every query are in {path}.")


def _write_report(path: Path, evaluation: Evaluation, photos: Path | None, model: Path) -> None:
    """Write the HTML report, with the training curves of a run."""
    from vsrn.evaluation.report import write_html_report
    from vsrn.training.checkpoint import read_log

    missing = write_html_report(path, evaluation, photos=photos, history=read_log(model))
    say(f"The report is {path}.")
    if missing and not evaluation.has_ids:
        say(f"It shows no photos: {evaluation.data} has no {evaluation.split}_ids.txt that names its images.")
    elif missing:
        say(f"{len(missing):,} of its photos were not found in {photos} or cannot be read, such as {missing[0]}.")


def _show(
    evaluation: Evaluation,
    extended: ExtendedEvaluation | None,
    scores: CaptionScores | None,
    beam: int,
    *,
    json: bool,
) -> None:
    """Print all that was measured, as tables or as JSON."""
    from vsrn.evaluation.report import print_tables

    if json:
        written = {} if scores is None else {"captions": {"beam": beam, **scores.to_json()}}
        print_json(evaluation.to_json() | written | ({} if extended is None else {"extended": extended.to_json()}))
    else:
        print_tables(evaluation, extended, scores, beam)
