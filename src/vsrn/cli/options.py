"""What several commands share: parsing, options of the same kind, `--plugin`, JSON, and the list of skipped files."""

from __future__ import annotations

import importlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, get_type_hints

import tyro

from vsrn.errors import ConfigError
from vsrn.files import printable

__all__ = [
    "ENDINGS_SHOWN",
    "SKIPPED_SHOWN",
    "Device",
    "Json",
    "Output",
    "call",
    "print_json",
    "printable",
    "skipped_lines",
]

# Skipped files that are listed of each kind, and endings of other files that are counted apart.
SKIPPED_SHOWN = 20
ENDINGS_SHOWN = 8
LONGEST_ENDING = 12
_HEADINGS = {
    "damaged": "damaged",
    "too-large": "too large",
    "unreadable": "unreadable",
    "link": "not followed",
    "": "skipped",
}

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
Json = Annotated[bool, tyro.conf.arg(name="json")]
Device = Annotated[
    str, tyro.conf.arg(metavar="DEVICE", help="Where to compute: cpu, cuda, mps, or auto for the best one there is.")
]


def call(function: Callable[..., int | None], command: str, arguments: Sequence[str]) -> int:
    """Parse a command's arguments as the parameters of its function, call it, and return its exit code."""
    if command in PLUGIN_COMMANDS:
        function = with_plugins(function)
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
    """Keep "(default: None)" out of the help: the text of an option says what leaving it out means."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default in (None, "", ()):
            hints[name] = Annotated[hints[name], tyro.conf.arg(help_behavior_hint="")]
    function.__annotations__ = hints


def print_json(content: Any) -> None:
    """Print one JSON object on standard output, for machines."""
    print(json.dumps(content, indent=2))


def skipped_lines(skipped: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines for a person about skipped files: damaged photos first, each with its reason; what is no photo as one line.

    skipped  id, kind (a `vsrn.errors.SkipKind`, or "" where an older run did not say) and reason of each

    Of one kind, the first `SKIPPED_SHOWN` are listed and the others counted.
    """
    lines: list[str] = []
    for kind, heading in _HEADINGS.items():
        reasons = [reason for _, its_kind, reason in skipped if its_kind == kind]
        if reasons:
            lines.append(f"{len(reasons):,} {heading}:")
            lines += [f"  {printable(reason)}" for reason in reasons[:SKIPPED_SHOWN]]
        if len(reasons) > SKIPPED_SHOWN:
            lines.append(f"  and {len(reasons) - SKIPPED_SHOWN:,} more")
    no_photos = [photo_id for photo_id, kind, _ in skipped if kind == "no-photo"]
    if no_photos:
        files = "other file was" if len(no_photos) == 1 else "other files were"
        lines.append(f"{len(no_photos):,} {files} passed over ({_by_ending(no_photos)})")
    return lines


def _by_ending(names: Sequence[str]) -> str:
    """How many names have which ending, the most frequent first: "58 .json, 1 .mp4, 1 without an ending"."""
    counts = Counter(_ending(name) for name in names).most_common()
    shown = [f"{count:,} {ending}" for ending, count in counts[:ENDINGS_SHOWN]]
    others = sum(count for _, count in counts[ENDINGS_SHOWN:])
    return ", ".join([*shown, f"{others:,} with other endings"] if others else shown)


def _ending(name: str) -> str:
    ending = PurePosixPath(name).suffix.lower()
    return printable(ending) if 1 < len(ending) <= LONGEST_ENDING else "without an ending"


# The commands that build or load a model or an extractor.
PLUGIN_COMMANDS = (
    "extract",
    "train",
    "evaluate",
    "index",
    "search",
    "caption",
    "explain",
    "export",
    "serve",
    "compare",
)
Modules = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        metavar="MODULE",
        help="Modules that register parts of your own (docs/extending.md), installed or on PYTHONPATH.",
        help_behavior_hint="",
    ),
]


def with_plugins(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """A command that also takes `--plugin MODULE...`, and imports those modules before it does anything else.

    Nothing but this option imports a plugin: a model's folder or an index never does.
    """

    def command(*arguments: Any, plugin: tuple[str, ...] = (), **options: Any) -> int | None:
        import_plugins(plugin)
        return main(*arguments, **options)

    signature = inspect.signature(main)
    option = inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=Modules)
    vars(command)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    command.__annotations__ = get_type_hints(main, include_extras=True) | {"plugin": Modules}
    command.__doc__ = main.__doc__
    return command


def import_plugins(modules: Sequence[str]) -> None:
    """Import modules by their dotted names. Raises `ConfigError` where one cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ConfigError:
            raise
        except Exception as error:
            # A module may fail with any error while it is imported.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConfigError(
                f"--plugin {module} cannot be imported ({reason}); name an installed module, or put its folder on"
                " PYTHONPATH."
            ) from error
