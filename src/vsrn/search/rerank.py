"""A second look at what a search found, by a SCAN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vsrn.data.regions import pad_regions
from vsrn.encoders import load_encoder
from vsrn.errors import CheckpointError, SearchError
from vsrn.search.index import Hit, Index
from vsrn.search.where import EVERYWHERE, Where

# Hits that a SCAN puts in order.
TOP = 50


class Reranker:
    """Compares every word with every region of the best few photos, by the regions that the index keeps."""

    def __init__(self, index: Index, model: Path | str, device: str = "auto") -> None:
        """Raises `SearchError` where the index keeps no regions, `CheckpointError` where the model is no SCAN, and
        `DataError` where it learned from regions of another extractor than the index's.
        """
        if not index.info.explain:
            raise SearchError(
                f"{index.folder} was made with --no-explain and keeps no regions for --rerank; make it without."
            )
        encoder = load_encoder(model, device)
        if encoder.config.model.kind != "scan":
            raise CheckpointError(f'{model} compares vectors, as the index does already; name a run of kind "scan".')
        encoder.check_regions(f"the index {index.folder}", index.info.feature_dim, index.encoder.learned_from)
        self.index, self.encoder = index, encoder

    def search(self, caption: str, k: int = 10, where: Where = EVERYWHERE, top: int = TOP) -> list[Hit]:
        """The k photos that fit a sentence best: the index finds, and the best `top` take the SCAN's order.

        Scores are the SCAN's similarities for those, and the index's for what follows them.
        """
        hits = self.index.search(caption, max(k, top), where)
        best = hits[:top]
        if not best:
            return []
        features, counts = pad_regions([self.index.regions(hit.id) for hit in best])
        scores = self.encoder.compare(features, counts, [caption])[:, 0]
        # Equals keep their order.
        ordered = [replace(best[place], score=float(scores[place])) for place in np.argsort(-scores, kind="stable")]
        return (ordered + hits[top:])[:k]
