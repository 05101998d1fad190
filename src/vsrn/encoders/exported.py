"""An exported folder that also reads photos and writes captions: the encoders need no torch, the rest does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vsrn.data.region_store import FloatArray
from vsrn.encoders.captions import CAPTIONER_FILE, RegionBatch, WritesCaptions
from vsrn.encoders.explain import ExplainView, Explanation
from vsrn.encoders.onnx_backend import OnnxEncoder

if TYPE_CHECKING:
    from vsrn.encoders.captioning import CaptionWriter


class ExportedEncoder(OnnxEncoder, WritesCaptions):
    """`OnnxEncoder` with the methods of `vsrn.encoders.torch_backend.Encoder`."""

    @cached_property
    def caption_writer(self) -> CaptionWriter:
        """The captioner at work, in torch. Raises `CheckpointError` where the model has none."""
        from vsrn.encoders.captioning import read_captioner  # noqa: PLC0415 - sentences do without torch

        if self.checksums is not None and self.config.model.captioner.enabled:
            self.file(CAPTIONER_FILE)
        return read_captioner(self.folder, self.config, self.vocabulary, self.info.model)

    def photo_regions(self, photos: Sequence[Path | str]) -> Iterator[RegionBatch]:
        """Photo files -> features and counts, a batch at a time. Raises what `encode_images` raises."""
        from vsrn.encoders.photos import regions_of  # noqa: PLC0415 - as above

        return regions_of(photos, self.learned_from, self.extractor_weights)

    def encode_images(self, photos: Sequence[Path | str]) -> FloatArray:
        """Photo files -> (B, D) float32, with the extractor that the model's training data was made by.

        Raises `PhotoError` where a photo cannot be read, and `DataError` where the extractor here is not
        the one that the model learned from.
        """
        parts = [self.encode_regions(*batch) for batch in self.photo_regions(photos)]
        return np.concatenate(parts) if parts else np.empty((0, self.info.joint_dim), dtype=np.float32)

    def explain(self, photo: Path | str, sentence: str, view: ExplainView = "sentence") -> Explanation:
        """Which regions of a photo file earned its match with a sentence, or made its embedding (view "image").

        Raises what `encode_images` raises, and for the view "image" `CheckpointError` where the export is from before
        encoders gave their reasoned regions.
        """
        from vsrn.encoders.photos import explain_photo, learned_extractor  # noqa: PLC0415 - as above

        extractor = learned_extractor(self.learned_from, self.extractor_weights)
        return explain_photo(self, extractor, photo, sentence, view, self.region_names)
