"""Models that come inside the package, by name."""

from __future__ import annotations

from pathlib import Path

from vsrn.errors import CheckpointError

DEFAULT_MODEL = "flickr8k-small"
PACKAGED_MODELS = (DEFAULT_MODEL,)
MODELS = Path(__file__).parent


def not_a_folder(path: Path) -> str:
    """The sentence about a file that was named where a model's folder is needed."""
    if path.name.endswith((".pth.tar", ".pth", ".pt", ".tar", ".ckpt")):
        return (
            f"{path} is a file; turn a checkpoint of 2019 into a model with"
            f" `vsrn convert {path} --vocab VOCABULARY -o FOLDER`, and name that folder."
        )
    such = "" if path.parent == Path() else f", such as {path.parent}"
    return f"{path} is a file; name the folder of a run or of an exported model{such}."


def find_model(name: Path | str = DEFAULT_MODEL) -> Path:
    """The folder of a model: a run or an exported folder as it is named, or a packaged model by its name.

    A folder that is there goes before a packaged model of the same name. Raises `CheckpointError` where neither is.

    >>> find_model("flickr9k-small")
    Traceback (most recent call last):
    ...
    vsrn.errors.CheckpointError: there is no folder flickr9k-small, nor a packaged model of that name; name a run, an\
 exported folder, or one of flickr8k-small.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(not_a_folder(folder))
    if str(name) not in PACKAGED_MODELS:
        known = ", ".join(PACKAGED_MODELS)
        raise CheckpointError(
            f"there is no folder {name}, nor a packaged model of that name; name a run, an exported folder,"
            f" or one of {known}."
        )
    packaged = MODELS / str(name)
    if not packaged.is_dir():
        raise CheckpointError(
            f"the packaged model '{name}' is not part of this installation; name a run or an exported folder instead."
        )
    return packaged
