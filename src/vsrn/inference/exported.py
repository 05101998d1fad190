"""An exported folder that also reads photos: the encoders need no torch, the extractor of regions does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsrn.inference.explanation import ExplainView, Explanation
from vsrn.inference.onnx import OnnxEncoder
from vsrn.regions.store import FloatArray


class ExportedEncoder(OnnxEncoder):
    """`OnnxEncoder` with the methods of `vsrn.inference.encoder.Encoder`."""

    def encode_images(self, photos: Sequence[Path | str]) -> FloatArray:
        """Photo files -> (B, D) float32, with the extractor that the model's training data was made by.

        Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not
        the one that the model learned from.
        """
        # torch comes with the extractor, and sentences do without it.
        from vsrn.inference.photos import regions_of  # noqa: PLC0415

        parts = [self.encode_regions(*batch) for batch in regions_of(photos, self.learned_from)]
        return np.concatenate(parts) if parts else np.empty((0, self.info.joint_dim), dtype=np.float32)

    def explain(self, photo: Path | str, sentence: str, view: ExplainView = "sentence") -> Explanation:
        """Which regions of a photo file earned its match with a sentence, or made its embedding (view "image").

        Raises what `encode_images` raises, and for the view "image" `CheckpointError` where the export is from before
        encoders gave their reasoned regions.
        """
        from vsrn.inference.photos import explain_photo  # noqa: PLC0415 - as above

        return explain_photo(self, photo, sentence, view, self.learned_from)
