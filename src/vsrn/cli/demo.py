"""`vsrn demo`: every step on a small drawn world, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from vsrn.cli.options import Device
from vsrn.cli.progress import say
from vsrn.config import CaptionerConfig, Config, DataConfig, LossConfig, ModelConfig, TrainConfig, config_to_toml
from vsrn.files import write_atomically

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
    device: Device = "auto",
    seed: int = 0,
) -> int:
    """Draw a small world, extract its regions, train VSRN on it, and search it. No data is needed.

    Every step prints the command that does the same to your own photos. It is resumable: run it again
    after Ctrl-C and it goes on.

    Args:
        output: Folder for everything the demo makes.
        train: Scenes to learn from.
        val: Scenes to be judged by.
        epochs: Passes over the captions.
        seed: Of the world that is drawn, and of the model's first weights.
    """
    world, regions, run, config = (output / name for name in ("world", "regions", "run", "toy.toml"))
    say(f"1. Drawing {train + val} scenes of coloured things, five captions each -> {world}")
    if not (world / "dataset.json").exists():
        from vsrn.toy.world import draw_toy_world

        draw_toy_world(world, train=train, val=val, seed=seed)
    write_atomically(config, config_to_toml(toy_config(regions, epochs, device, seed)).encode())
    from vsrn.training.checkpoint import STATE_FILE

    on = ["--device", device]
    photos, resume = str(world / "images"), ["--resume"] if (run / STATE_FILE).exists() else []
    captions = ["--captions", str(world / "dataset.json")]
    report = ["--html", str(output / "report.html"), "--photos", photos]
    code = (
        _step("2. Photos -> regions", "extract", photos, *captions, "-o", str(regions), *on)
        or _step("3. Regions and captions -> a model", "train", str(config), "-o", str(run), *resume)
        or _step("4. How good is it?", "evaluate", str(run), "--split", "val", *report, *on)
    )
    if code:
        return code
    _search(run, regions, device)
    say(f"\nThat was the whole way. Open {output / 'report.html'} to see what it finds and what it misses.")
    say("What to try next:")
    say(f"  vsrn train {config} --model.aggregator mean --model.reasoning_layers 0 -o {output / 'mean'}")
    say("      the same without reasoning, which is what the paper compares itself with")
    say("  vsrn extract PHOTOS --captions dataset.json -o data/mine")
    say("      the first step with your own photos; docs/data-formats.md shows the layout of the captions")
    return 0


def _step(title: str, command: str, *arguments: str) -> int:
    """Print a command, run it, and return its exit code."""
    from vsrn.cli import run_command

    say(f"\n{title}: vsrn {command} {' '.join(arguments)}")
    return run_command(command, list(arguments))


def _search(run: Path, regions: Path, device: str) -> None:
    """Step 5: three new sentences, and a caption of each picture that they find."""
    from vsrn.data.splits import open_split
    from vsrn.encoders import load_encoder

    say("\n5. Sentences that nobody wrote for these pictures:")
    encoder, split = load_encoder(run, device), open_split(regions, "val")
    images, ids = encoder.encode_regions(*split.read_images(np.arange(split.num_images))), split.image_ids()
    for sentence in SENTENCES:
        say(f'\n  "{sentence}"')
        similarities = images @ encoder.encode_captions([sentence])[0]
        for image in (-similarities).argsort()[:3]:
            caption = split.captions[int((split.image_of_caption == image).argmax())]
            say(f"    {similarities[image]:.2f}  {ids[image]}  {caption}")


def toy_config(store: Path, epochs: int, device: str = "auto", seed: int = 0) -> Config:
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
            device=device,
            seed=seed,
        ),
    )
