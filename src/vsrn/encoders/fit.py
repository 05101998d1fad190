"""How likely it is that a photo fits a sentence, by their similarity: `fit.json` beside a model, where it has one.

experiments/fit_scores.py writes the file from captioned photos that the model never saw. The chance also depends on how
many words of the sentence name something: "dog" is true of more photos than a whole caption, at lower similarities.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vsrn.errors import CheckpointError
from vsrn.metrics import FloatArray

FIT_FILE = "fit.json"


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chance is 1 / (1 + exp(-t)), with t = base + similarity s + words log(n) + both s log(n).

    s is the similarity and n the number of words that name something; t never falls as s grows.

    model  fingerprint of the model that it was measured with
    """

    model: str
    base: float
    similarity: float
    words: float
    both: float
    format: Literal[1] = 1

    def chances(self, similarities: FloatArray, num_words: int) -> FloatArray:
        """(n,) similarities of photos with a sentence of so many naming words -> (n,) chances from 0 to 1."""
        rarity = math.log(max(num_words, 1))
        slope = max(self.similarity + self.both * rarity, 0.0)
        # Beyond 30 the chance is 0 or 1 to the last digit shown, and exp is safe.
        t = np.clip(self.base + self.words * rarity + slope * np.asarray(similarities, np.float64), -30, 30)
        return np.asarray(1 / (1 + np.exp(-t)))


def read_fit(path: Path, model: str) -> Fit | None:
    """The file of a model by its fingerprint; None where the model has none.

    Raises `CheckpointError` where it is broken or another model's.
    """
    try:
        fit = msgspec.json.decode(path.read_bytes(), type=Fit)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not what experiments/fit_scores.py writes ({error}); delete it.") from error
    if fit.model != model:
        raise CheckpointError(f"{path} was measured with another model; measure it again, or delete it.")
    return fit
