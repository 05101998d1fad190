"""What several commands share: parsing, options of the same kind, `--plugin`, JSON, and the list of skipped files."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_type_hints

import tyro

from vsrn.cli.progress import say
from vsrn.errors import ConfigError, did_you_mean, one_line
from vsrn.files import printable

if TYPE_CHECKING:
    from vsrn.data.region_store import SkippedPhoto
    from vsrn.data.stand_ins import ReadWords
    from vsrn.evaluation.caption_scores import CaptionScores
    from vsrn.evaluation.evaluate import Evaluation
    from vsrn.extractors.batches import BatchMaker
    from vsrn.search.records import SkippedRecord

    Skipped = Sequence[SkippedPhoto | SkippedRecord]

# Skipped files that are listed of each kind, and endings of other files that are counted apart.
SKIPPED_SHOWN = 20
ENDINGS_SHOWN = 8
LONGEST_ENDING = 12
# From this share of unknown words on, a model reads too little of its captions.
MANY_UNKNOWN = 1 / 3
_HEADINGS = {
    "damaged": "damaged",
    "too-large": "too large",
    "unreadable": "unreadable",
    "link": "not followed",
    "": "skipped",
}
# Of files that an extra would read, what a person calls them, and the extra.
_NEEDS = {"needs-heif": ("HEIC photo", "heif"), "needs-raw": ("raw file", "raw"), "needs-video": ("video", "video")}
# The other commands neither build nor load a model or an extractor of the user's.
WITHOUT_PLUGINS = ("configs", "demo", "import", "vocab", "convert", "metrics", "info")

_arg = tyro.conf.arg
Photos = Annotated[
    Path, tyro.conf.Positional, _arg(metavar="PHOTOS", help="Folder of photos, searched with all its folders.")
]
Index = Annotated[Path, tyro.conf.Positional, _arg(metavar="INDEX", help="Folder made by `vsrn index`.")]
Output = Annotated[
    Path, _arg(aliases=["-o"], metavar="FOLDER", help="Folder of the region store, made where there is none.")
]
Splits = Annotated[
    tuple[str, ...],
    _arg(
        aliases=["--split"],
        help="With --captions, the splits to write [default: all], or the name of the one split of captions that name"
        " none [default: train]; without, the name of the one split that holds every photo [default: photos].",
    ),
]
Restval = Annotated[bool, _arg(help="With --captions, count COCO's `restval` images as `train`.")]
FollowLinks = Annotated[bool, _arg(help="Read photos also where links lead out of the folder; an index keeps this.")]
Exclude = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
    _arg(
        metavar="GLOB...",
        help="Leave out such folders and files, besides hidden ones, those of systems and those with a file .nomedia:"
        " names as '*.png', or paths below PHOTOS. An index keeps them for its next runs, shows them (`vsrn info`), and"
        " drops photos that are left out; given anew, they replace those before, and alone --exclude clears them.",
    ),
]
Float32 = Annotated[bool, _arg(help="Keep features as float32, not as float16; twice the size.")]
BatchSize = Annotated[int, _arg(help="Photos that are finished, and safe on disk, at a time.")]
Decoders = Annotated[
    int | None,
    _arg(help="Threads, or for a GPU processes, that decode photos ahead [default: one for each processor, or 8]."),
]
Beam = Annotated[int, _arg(help="Partial captions kept at every step, 1 to 100; 1 takes the likeliest word each time.")]
Model = Annotated[
    str | None,
    _arg(
        metavar="MODEL",
        help="A run, an exported folder, or a packaged model [default: flickr8k-small; for an index that is there, its"
        " own].",
    ),
]
Uri = Annotated[str, _arg(help="Server or file of an index made with --engine milvus --uri.")]
Force = Annotated[bool, _arg(help="Replace the file if it is there.")]
Ray = Annotated[
    str | None,
    _arg(
        metavar="ADDRESS",
        help="Do the work on a Ray cluster that sees the photos by the same paths (docs/scaling.md); `local` starts"
        " one here.",
    ),
]
Device = Annotated[str, _arg(metavar="DEVICE", help="Where to compute: cpu, cuda, mps, or auto for the best there is.")]
Precision = Annotated[
    Literal["fp32", "bf16"], _arg(help="bf16 rounds weights and products, which is faster; for models that torch runs.")
]
EncodedAtOnce = Annotated[
    int | None, _arg(help="Images worked on at a time [default: 128; of photos that are extracted here, 32].")
]
Seed = Annotated[int, _arg(help="Of the draws that the 95% intervals come from.")]
Weights = Annotated[
    tuple[float, ...], _arg(metavar="NUMBER...", help="How much each model of an ensemble counts [default: all alike].")
]
Json = Annotated[bool, _arg(help="Print the result as JSON.")]
Format = Annotated[
    Literal["table", "csv", "markdown", "latex", "json"],
    _arg(help="How to print the result; --json is short for --format json."),
]
Plugins = Annotated[
    tuple[str, ...],
    _arg(
        metavar="MODULE",
        help="Modules that register parts of your own (docs/extending.md), installed or on PYTHONPATH.",
    ),
]


def call(function: Callable[..., int | None], command: str, arguments: Sequence[str]) -> int:
    """Parse a command's arguments as the parameters of its function, call it, and return its exit code.

    Most commands also take `--plugin MODULE...` and import those modules before anything else. Nothing but this option
    imports a plugin: a model's folder or an index never does. Raises `ConfigError` for arguments that cannot be read.
    """
    parameters = list(inspect.signature(function).parameters.values())
    hints = get_type_hints(function, include_extras=True)
    if command not in WITHOUT_PLUGINS:
        parameters.append(inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=Plugins))
        hints["plugin"] = Plugins
    for parameter in parameters:
        # The text of an option says what leaving it out means, better than "(default: None)".
        if parameter.default in (None, "", ()):
            hints[parameter.name] = Annotated[hints[parameter.name], _arg(help_behavior_hint="")]
        if parameter.default is None and (metavar := _metavar_without_none(hints[parameter.name])):
            hints[parameter.name] = Annotated[hints[parameter.name], _arg(metavar=metavar)]

    def run(*positional: Any, plugin: Sequence[str] = (), **options: Any) -> Callable[[], int | None]:
        def work() -> int | None:
            import_plugins(plugin)
            return function(*positional, **options)

        return work

    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__, run.__doc__ = hints, function.__doc__
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            work = tyro.cli(run, prog=f"vsrn {command}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as ended:
        if not ended.code:
            raise
        options = [f"--{parameter.name.replace('_', '-')}" for parameter in parameters]
        raise ConfigError(f"{mistake_in(said.getvalue(), options)} See `vsrn {command} --help`.") from None
    return work() or 0


def mistake_in(box: str, options: Sequence[str]) -> str:
    """What tyro says about wrong arguments in a box, as a sentence, without the help that it repeats.

    options  that there are, such as "--device"; the nearest one is named for a word that is none

    >>> print(mistake_in("╭─ Title ─╮\\n│ Unrecognized options: --devise │\\n│ ─── │\\n│ For help ... │", ["--device"]))
    Unrecognized options: --devise. Did you mean '--device'?
    """
    # The first line is the title. Where the terminal has no UTF-8, the box is one of dashes and blanks.
    lines = (line.strip("│|+ ") for line in box.strip("\n").splitlines()[1:])
    text = "\n".join(line if line.strip("─╰╯-") else "" for line in lines).strip("\n")
    said = text.partition("\n\n")[0].replace("\n", " ") or "these arguments cannot be read"
    unknown = re.findall(r"--[^\s=,]+", said) if said.startswith("Unrecognized") else []
    return f"{said.rstrip('.')}.{''.join(did_you_mean(word, options) for word in unknown)}"


def _metavar_without_none(hint: Any) -> str:
    """What help calls the value of an option that may be left out, instead of tyro's "{None}|PATH"; "" for its own."""
    kind, *notes = get_args(hint)
    if any(getattr(note, "metavar", None) for note in notes):
        return ""
    kinds = [member for member in get_args(kind) if member is not type(None)]
    return {Path: "PATH", str: "STR", int: "INT"}.get(kinds[0], "") if len(kinds) == 1 else ""


# Processes that this one starts need them too.
imported_plugins: list[str] = []


def import_plugins(modules: Sequence[str]) -> None:
    """Import modules by their dotted names. Raises `ConfigError` where one cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
            imported_plugins.append(module)
        except ConfigError:
            raise
        except Exception as error:
            # A module may fail with any error while it is imported.
            reason = one_line(f"{type(error).__name__}: {error}")
            raise ConfigError(
                f"--plugin {module} cannot be imported ({reason}); name an installed module, or put its folder on"
                " PYTHONPATH."
            ) from error


def check_from_one(**options: int | None) -> None:
    """Raise `ConfigError` where an option that was given is below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be 1 or more.")


def print_json(content: Any) -> None:
    """Print one JSON object on standard output, for machines."""
    print(json.dumps(content, indent=2))


def say_words(words: ReadWords) -> None:
    """Say on standard error what became of words that a model never read, where a sentence has any."""
    for sentence in words.sentences():
        say(printable(sentence))


def say_unknown_share(share: float, whose: str) -> None:
    """Say on standard error which share, 0 to 1, of the words of captions some vocabulary lacks; nothing of none."""
    if share:
        say(f"{share:.1%} of the words of these captions are not in {whose}.")
    if share > MANY_UNKNOWN:
        say("warning: that is more than a third; captions of this language and kind need a vocabulary of their own.")


def batches_of(ray: str | None, device: str, cluster: contextlib.ExitStack) -> BatchMaker:
    """Who reads photos: this machine for a `device`, or the Ray cluster at an address, which is left with `cluster`."""
    if ray is None:
        from vsrn.extractors.batches import batches_for

        return batches_for(device, imported_plugins)
    from vsrn.extractors.ray import ray_batches

    say(f"Connecting to Ray ({printable(ray)})...")
    return cluster.enter_context(ray_batches(ray))


def skipped_json(skipped: Skipped) -> list[dict[str, str]]:
    """Skipped files for machines."""
    return [{"id": file.id, "kind": file.kind, "reason": file.reason} for file in skipped]


def skipped_lines(skipped: Skipped) -> list[str]:
    """Indented lines for a person about skipped files: those that are damaged and the like, each with its reason up to
    `SKIPPED_SHOWN` of a kind, then what is no photo, and what needs an extra, as one line each.
    """
    lines: list[str] = []
    for kind, heading in _HEADINGS.items():
        reasons = [printable(file.reason) for file in skipped if file.kind == kind]
        if reasons:
            lines += [f"  {len(reasons):,} {heading}:", *(f"    {reason}" for reason in reasons[:SKIPPED_SHOWN])]
        if len(reasons) > SKIPPED_SHOWN:
            lines.append(f"    and {len(reasons) - SKIPPED_SHOWN:,} more")
    no_photos = [file.id for file in skipped if file.kind == "no-photo"]
    if no_photos:
        files = "other file was" if len(no_photos) == 1 else "other files were"
        lines.append(f"  {len(no_photos):,} {files} passed over ({_by_ending(no_photos)})")
    for kind, (what, extra) in _NEEDS.items():
        count = sum(file.kind == kind for file in skipped)
        if count:
            files = f"{what} needs" if count == 1 else f"{what}s need"
            lines.append(f"  {count:,} {files} the extra {extra}: run `pip install '.[{extra}]'` in the checkout")
    return lines


def left_out_lines(num_folders: int, num_files: int, globs: Sequence[str] = ()) -> list[str]:
    """Indented lines for a person about folders and files that were left out, and the globs that an index keeps."""
    counts = [(num_folders, "folder"), (num_files, "file")]
    said = " and ".join(f"{count:,} {noun}{'s' * (count != 1)}" for count, noun in counts if count)
    was = "was" if num_folders + num_files == 1 else "were"
    lines = [f"  {said} {was} left out (hidden, of the system, excluded, or part of a photo)"] if said else []
    return lines + ([f"  kept for the next runs: --exclude {' '.join(map(printable, globs))}"] if globs else [])


def _by_ending(names: Sequence[str]) -> str:
    """How many names have which ending, the most frequent first: "58 .json, 1 .mp4, 1 without an ending"."""
    endings = (PurePosixPath(name).suffix.lower() for name in names)
    named = (printable(end) if 1 < len(end) <= LONGEST_ENDING else "without an ending" for end in endings)
    counts = Counter(named).most_common()
    shown = [f"{count:,} {ending}" for ending, count in counts[:ENDINGS_SHOWN]]
    others = sum(count for _, count in counts[ENDINGS_SHOWN:])
    return ", ".join([*shown, f"{others:,} with other endings"] if others else shown)


def print_evaluation(
    evaluation: Evaluation,
    form: str,
    extended: dict[str, Any] | None = None,
    scores: CaptionScores | None = None,
    beam: int = 0,
) -> None:
    """Print all that was measured on standard output, as the field's tables or as JSON; other forms have the recalls.

    Of other measures, `extended` are CxC and ECCV Caption, and `scores` those of captions written with a `beam`.
    """
    from vsrn.evaluation import tables

    if form == "json":
        written = {} if scores is None else {"captions": {"beam": beam, **scores.to_json()}}
        print_json(evaluation.to_json() | written | ({} if extended is None else {"extended": extended}))
    elif form == "table":
        tables.print_tables(evaluation, extended, scores, beam)
    else:
        print(tables.as_lines(evaluation, cast("tables.TextFormat", form)))
