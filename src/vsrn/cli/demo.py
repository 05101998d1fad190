"""`vsrn demo`: every step on a small drawn world, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vsrn.cli.progress import say
from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder
    from vsrn.evaluation.evaluate import Retrieval

SENTENCES = (
    "a small yellow star that sits inside something round and red",
    "a white box in a green ring, and it is dark",
    "a red boat at sea, to the left of an orange star",
)


def main(
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = Path("demo"),
    train: int = 500,
    val: int = 100,
    epochs: int = 16,
) -> int:
    """Draw a small world, extract its regions, train VSRN on it, and search it. No data is needed.

    Every step prints the command that does the same to your own photos. It is resumable: run it again
    after Ctrl-C and it goes on.

    Args:
        output: Folder for everything the demo makes.
        train: Scenes to learn from.
        val: Scenes to be judged by.
        epochs: Passes over the captions.
    """
    draw(output, train, val)
    extract(output)
    train_model(output, epochs)
    encoder, retrieval = evaluate(output)
    search(encoder, retrieval)
    say(f"\nThat was the whole way. Open {output / 'report.html'} to see what it finds and what it misses.")
    say("What to try next:")
    say(f"  vsrn train {output / 'toy.toml'} --model.aggregator mean --model.reasoning_layers 0 -o {output / 'mean'}")
    say("      the same without reasoning, which is what the paper compares itself with")
    say("  vsrn extract PHOTOS --captions dataset.json -o data/mine")
    say("      the first step with your own photos; docs/data-formats.md shows the layout of the captions")
    return 0


def draw(output: Path, train: int, val: int) -> None:
    """Step 1: draw the world, unless an earlier demo did."""
    from vsrn.toy.world import draw_toy_world

    say(f"1. Drawing {train + val} scenes of coloured things, five captions each -> {output / 'world'}")
    if not (output / "world" / "dataset.json").exists():
        draw_toy_world(output / "world", train=train, val=val)


def extract(output: Path) -> None:
    """Step 2: what `vsrn extract` does."""
    world, store = output / "world", output / "regions"
    say(f"\n2. Photos -> regions: vsrn extract {world / 'images'} --captions {world / 'dataset.json'} -o {store}")
    from vsrn.cli.extract import main as extract_command

    extract_command(world / "images", output=store, captions=world / "dataset.json")


def train_model(output: Path, epochs: int) -> None:
    """Step 3: what `vsrn train` does, with a config that is written to disk for the user to change."""
    from vsrn.cli.train import train as train_command
    from vsrn.config import config_to_toml
    from vsrn.files import write_atomically
    from vsrn.training.checkpoint import STATE_FILE

    run, config = output / "run", toy_config(output / "regions", epochs)
    write_atomically(output / "toy.toml", config_to_toml(config).encode())
    say(f"\n3. Regions and captions -> a model: vsrn train {output / 'toy.toml'} -o {run}")
    if train_command(config, run, resume=(run / STATE_FILE).exists(), json=False) != 0:
        raise KeyboardInterrupt


def evaluate(output: Path) -> tuple[Encoder, Retrieval]:
    """Step 4: what `vsrn evaluate` does."""
    from rich.console import Console

    from vsrn.data.splits import open_split
    from vsrn.encoders import load_encoder
    from vsrn.evaluation.evaluate import Retrieval, evaluate
    from vsrn.evaluation.report import evaluation_table, write_html_report
    from vsrn.training.checkpoint import read_log

    run, photos, report = output / "run", output / "world" / "images", output / "report.html"
    say(f"\n4. How good is it? vsrn evaluate {run} --split val --html {report} --photos {photos}")
    encoder = load_encoder(run)
    retrieval = Retrieval([encoder], open_split(output / "regions", "val"))
    evaluation, _ = evaluate(retrieval, [str(run)], num_examples=8)
    Console().print(evaluation_table(evaluation))
    write_html_report(report, evaluation, photos=photos, history=read_log(run))
    return encoder, retrieval


def search(encoder: Encoder, retrieval: Retrieval) -> None:
    """Step 5: three new sentences, and a caption of each picture that they find."""
    say("\n5. Sentences that nobody wrote for these pictures:")
    split, encoded = retrieval.split, retrieval.encoded[0]
    ids = split.image_ids()
    for sentence in SENTENCES:
        say(f'\n  "{sentence}"')
        similarities = encoded.images @ encoder.encode_captions([sentence])[0]
        for image in (-similarities).argsort()[:3]:
            caption = split.captions[int((split.image_of_caption == image).argmax())]
            say(f"    {similarities[image]:.2f}  {ids[image]}  {caption}")


def toy_config(store: Path, epochs: int) -> Config:
    """A small VSRN for a laptop: every part of the paper's model.

    The loss has all negatives: with the hardest alone, a fresh model needs more steps than a demo has.
    """
    return Config(
        data=DataConfig(path=str(store), validation="val"),
        model=ModelConfig(
            joint_dim=128,
            word_dim=64,
            normalisation="flickr30k",
            captioner=CaptionerConfig(hidden_dim=96, word_dim=64, max_tokens=20),
        ),
        loss=LossConfig(negatives="all"),
        train=TrainConfig(
            batch_size=64,
            epochs=epochs,
            learning_rate=1e-3,
            # A run of one epoch ends before its rate could drop.
            learning_rate_drop=[epochs * 3 // 4] if epochs > 1 else [],
            validate_every=0,
        ),
    )
