"""`vsrn evaluate`: models -> Recall@K on a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vsrn.cli.options import (
    Beam,
    Decoders,
    Device,
    EncodedAtOnce,
    Format,
    Json,
    Precision,
    Seed,
    Weights,
    check_from_one,
    print_evaluation,
    print_json,
    say_unknown_share,
)
from vsrn.cli.progress import ProgressBar, say
from vsrn.errors import CheckpointError, ConfigError
from vsrn.pretrained import find_model

if TYPE_CHECKING:
    from vsrn.data.splits import CaptionedImages
    from vsrn.encoders.base import Encoder
    from vsrn.encoders.torch_backend import Precision as PrecisionName
    from vsrn.evaluation.caption_scores import CaptionScores
    from vsrn.evaluation.evaluate import Evaluation, Retrieval
    from vsrn.metrics import Ranks


_arg = tyro.conf.arg
ScoreCaptions = Annotated[
    bool,
    _arg(
        aliases=["--captions"],
        help="Also write a caption for each image, and print BLEU-4 and CIDEr-D against the split's.",
    ),
]
Html = Annotated[Path | None, _arg(metavar="FILE.html", help="Also write a report with example queries to this file.")]
Similarities = Annotated[
    Path | None,
    _arg(
        metavar="FILE.npy",
        help="Also save the (images, captions) similarities, float32, and the image of each caption beside them.",
    ),
]
Embeddings = Annotated[
    Path | None,
    _arg(
        metavar="FILE.npz|FOLDER",
        help="Also save the vectors of images and captions, the image of each caption, and the images' ids.",
    ),
]
RanksFile = Annotated[Path | None, _arg(metavar="FILE.npz", help="Also save the rank of every query, from 0.")]


def main_for(arguments: Sequence[str]) -> Callable[..., int]:
    """The command; `--captions`, the older name of an option, is answered by a note."""
    if any(word.partition("=")[0] == "--captions" for word in arguments):
        say("--captions is now called --score-captions.")
    return main


def main(
    models: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...", help_behavior_hint="(required)")
    ],
    *,
    data: Path | None = None,
    split: str = "test",
    photos: Path | None = None,
    weights: Weights = (),
    rerank: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    top: int = 50,
    five_fold: bool = False,
    eccv: bool = False,
    score_captions: ScoreCaptions = False,
    beam: Beam = 5,
    html: Html = None,
    similarities: Similarities = None,
    embeddings: Embeddings = None,
    ranks: RanksFile = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: EncodedAtOnce = None,
    workers: Decoders = None,
    seed: Seed = 0,
    format: Format = "table",
    json: Json = False,
) -> int:
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
    """
    given = {"--photos": photos, "--html": html, "--similarities": similarities, "--embeddings": embeddings}
    _check_options(models, given, captions=score_captions, eccv=eccv, rerank=rerank)
    check_from_one(batch_size=batch_size, workers=workers)
    encoders = _load(models, weights, device, precision)
    opened = _open(encoders[0], split, data, photos, workers, five_fold=five_fold, eccv=eccv)
    scores = _score_captions(encoders[0], data, split, beam) if score_captions else None
    second = None if rerank is None else _load([rerank], (), device, precision)[0]
    settings: dict[str, Any] = {"weights": weights or None, "batch_size": batch_size}
    retrieval = _judge(encoders, opened, second, str(rerank), top, settings)
    evaluation = _rank(retrieval, models, five_fold=five_fold, num_examples=6 if html else 0, seed=seed)
    _save(retrieval, evaluation, similarities, embeddings, ranks)
    if html is not None:
        _write_report(html, evaluation, photos, models[0])
    _show(evaluation, _extended(retrieval) if eccv else None, scores, beam, "json" if json else format)
    return 0


def _check_options(
    models: Sequence[Path],
    given: Mapping[str, Path | None],
    *,
    captions: bool,
    eccv: bool,
    rerank: Path | None,
) -> None:
    """Raise `CheckpointError` where no model is named, and `ConfigError` for options that contradict each other."""
    if not models:
        raise CheckpointError("name at least one model to evaluate, such as runs/flickr8k.")
    if given["--photos"] and given["--html"] is None and not any(map(_reads_photos, models)):
        raise ConfigError("--photos is for the report; add --html FILE.")
    alone = "--score-captions" if captions else "--embeddings" if given["--embeddings"] else ""
    if alone and len(models) > 1:
        raise ConfigError(f"{alone} are those of one model; name one.")
    whole = "--eccv judges" if eccv else "--similarities are" if given["--similarities"] else ""
    if whole and rerank is not None:
        raise ConfigError(f"{whole} whole rankings, and --rerank changes only their beginning; leave out one.")
    if given["--similarities"] is not None:
        from vsrn.evaluation.arrays import check_similarities_path

        check_similarities_path(given["--similarities"])


def _load(models: Sequence[Path], weights: Sequence[float], device: str, precision: PrecisionName) -> list[Encoder]:
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
    encoder: Encoder,
    split: str,
    data: Path | None,
    photos: Path | None,
    workers: int | None,
    *,
    five_fold: bool,
    eccv: bool,
) -> CaptionedImages:
    """Open the split, and refuse one that cannot be judged as was asked before anything is encoded."""
    from vsrn.data.photo_splits import open_split_for
    from vsrn.evaluation.eccv import check_split
    from vsrn.metrics import five_folds

    opened = open_split_for(encoder.config, split, data=data, photos=photos, workers=workers)
    if five_fold:
        five_folds(opened.num_images)
    if eccv:
        check_split(opened)
    return opened


def _rank(retrieval: Retrieval, models: Sequence[Path], *, five_fold: bool, num_examples: int, seed: int) -> Evaluation:
    """Rank what was encoded, drawing the progress."""
    from vsrn.evaluation.evaluate import evaluate

    names = [str(model) for model in models]
    with ProgressBar("comparing", "images", retrieval.split.num_images * retrieval.stages) as bar:
        settings: dict[str, Any] = {"num_examples": num_examples, "advance": bar.advance, "seed": seed}
        return evaluate(retrieval, names, five_fold=five_fold, **settings)


def _extended(retrieval: Retrieval) -> dict[str, Any]:
    """Judge by CxC and ECCV Caption."""
    from vsrn.evaluation.eccv import extended_evaluation

    return extended_evaluation(retrieval.split, retrieval.encoded, retrieval.weights)


def _reads_photos(model: Path) -> bool:
    """Whether a model has an image network of its own."""
    from vsrn.config import read_config

    config = find_model(model) / "config.toml"
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
    encoders: Sequence[Encoder],
    split: CaptionedImages,
    second: Encoder | None,
    name: str,
    top: int,
    settings: dict[str, Any],
) -> Retrieval:
    """Encode a split by every model, drawing the progress; a `second` model of this `name` is to re-order."""
    from vsrn.evaluation.evaluate import Retrieval

    total = (len(encoders) + (second is not None)) * (split.num_images + len(split.captions))
    with ProgressBar("encoding", "images and captions", total) as bar:
        return Retrieval(encoders, split, bar.advance, second=second, name=name, top=top, **settings)


def _save(
    retrieval: Retrieval, evaluation: Evaluation, similarities: Path | None, embeddings: Path | None, ranks: Path | None
) -> None:
    """Write the arrays that were asked for, and say where they are."""
    from vsrn.evaluation.arrays import owners_path, write_embeddings, write_similarities

    if similarities is not None:
        with ProgressBar("saving", "images", retrieval.split.num_images) as bar:
            write_similarities(similarities, retrieval, bar.advance)
        say(f"Similarities are in {similarities}, the image of each caption in {owners_path(similarities)}.")
    if embeddings is not None:
        say(f"In {embeddings}: {', '.join(write_embeddings(embeddings, retrieval))}.")
    if ranks is not None:
        _save_ranks(ranks, evaluation.ranks)


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
    extended: dict[str, Any] | None,
    scores: CaptionScores | None,
    beam: int,
    form: str,
) -> None:
    """Print all that was measured, as tables or as JSON; CSV, Markdown and LaTeX have the recalls alone."""
    from vsrn.evaluation.tables import print_tables

    say_unknown_share(evaluation.unknown_share, "the model's vocabulary")
    if form == "json":
        written = {} if scores is None else {"captions": {"beam": beam, **scores.to_json()}}
        print_json(evaluation.to_json() | written | ({} if extended is None else {"extended": extended}))
    elif form == "table":
        print_tables(evaluation, extended, scores, beam)
    else:
        print_evaluation(evaluation, form)
