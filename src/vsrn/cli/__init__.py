"""The command line: one file a command. A command is a typed function `main`; its docstring is its help.

Only the command that is asked for is imported, so `vsrn --help` needs no torch. A command whose options depend on its
arguments has a function `main_for(arguments)` instead, which returns `main`; one that reads more forms than the
parser does has `as_typed(arguments)`, which returns the forms that it takes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import keyword
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import vsrn
from vsrn.errors import UnknownWordsWarning, VsrnError, did_you_mean, one_line
from vsrn.files import printable

COMMANDS = {
    "demo": "every step on a small drawn world: regions, training, Recall@K, searches, a report",
    "extract": "photos -> a region store",
    "import": "features that somebody published, in whatever form -> a region store",
    "compare": "photos and features -> whether an extractor makes these features",
    "vocab": "captions -> a vocabulary",
    "train": "a config -> a trained run",
    "configs": "the configs that come with vsrn, for `vsrn train NAME`",
    "index": "folders of photos -> an index of them; run again, it follows the folders",
    "info": "an index -> what it holds, what it was made of, and how it is",
    "search": "a sentence or a photo -> the photos of an index that fit it",
    "caption": "photos -> a sentence written for each",
    "explain": "a photo and a sentence -> a picture of the regions that earned the match",
    "serve": "an index -> a page in the browser, and HTTP for other programs",
    "evaluate": "models -> Recall@K on a split",
    "metrics": "similarities of any model -> Recall@K",
    "convert": "a checkpoint published in 2019 -> a model of ours",
    "export": "a run -> the files that a search needs, or ONNX encoders that need no torch",
}
# Options of `vsrn extract` that became commands of their own.
BECAME = {"--from-tsv": "import", "--compare": "compare"}
USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        try:
            print(versions() if arguments[:1] == ["--version"] else usage(), flush=True)
        except BrokenPipeError:
            _expect_no_reader()
        sys.exit(0 if arguments else USAGE_ERROR)
    command, *rest = arguments
    option = next((option for option in BECAME if command == "extract" and option in rest), None)
    if option is not None:
        print(f"`vsrn extract {option}` is `vsrn {BECAME[option]}` now; running that.", file=sys.stderr)
        # The features of `--compare FEATURES PHOTOS` come last now, the files of `--from-tsv FILES` first.
        before, (features, *after) = rest[: rest.index(option)], rest[rest.index(option) + 1 :] or [""]
        moved = [*before, *after, features] if option == "--compare" else [features, *after, *before]
        command, rest = BECAME[option], moved
    command = "import" if command == "import-tsv" else command  # what it was called before
    if command not in COMMANDS:
        sys.exit(complain(f"there is no command '{command}'.{did_you_mean(command, COMMANDS)} See `vsrn --help`."))
    sys.exit(run_command(command, rest))


def run_command(command: str, arguments: list[str]) -> int:
    """Import and run one command, and return its exit code. An error that a user may cause becomes one line."""
    try:
        from vsrn.cli.options import call

        # No module can be called "import".
        module = importlib.import_module(f"vsrn.cli.{command.replace('-', '_')}{'_' * keyword.iskeyword(command)}")
        if hasattr(module, "as_typed"):
            arguments = module.as_typed(arguments)
        function = module.main_for(arguments) if hasattr(module, "main_for") else module.main
        with warnings.catch_warnings():
            # Commands name such words themselves.
            warnings.simplefilter("ignore", UnknownWordsWarning)
            return call(function, command, arguments)
    except VsrnError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        print("\nStopped; everything finished is kept. The same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _expect_no_reader()
        return 0
    except OSError as error:
        return complain(_about(error))
    except MemoryError:
        return complain("the memory is used up; free some, or ask for less at a time (a smaller --batch-size).")


def _expect_no_reader() -> None:
    """Write no more: whoever read our output, such as `head`, has closed it, and Python would complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about(error: OSError) -> str:
    """One sentence for an error of the operating system that no part of vsrn has translated."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "no space left on the disk; free some and run the same command again (`vsrn train` with --resume)."
    what = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or one_line(error)
    if not what:
        return f"the operating system refused something ({reason})."
    return f"{what} cannot be written or read ({reason})."


def complain(message: str) -> int:
    """Print a user's mistake as one line on standard error, and return the exit code for it.

    Control characters are escaped: names of files, and messages of libraries, may hold them.
    """
    sentence = " ".join(line.strip() for line in message.splitlines())
    print(f"error: {printable(sentence)}", file=sys.stderr)
    return USAGE_ERROR


def versions() -> str:
    """What `vsrn --version` prints: the versions of vsrn, of Python and of what computes, for a report of a fault."""
    # It takes as long to import as all else that --help needs, 20 ms.
    from importlib import metadata

    lines = [f"vsrn {vsrn.__version__}", f"Python {platform.python_version()} on {platform.platform(terse=True)}"]
    for package in ("torch", "torchvision", "timm", "onnxruntime", "numpy", "faiss-cpu"):
        # The package itself, which may take seconds, is not imported.
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{package} {metadata.version(package)}")
    return "\n".join(lines)


def usage() -> str:
    """What `vsrn --help` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: vsrn COMMAND [OPTIONS]\n\n"
        "Visual semantic reasoning for image-text matching (VSRN, ICCV 2019).\n\n"
        f"{listed}\n\n"
        "`vsrn COMMAND --help` explains one command. New here? Start with `vsrn demo`.\n"
        f"The guides, docs/..., are in {printable(str(guides()))}."
    )


def guides() -> Path:
    """The folder of the guides that help and errors name: the installed package's own, or the checkout's."""
    package = Path(vsrn.__file__).parent
    installed = package / "docs"
    return installed if installed.is_dir() else package.parents[1] / "docs"
