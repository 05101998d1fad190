"""Every error that a user of vsrn may see, as one tree below `VsrnError`.

Each message is one sentence or two: what is wrong, where, and what to do about it.
The command line prints it after `error:` and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

SkipKind = Literal["damaged", "too-large", "unreadable", "link", "no-photo", "needs-heif", "needs-raw", "needs-video"]


class VsrnError(ValueError):
    """Base of every error whose message is meant for the user."""


class ConfigError(VsrnError):
    """A config file or option is unknown, ill-typed or contradicts another."""


class DataError(VsrnError):
    """Something on disk (photos, regions, captions, a split) is missing or malformed."""


class PhotoError(DataError):
    """One file or folder among the photos that is skipped, and why.

    kind  "damaged": it ought to be a photo and cannot be decoded (cut short, empty, corrupt);
          "too-large": refused for its pixels, the ratio of its sides or its bytes;
          "unreadable": permissions, errors of the disk, a folder that cannot be listed, a file that is gone or
          keeps changing, what is not a regular file;
          "link": a link that leads out of the folder, or nowhere;
          "no-photo": not an image in a format that vsrn reads;
          "needs-heif", "needs-raw", "needs-video": read with the extra of that name, which is not installed
    """

    def __init__(self, message: str, kind: SkipKind = "damaged") -> None:
        super().__init__(message)
        self.kind = kind


class VocabularyError(DataError):
    """A vocabulary cannot be read, or does not belong to the model it is used with."""


class CheckpointError(VsrnError):
    """A run, checkpoint or converted model is missing, broken, foreign or in the way."""


class SearchError(VsrnError):
    """An index of photos is missing, broken, busy or another model's, or cannot answer what it is asked."""


class UnknownPhotoError(SearchError):
    """An index holds no photo of the id that it was asked for."""


class UnknownFolderError(SearchError):
    """An index holds nothing of the folder that a search is narrowed to."""


class SimilarityError(VsrnError):
    """Similarities hold NaN, or do not fit the captions they are ranked against."""


class TrainingError(VsrnError):
    """Training cannot go on, for instance because the loss became NaN."""


class UnknownWordsWarning(UserWarning):
    """Captions that are to be encoded have words that the model never read; `Encoder.unknown_words` names them."""


def one_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most `most` letters; the name of its class where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing hint that names the nearest known word, or nothing where none is near.

    >>> did_you_mean("bacth_size", ["batch_size", "epochs"])
    " Did you mean 'batch_size'?"
    >>> did_you_mean("colour", ["batch_size"])
    ''
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
