"""`--plugin`: modules that a person names on the command line, and that register extractors or parts of models."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import tyro

from vsrn.errors import ConfigError

# The commands that build or load a model or an extractor.
COMMANDS = ("extract", "train", "evaluate", "index", "search", "caption", "explain", "export", "serve", "compare")
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
