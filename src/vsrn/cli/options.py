"""What the commands' options share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
Json = Annotated[bool, tyro.conf.arg(name="json")]


def call(function: Callable[..., int | None], command: str, arguments: Sequence[str]) -> int:
    """Parse a command's arguments as its function's parameters, and call it."""
    return (
        tyro.cli(
            function,
            prog=f"vsrn {command}",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        or 0
    )


def print_json(content: Any) -> None:
    """One JSON object on standard output, for machines."""
    print(json.dumps(content, indent=2))
