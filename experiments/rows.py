"""The rows of the Flickr8K comparison: what each one is called, and the settings in which it differs.

All share the data, the sizes and the budget of configs/flickr8k.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIG = "configs/flickr8k.toml"
NO_CAPTIONER = ("--model.captioner.enabled", "False")
MEAN = ("--model.aggregator", "mean", "--model.normalisation", "none", *NO_CAPTIONER)


@dataclass(frozen=True)
class Row:
    """One model of the table.

    settings  what `vsrn train` is given beside the config
    seeds     a run each
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    config: str = CONFIG


@dataclass(frozen=True)
class Combination:
    """One line of the table made of runs that are rows already.

    models    runs as NAME-SEED, whose similarities are averaged
    settings  what `vsrn evaluate` is given beside them; {runs} is the folder of the runs
    """

    name: str
    title: str
    models: tuple[str, ...]
    settings: tuple[str, ...] = ()


def reasoning(layers: int) -> tuple[str, ...]:
    """Mean pooling over regions that have reasoned."""
    return ("--model.reasoning_layers", str(layers), *MEAN)


THREE_SEEDS = (0, 1, 2)

ROWS = (
    Row("mean-pooling", "mean pooling (VSE++ on regions)", reasoning(0), THREE_SEEDS),
    Row("vsrn", "+ captioner = VSRN", (), THREE_SEEDS),
    Row("global", "+ global semantic reasoning", NO_CAPTIONER),
    Row("reasoning-4", "mean pooling + 4 reasoning layers", reasoning(4)),
    Row("vse-infinity", "VSE-infinity", (), (0,), "configs/vse-infinity/flickr8k.toml"),
    Row("scan", "SCAN, text-to-image", (), THREE_SEEDS, "configs/scan/flickr8k.toml"),
    Row("global-shuffled", "regions shuffled", (*NO_CAPTIONER, "--data.region_order", "shuffled")),
    Row("global-reversed", "regions reversed", (*NO_CAPTIONER, "--data.region_order", "reversed")),
    Row("reasoning-1", "mean pooling + 1 reasoning layer", reasoning(1)),
    Row("reasoning-2", "mean pooling + 2 reasoning layers", reasoning(2)),
)

COMBINATIONS = (
    Combination("vsrn-ensemble", "two VSRN", ("vsrn-1", "vsrn-2")),
    Combination("mean-ensemble", "two mean pooling", ("mean-pooling-1", "mean-pooling-2")),
    Combination("vsrn-mean-ensemble", "VSRN and mean pooling", ("vsrn-1", "mean-pooling-1")),
    Combination(
        "vsrn-scan", "VSRN, its best 50 re-ranked by SCAN", ("vsrn-1",), ("--rerank", "{runs}/scan-0", "--top", "50")
    ),
)

ORDER_SHOWN = (
    "mean-pooling",
    "reasoning-1",
    "reasoning-2",
    "reasoning-4",
    "global",
    "vsrn",
    "global-reversed",
    "global-shuffled",
    "scan",
    "vse-infinity",
    "vsrn-scan",
    "mean-ensemble",
    "vsrn-ensemble",
    "vsrn-mean-ensemble",
)

COMPARED = (
    ("vsrn", "mean-pooling"),
    ("scan", "mean-pooling"),
    ("scan", "vsrn"),
    ("vse-infinity", "mean-pooling"),
    ("scan", "vse-infinity"),
    ("reasoning-1", "mean-pooling"),
    ("reasoning-4", "mean-pooling"),
    ("global", "reasoning-4"),
    ("vsrn", "global"),
    ("global-shuffled", "global"),
    ("global-reversed", "global"),
    ("vsrn-scan", "vsrn"),
    ("vsrn-ensemble", "vsrn"),
)
