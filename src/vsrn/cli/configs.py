"""`vsrn configs`: which configs come with vsrn, or the text of one."""

from __future__ import annotations

from typing import Annotated

import tyro

from vsrn.configs import CONFIGS, config_names
from vsrn.errors import ConfigError, did_you_mean


def main(name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = "") -> None:
    """List the configs that `vsrn train` knows by name, or print one of them.

    $ vsrn configs flickr8k > mine.toml

    Args:
        name: Config to print; without it, all are listed.
    """
    if name and name not in config_names():
        raise ConfigError(
            f"there is no packaged config '{name}'.{did_you_mean(name, config_names())} `vsrn configs` lists them."
        )
    texts = {each: (CONFIGS / f"{each}.toml").read_text(encoding="utf-8") for each in config_names()}
    if name:
        print(texts[name], end="")
        return
    width = max(map(len, texts))
    for each, text in texts.items():
        print(f"{each:<{width}}  {text.splitlines()[0].removeprefix('#').strip()}")
