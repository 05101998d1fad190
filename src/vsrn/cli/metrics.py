"""`vsrn metrics`: similarities of any model -> Recall@K."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Format, Json, Seed, Weights, print_evaluation
from vsrn.errors import ConfigError


def main(
    files: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SIMILARITIES...", help_behavior_hint="")
    ],
    *,
    image_of_caption: Annotated[str, tyro.conf.arg(metavar="FILE|N-per-image")] = "",
    weights: Weights = (),
    five_fold: bool = False,
    seed: Seed = 0,
    format: Format = "table",
    json: Json = False,
) -> None:
    """Recall@1, 5 and 10 both ways, median and mean rank and rsum of similarities that any model made.

    $ vsrn metrics scores.npy
    $ vsrn metrics mine.npy theirs.npy --weights 0.7 0.3 --image-of-caption 5-per-image

    Several files are an ensemble: their similarities are averaged. `vsrn evaluate --similarities` writes such files.

    Args:
        files: .npy arrays (images, captions), larger is closer; or .npz files with one array.
        image_of_caption: The row of each caption's image, from 0: .npy, .npz, .json, or text with one a line; or
            5-per-image [default: SIMILARITIES.image_of_caption.npy where it is there; else as many as divide evenly].
        five_fold: Average over consecutive blocks of 1,000 images, each with its own captions: COCO 1K.
    """
    if not files:
        raise ConfigError("no similarities are named; write vsrn metrics SIMILARITIES.npy.")
    from dataclasses import replace

    from vsrn.evaluation.arrays import read_owners, read_similarities
    from vsrn.evaluation.measure import mean_similarities, recall

    scores = mean_similarities([read_similarities(file) for file in files], weights or None)
    found = recall(scores, read_owners(image_of_caption, files), five_fold=five_fold, seed=seed)
    counted = list(weights) if weights and len(files) > 1 else None
    print_evaluation(replace(found, models=[str(file) for file in files], weights=counted), "json" if json else format)
