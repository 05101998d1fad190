"""The command line: one file a command. A command is a typed function; its docstring is its help.

Only the command that is asked for is imported, so `vsrn --help` needs no torch.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import vsrn
from vsrn.errors import VsrnError, did_you_mean
from vsrn.files import printable

COMMANDS = {
    "demo": "draw a small world and go the whole way: regions, training, Recall@K, searches, a report",
    "extract": "photos -> a region store",
    "import-tsv": "features published as bottom-up attention's TSV -> a region store",
    "compare": "photos and features -> whether an extractor makes these features",
    "vocab": "captions -> a vocabulary",
    "train": "a config -> a trained run",
    "index": "a folder of photos -> an index of it, or an index brought in step with its folder",
    "search": "a sentence or a photo -> the photos of an index that fit it",
    "caption": "photos -> a sentence written for each",
    "explain": "a photo and a sentence -> a picture of the regions that earned the match",
    "serve": "an index -> a page in the browser, and HTTP for other programs",
    "evaluate": "runs -> Recall@K on a split",
    "convert": "a checkpoint published in 2019 -> a model that `evaluate` reads",
    "export": "a run -> the part of it that travels, or ONNX encoders that need no torch",
}
USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if arguments else USAGE_ERROR)
    if arguments[0] == "--version":
        print(f"vsrn {vsrn.__version__}")
        sys.exit(0)
    command, *rest = arguments
    if command not in COMMANDS:
        fail(f"there is no command '{command}'.{did_you_mean(command, COMMANDS)} See `vsrn --help`.")
    sys.exit(run_command(command, rest))


def run_command(command: str, arguments: list[str]) -> int:
    """Import and run one command; the errors that a user may cause become one line each."""
    try:
        module = importlib.import_module(f"vsrn.cli.{command.replace('-', '_')}")
        return int(module.run(arguments) or 0)
    except VsrnError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return complain(_about(error))
    except MemoryError:
        return complain("the memory is used up; free some, or ask for less at a time (a smaller --batch-size).")


def _about(error: OSError) -> str:
    """One sentence for what the operating system refused, which no part of vsrn has put into words."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "no space left on the disk; free some and run the same command again (`vsrn train` with --resume)."
    what = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if not what:
        return f"the operating system refused something ({reason})."
    return f"{what} cannot be written or read ({reason})."


def complain(message: str) -> int:
    """Print a user's mistake, without what a terminal would act on, and return the exit code for it.

    Names of files, and what libraries say of their content, may hold line breaks and control characters.
    """
    one_line = " ".join(line.strip() for line in message.splitlines())
    print(f"error: {printable(one_line)}", file=sys.stderr)
    return USAGE_ERROR


def fail(message: str) -> None:
    """Print a user's mistake and exit."""
    sys.exit(complain(message))


def usage() -> str:
    """What `vsrn --help` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: vsrn COMMAND [OPTIONS]\n\n"
        "Visual semantic reasoning for image-text matching (VSRN, ICCV 2019).\n\n"
        f"{listed}\n\n"
        "`vsrn COMMAND --help` teaches one command. New here? Start with `vsrn demo`."
    )
