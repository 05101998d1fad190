"""`vsrn evaluate`: models -> Recall@K on a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vsrn.cli import options
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import CheckpointError, ConfigError
from vsrn.pretrained import find_model

if TYPE_CHECKING:
    from vsrn.data.splits import CaptionedImages
    from vsrn.encoders.base import Encoder
    from vsrn.evaluation.caption_scores import CaptionScores
    from vsrn.evaluation.evaluate import Evaluation, Retrieval


_arg = tyro.conf.arg
Html = Annotated[Path | None, _arg(metavar="FILE.html", help="Also write a report with example queries to this file.")]
RanksFile = Annotated[Path | None, _arg(metavar="FILE.npz", help="Also save the rank of every query, from 0.")]


def main(
    models: Annotated[
        tuple[Path, ...], tyro.conf.Positional, _arg(metavar="MODEL...", help_behavior_hint="(required)")
    ],
    *,
    data: Path | None = None,
    split: str = "test",
    photos: Path | None = None,
    weights: options.Weights = (),
    rerank: Annotated[Path | None, _arg(metavar="MODEL")] = None,
    top: int = 50,
    five_fold: bool = False,
    eccv: bool = False,
    score_captions: bool = False,
    beam: options.Beam = 5,
    html: Html = None,
    similarities: Annotated[Path | None, _arg(metavar="FILE.npy")] = None,
    embeddings: Annotated[Path | None, _arg(metavar="FILE.npz|FOLDER")] = None,
    ranks: RanksFile = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.EncodedAtOnce = None,
    workers: options.Decoders = None,
    seed: options.Seed = 0,
    format: options.Format = "table",
    json: options.Json = False,
) -> None:
    """Recall@1, 5 and 10 both ways, median and mean rank and rsum, with 95% intervals over images.

    $ vsrn evaluate runs/flickr8k --split val
    $ vsrn evaluate runs/one runs/two --split val --weights 0.7 0.3
    $ vsrn evaluate runs/flickr8k --split val --rerank runs/scan --top 50

    Several models, of any kinds, are an ensemble: their similarities are averaged, as the paper does.

    Args:
        models: Runs, models made by `vsrn convert`, exported folders, or packaged models.
        data: Region store, or the captions for a model that reads photos [default: what the first model learned from].
        split: Name of the split on disk: train, dev, test, testall, ...
        photos: Folder of the photos, for the pictures in the report and for a model that reads photos.
        rerank: A second model, usually a SCAN, that re-orders the best matches of every query.
        top: Number of matches of a query that the second model re-orders.
        five_fold: Average over consecutive blocks of 1,000 images: COCO 1K, on its testall split.
        eccv: Also judge COCO's 5,000 test images by CxC and ECCV Caption (docs/results.md; extra `eval`).
        score_captions: Also write a caption for each image, and print BLEU-4 and CIDEr-D against the split's.
        similarities: Also save the (images, captions) similarities, float32, and the image of each caption beside them.
        embeddings: Also save the vectors of images and captions, the image of each caption, and the images' ids.
    """
    _check_options(models, similarities, embeddings, captions=score_captions, eccv=eccv, rerank=rerank)
    options.check_from_one(batch_size=batch_size, workers=workers)
    encoders = _load(models, weights, device, precision)
    opened = _open(encoders[0], split, five_fold, eccv, html, data=data, photos=photos, workers=workers)
    scores = _score_captions(encoders[0], data, split, beam) if score_captions else None
    second = None if rerank is None else _load([rerank], (), device, precision)[0]
    retrieval = _encode(encoders, opened, second, str(rerank), top, weights=weights or None, batch_size=batch_size)
    evaluation = _rank(retrieval, models, five_fold=five_fold, num_examples=6 if html else 0, seed=seed)
    _save(retrieval, evaluation, similarities, embeddings, ranks)
    _write_report(html, evaluation, photos, models[0])
    extended = _extended(retrieval) if eccv else None
    options.print_evaluation(evaluation, "json" if json else format, extended, scores, beam)


def _check_options(
    models: Sequence[Path],
    similarities: Path | None,
    embeddings: Path | None,
    *,
    captions: bool,
    eccv: bool,
    rerank: Path | None,
) -> None:
    """Raise `CheckpointError` where no model is named, and `ConfigError` for options that contradict each other."""
    if not models:
        raise CheckpointError("name at least one model to evaluate, such as runs/flickr8k.")
    alone = "--score-captions" if captions else "--embeddings" if embeddings else ""
    if alone and len(models) > 1:
        raise ConfigError(f"{alone} are those of one model; name one.")
    whole = "--eccv judges" if eccv else "--similarities are" if similarities else ""
    if whole and rerank is not None:
        raise ConfigError(f"{whole} whole rankings, and --rerank changes only their beginning; leave out one.")
    if similarities is not None:
        from vsrn.evaluation.arrays import check_similarities_path

        check_similarities_path(similarities)


def _load(models: Sequence[Path], weights: Sequence[float], device: str, precision: options.Precision) -> list[Encoder]:
    """Load the models of an ensemble, and say once where it averages numbers of different scales."""
    from vsrn.encoders import load_encoder
    from vsrn.evaluation.evaluate import check_weights

    check_weights(weights or None, len(models))
    encoders = [load_encoder(find_model(model), device, precision) for model in models]
    scales = sorted({encoder.similarity_name for encoder in encoders})
    if len(scales) > 1:
        say(f"These models' similarities have different scales ({', '.join(scales)}); --weights can balance them.")
    return encoders


def _open(
    encoder: Encoder, split: str, five_fold: bool, eccv: bool, html: Path | None, *, photos: Path | None, **where: Any
) -> CaptionedImages:
    """Open a split by `open_split_for`; one that cannot be judged as was asked is refused before it is encoded."""
    from vsrn.data.photo_splits import open_split_for
    from vsrn.evaluation.eccv import check_split
    from vsrn.metrics import five_folds

    if photos and html is None and not encoder.config.model.network.name:
        raise ConfigError("--photos is for the report; add --html FILE.")
    opened = open_split_for(encoder.config, split, photos=photos, **where)
    if five_fold:
        five_folds(opened.num_images)
    if eccv:
        check_split(opened)
    return opened


def _rank(retrieval: Retrieval, models: Sequence[Path], **settings: Any) -> Evaluation:
    """Rank what was encoded by `evaluate`, drawing the progress, and say how many words the models lack."""
    from vsrn.evaluation.evaluate import evaluate

    compared = retrieval.split.num_images * (1 if retrieval.second is None else 2)
    with ProgressBar("comparing", "images", compared) as bar:
        evaluation = evaluate(retrieval, [str(model) for model in models], advance=bar.advance, **settings)
    options.say_unknown_share(evaluation.unknown_share, "the model's vocabulary")
    return evaluation


def _extended(retrieval: Retrieval) -> dict[str, Any]:
    """Judge by CxC and ECCV Caption."""
    from vsrn.evaluation.eccv import extended_evaluation

    return extended_evaluation(retrieval.split, retrieval.encoded, retrieval.weights)


def _score_captions(encoder: Encoder, data: Path | None, split: str, beam: int) -> CaptionScores:
    """Write a caption for each image of a split and score them, drawing the progress."""
    from vsrn.data.splits import open_split
    from vsrn.evaluation.caption_scores import caption_scores
    from vsrn.evaluation.evaluate import write_captions

    opened = open_split(data or encoder.config.data.path, split)
    with ProgressBar("captioning", "images", opened.num_images) as bar:
        return caption_scores(write_captions(encoder, opened, beam, bar.advance), opened.captions_by_image())


def _encode(
    encoders: Sequence[Encoder], split: CaptionedImages, second: Encoder | None, name: str, top: int, **settings: Any
) -> Retrieval:
    """Encode a split by every model, drawing the progress; all but the encoders are arguments of `Retrieval`."""
    from vsrn.evaluation.evaluate import Retrieval

    total = (len(encoders) + (second is not None)) * (split.num_images + len(split.captions))
    with ProgressBar("encoding", "images and captions", total) as bar:
        return Retrieval(encoders, split, bar.advance, second=second, name=name, top=top, **settings)


def _save(
    retrieval: Retrieval, evaluation: Evaluation, similarities: Path | None, embeddings: Path | None, ranks: Path | None
) -> None:
    """Write the arrays that were asked for, and say where they are."""
    import numpy as np

    from vsrn.evaluation.arrays import owners_path, write_embeddings, write_similarities
    from vsrn.files import replacing

    if similarities is not None:
        with ProgressBar("saving", "images", retrieval.split.num_images) as bar:
            write_similarities(similarities, retrieval, bar.advance)
        say(f"Similarities are in {similarities}, the image of each caption in {owners_path(similarities)}.")
    if embeddings is not None:
        say(f"In {embeddings}: {', '.join(write_embeddings(embeddings, retrieval))}.")
    if ranks is not None:
        ranks.parent.mkdir(parents=True, exist_ok=True)
        with replacing(ranks) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(evaluation.ranks))
        say(f"Ranks of every query are in {ranks}.")


def _write_report(path: Path | None, evaluation: Evaluation, photos: Path | None, model: Path) -> None:
    """Write the HTML report, with the training curves of a run, where a path is given."""
    if path is None:
        return
    from vsrn.evaluation.report import write_html_report
    from vsrn.training.checkpoint import read_log

    missing = write_html_report(path, evaluation, photos=photos, history=read_log(model))
    say(f"The report is {path}.")
    if missing and not evaluation.has_ids:
        say(f"It shows no photos: {evaluation.data} has no {evaluation.split}_ids.txt that names its images.")
    elif missing:
        say(f"{len(missing):,} of its photos were not found in {photos} or cannot be read, such as {missing[0]}.")
