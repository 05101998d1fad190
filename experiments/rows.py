"""The rows of the Flickr8K comparison: models, the recipes that each may have, and the order in which they are trained.

Every row of our own has the same trials, and the held-out photos choose one of them. Rows of 2019's recipe have that
recipe alone, since it is what they ask about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]
WINDOWS, OBJECTS = "windows", "objects"
BOTH = (WINDOWS, OBJECTS)
BEST = "best"

RECIPE: Settings = {
    "data.held_out": "configs/flickr8k-held-out.txt",
    "model.joint_dim": 512,
    "train.batch_size": 256,
    "train.learning_rate": 1e-3,
    "train.drop_regions": 0.2,
    "train.validate_every": 0,
    "train.precision": "bf16",
    "train.loggers": [],
}
SHORT: Settings = {"train.epochs": 6, "train.learning_rate_drop": [5]}
LONG: Settings = {"train.epochs": 12, "train.learning_rate_drop": [10]}
CONTRASTIVE: Settings = {"loss.matching": "contrastive", "loss.temperature": 0.05}
HARDEST: Settings = {"loss.matching": "triplet", "loss.warm_up_epochs": 2}
TRIALS: dict[str, Settings] = {
    "contrastive": SHORT | CONTRASTIVE,
    "hardest": LONG | HARDEST,
    "contrastive-long": LONG | CONTRASTIVE,
}
# The recipe of 2019 for Flickr30K, without its captioner, and half of its 30 epochs; a setting that differs is undone
# by one row each.
OF_2019: Settings = {
    "model.normalisation": "flickr30k",
    "train.batch_size": 128,
    "train.learning_rate": 2e-4,
    "train.learning_rate_drop": [5, 10],
    "train.epochs": 15,
    "train.drop_regions": 0.0,
}
PUBLISHED: dict[str, Settings] = {"2019": {}}


@dataclass(frozen=True)
class Row:
    """One model of the table.

    settings  fields of the config by their dotted names, beside those of the recipe and of the trial
    regions   the kinds of regions that it is trained on
    trials    recipes by name, of which the held-out photos choose one
    """

    name: str
    title: str
    settings: Settings = field(default_factory=dict)
    regions: tuple[str, ...] = BOTH
    trials: dict[str, Settings] = field(default_factory=lambda: TRIALS)


@dataclass(frozen=True)
class Job:
    """One training run.

    trial  a recipe of the row, or `BEST` for the one that the held-out photos chose for seed 0
    """

    row: Row
    trial: str
    seed: int
    regions: str

    @property
    def key(self) -> str:
        """What results call it."""
        return f"{self.regions}/{self.row.name}/{self.trial}/{self.seed}"

    def settings(self) -> Settings:
        """Every field of the config that is not the default, but for the folder of the regions and the device."""
        return RECIPE | self.row.trials[self.trial] | self.row.settings | {"train.seed": self.seed}


@dataclass(frozen=True)
class Combination:
    """One line of the table that is made of trained rows, each as the held-out photos chose it.

    parts     (row, seed); their similarities are averaged
    reranked  whether the second part re-orders the best 50 that the first one finds, instead
    """

    name: str
    title: str
    parts: tuple[tuple[str, int], ...]
    reranked: bool = False


def vsrn(layers: int, aggregator: str, **more: Any) -> Settings:
    """Settings of a VSRN without captioner, without normalisation."""
    return {
        "model.reasoning_layers": layers,
        "model.aggregator": aggregator,
        "model.normalisation": "none",
        "model.captioner.enabled": False,
        **more,
    }


CAPTIONER: Settings = {
    "model.captioner.enabled": True,
    "model.captioner.hidden_dim": 512,
    "model.captioner.max_tokens": 40,
}
POOLING: Settings = {"model.caption_aggregator": "gpo", "model.caption_bidirectional": True}
SCAN: Settings = {"model.kind": "scan", "train.batch_size": 128}
TO_IMAGE: Settings = {"model.scan.direction": "text_to_image"}
TO_TEXT: Settings = {
    "model.scan.direction": "image_to_text",
    "model.scan.inverse_temperature": 4.0,
    "model.scan.logsumexp_factor": 5.0,
}
GRU = vsrn(4, "gru")
GRU_2019 = GRU | OF_2019
ORDER = "data.region_order"

# Rows that a claim of the paper rests on: three seeds each.
CLAIMS = (
    Row("mean", "mean pooling (VSE++ on regions)", vsrn(0, "mean")),
    Row("layers-4", "mean pooling + 4 reasoning layers", vsrn(4, "mean")),
    Row("gru", "4 layers + GRU, last state (global semantic reasoning)", GRU),
    Row("vsrn", "4 layers + GRU + captioner = VSRN", GRU | CAPTIONER),
    Row("gru-reversed", "4 layers + GRU, regions reversed (objects: rising confidence)", GRU | {ORDER: "reversed"}),
    Row("gru-mean", "4 layers + GRU, mean of its states", vsrn(4, "gru-mean")),
    Row("vse-infinity", "VSE-infinity", vsrn(0, "gpo") | POOLING),
)
OTHERS = (
    Row("scan", "SCAN, text-to-image", SCAN | TO_IMAGE),
    Row("gru-centre-in", "4 layers + GRU, from the border to the centre", GRU | {ORDER: "centre-in"}, (WINDOWS,)),
    Row("vsrn-mean-states", "VSRN, mean of the GRU's states", vsrn(4, "gru-mean") | CAPTIONER),
    Row("vsrn-reversed", "VSRN, rising confidence", GRU | CAPTIONER | {ORDER: "reversed"}, (OBJECTS,)),
    Row("gru-residual", "4 layers + GRU, last state + mean of the regions", vsrn(4, "gru-residual")),
    Row("bigru", "4 layers + GRU, both directions", vsrn(4, "bigru")),
    Row("layers-1", "mean pooling + 1 reasoning layer", vsrn(1, "mean")),
    Row("layers-2", "mean pooling + 2 reasoning layers", vsrn(2, "mean")),
    Row("scan-i2t", "SCAN, image-to-text", SCAN | TO_TEXT),
    Row("gru-shuffled", "4 layers + GRU, regions shuffled", GRU | {ORDER: "shuffled"}),
    Row("gru-centre-out", "4 layers + GRU, from the centre to the border", GRU | {ORDER: "centre-out"}, (WINDOWS,)),
)
# What in the recipe of 2019 holds it back: all of it, then without one thing each.
WHOLE_2019 = (
    Row(
        "2019",
        "VSRN, the 2019 recipe at full length",
        GRU_2019 | CAPTIONER | {"train.epochs": 30, "train.learning_rate_drop": [10, 20]},
        trials=PUBLISHED,
    ),
    Row("2019-gru", "2019 recipe without captioner, 15 epochs", GRU_2019, trials=PUBLISHED),
)
UNDONE_2019 = tuple(
    Row(f"2019-{name}", f"the same, {title}", GRU_2019 | settings, trials=PUBLISHED)
    for name, title, settings in (
        ("no-norm", "without normalisation", {"model.normalisation": "none"}),
        ("contrastive", "contrastive loss", CONTRASTIVE),
        ("mean", "mean instead of the GRU", {"model.aggregator": "mean"}),
        ("rate", "learning rate 1e-3", {"train.learning_rate": 1e-3}),
        ("warm-up", "two epochs of warm-up to the hardest negatives", {"loss.warm_up_epochs": 2}),
        ("reversed", "regions reversed", {ORDER: "reversed"}),
        ("drop", "a fifth of the regions dropped", {"train.drop_regions": 0.2}),
        ("layers", "without reasoning layers", {"model.reasoning_layers": 0}),
    )
)
# At 1,024 dimensions with the recipes that the held-out photos chose at 512: VSRN's differ by the kind of regions.
WIDE = tuple(
    Row(
        f"{row.name}-1024",
        f"{row.title}, 1,024 dimensions",
        row.settings | {"model.joint_dim": 1024},
        trials={name: TRIALS[name] for name in recipes},
    )
    for row, recipes in (
        (CLAIMS[0], ("contrastive",)),
        (CLAIMS[1], ("contrastive",)),
        (CLAIMS[3], ("contrastive", "hardest")),
        (CLAIMS[6], ("contrastive",)),
    )
)
ROWS = (*CLAIMS, *OTHERS, *WHOLE_2019, *UNDONE_2019, *WIDE)
BY_NAME = {row.name: row for row in ROWS}

COMBINATIONS = (
    Combination("scan-ensemble", "SCAN, both ways", (("scan", 0), ("scan-i2t", 0))),
    Combination("mean-ensemble", "two mean pooling", (("mean", 0), ("mean", 1))),
    Combination("vsrn-ensemble", "two VSRN, seeds 1 and 2", (("vsrn", 1), ("vsrn", 2))),
    Combination("vsrn-mean", "VSRN and mean pooling", (("vsrn", 0), ("mean", 0))),
    Combination("vsrn-scan", "VSRN, its best 50 re-ranked by SCAN", (("vsrn", 0), ("scan", 0)), reranked=True),
    Combination("mean-scan", "mean pooling, its best 50 re-ranked by SCAN", (("mean", 0), ("scan", 0)), reranked=True),
)
COMBINED = {row for combination in COMBINATIONS for row, _ in combination.parts}

SHOWN = (
    *("mean", "layers-1", "layers-2", "layers-4", "gru", "gru-reversed", "gru-shuffled", "gru-centre-out"),
    *("gru-centre-in", "gru-mean", "gru-residual", "bigru", "vsrn", "vsrn-reversed", "vsrn-mean-states"),
    *("vse-infinity", "scan", "scan-i2t"),
    *(combination.name for combination in COMBINATIONS),
    *(row.name for row in (*WIDE, *WHOLE_2019, *UNDONE_2019)),
)
COMPARED = (
    *(("layers-1", "mean"), ("layers-2", "mean"), ("layers-4", "mean")),
    *(("gru", "layers-4"), ("gru-mean", "layers-4"), ("gru-residual", "layers-4"), ("bigru", "layers-4")),
    *(("gru", "mean"), ("bigru", "gru"), ("gru-mean", "gru")),
    *(("gru-reversed", "gru"), ("gru-shuffled", "gru"), ("gru-centre-out", "gru"), ("gru-centre-in", "gru")),
    *(("vsrn", "gru"), ("vsrn-reversed", "gru-reversed"), ("vsrn-mean-states", "gru-mean"), ("vsrn", "mean")),
    *(("vsrn", "vse-infinity"), ("scan-i2t", "scan")),
    *(("vse-infinity", "mean"), ("scan", "mean"), ("scan", "vsrn"), ("scan", "vse-infinity")),
    *(("scan-ensemble", "scan"), ("mean-ensemble", "mean"), ("vsrn-ensemble", "vsrn"), ("vsrn-mean", "mean")),
    *(("vsrn-mean", "mean-ensemble"), ("vsrn-scan", "vsrn"), ("vsrn-scan", "scan"), ("mean-scan", "mean")),
    *(("mean-scan", "scan"), ("vsrn-scan", "mean-scan"), ("vsrn", "2019")),
    *((row.name, "2019-gru") for row in UNDONE_2019),
    *((row.name, row.name.removesuffix("-1024")) for row in WIDE),
)
# What each pair would show if its interval were above 0.
ANSWERS = (
    ("1 reasoning layer helps mean pooling", "layers-1", "mean"),
    ("2 reasoning layers help", "layers-2", "mean"),
    ("4 reasoning layers help", "layers-4", "mean"),
    ("the GRU helps, over 4 layers", "gru", "layers-4"),
    ("its order is better than a shuffled one", "gru", "gru-shuffled"),
    ("its order is better than the reverse", "gru", "gru-reversed"),
    ("a GRU in both directions helps, over 4 layers", "bigru", "layers-4"),
    ("the mean of the GRU's states helps, over 4 layers", "gru-mean", "layers-4"),
    ("the captioner helps: VSRN is ahead of 4 layers + GRU", "vsrn", "gru"),
    ("VSRN is ahead of mean pooling", "vsrn", "mean"),
    ("VSRN is ahead of SCAN, text-to-image", "vsrn", "scan"),
    ("VSRN is ahead of VSE-infinity", "vsrn", "vse-infinity"),
    ("two mean pooling are ahead of one", "mean-ensemble", "mean"),
    ("two VSRN are ahead of one", "vsrn-ensemble", "vsrn"),
    ("mean pooling gains more by VSRN than by a second mean pooling", "vsrn-mean", "mean-ensemble"),
    ("re-ranking by SCAN helps VSRN", "vsrn-scan", "vsrn"),
    ("VSRN re-ranked by SCAN is ahead of SCAN", "vsrn-scan", "scan"),
    *((f"2019's recipe gains: {row.title.removeprefix('the same, ')}", row.name, "2019-gru") for row in UNDONE_2019),
)
# Pairs that are also compared recipe by recipe, since the held-out photos chose different ones.
COMPARED_BY_TRIAL = (("layers-4", "mean"), ("gru", "layers-4"), ("gru-mean", "layers-4"), ("vsrn", "gru"))


def jobs(rows: Sequence[Row] = ROWS, regions: Sequence[str] = BOTH) -> list[Job]:
    """Every job, the most valuable ones first: all rows once, then what the claims rest on, then the rest."""
    first, second, third = TRIALS

    def of(some: Sequence[Row], trial: str, seed: int = 0) -> Iterator[Job]:
        for row in some:
            for kind in row.regions:
                yield Job(row, trial, seed, kind)

    ordered = [
        *of(CLAIMS, first),
        *of(OTHERS[:1], first),
        *of(CLAIMS, second),
        *of(OTHERS[1:], first),
        *of(CLAIMS, third),
        *of(WHOLE_2019, "2019"),
        *of(CLAIMS, BEST, 1),
        *of(CLAIMS, BEST, 2),
        *of(OTHERS[:1], second),
        *of(UNDONE_2019, "2019"),
        *of(OTHERS[1:], second),
        *of(OTHERS, third),
        *of(WIDE, first),
        *of([row for row in WIDE if second in row.trials], second),
    ]
    names = {row.name for row in rows}
    return [job for job in ordered if job.row.name in names and job.regions in regions]
