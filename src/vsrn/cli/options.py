"""What the commands' options share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
Json = Annotated[bool, tyro.conf.arg(name="json")]


def call(function: Callable[..., int | None], command: str, arguments: Sequence[str]) -> int:
    """Parse a command's arguments as its function's parameters, and call it."""
    _leave_out_empty_defaults(function)
    return (
        tyro.cli(
            function,
            prog=f"vsrn {command}",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        or 0
    )


def _leave_out_empty_defaults(function: Callable[..., int | None]) -> None:
    """What is left out means something, which the help text says; "(default: None)" behind it says nothing."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default in (None, "", ()):
            hints[name] = Annotated[hints[name], tyro.conf.arg(help_behavior_hint="")]
    function.__annotations__ = hints


def print_json(content: Any) -> None:
    """One JSON object on standard output, for machines."""
    print(json.dumps(content, indent=2))


def printable(name: Path | str) -> str:
    r"""A name on one line, without what a terminal would act on.

    >>> printable("beach\x1b[2J.jpg")
    'beach\\x1b[2J.jpg'
    """
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
