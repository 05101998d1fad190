"""Ranking COCO 5K (5,000 images x 25,000 captions, 1,024 dimensions) in both directions, exact ranks.

python benchmarks/ranking.py
"""

from __future__ import annotations

import numpy as np
import obvious
from harness import interleave, record, record_ratio
from problem import make_embeddings

from vsrn.metrics import EncodedSplit, Ranks, rank_blocks, similarity_blocks


def main() -> None:
    """Against one query at a time with a full sort, and against the bare matrix product."""
    images, captions, owners = make_embeddings(5000, 1024)

    def ours() -> Ranks:
        return rank_blocks(similarity_blocks([EncodedSplit(images, captions)]), owners)

    found, expected = ours(), obvious.rank(images, captions, owners)
    check(found, expected, images, captions, owners)
    checked = "ranks identical"
    ratio = interleave(ours, lambda: obvious.rank(images, captions, owners), rounds=2, warm_up=False)
    record_ratio("Ranking COCO 5K", ratio, 25.0, checked)
    product = interleave(lambda: images @ captions.T, ours, rounds=5)
    record(
        "Ranking COCO 5K, to the bare product",
        target="within 1.5x",
        measured=f"{product.median:.2f}x [{product.low:.2f}-{product.high:.2f}]",
        reached=product.median <= 1.5,
        checked=checked,
        ratio=product,
    )


def check(found: Ranks, expected: Ranks, images: np.ndarray, captions: np.ndarray, owners: np.ndarray) -> None:
    """Identical ranks; where two similarities tie, the sort may favour the query and ours never does."""
    similarities = images @ captions.T
    own = similarities[owners, np.arange(len(captions))]
    tied = (similarities == own).sum(axis=0) > 1
    assert (found.text_to_image >= expected.text_to_image).all()
    assert np.array_equal(found.text_to_image[~tied], expected.text_to_image[~tied])
    best = np.where(owners == np.arange(len(images))[:, None], similarities, -np.inf).max(axis=1, keepdims=True)
    tied = (similarities == best).sum(axis=1) > 1
    assert (found.image_to_text >= expected.image_to_text).all()
    assert np.array_equal(found.image_to_text[~tied], expected.image_to_text[~tied])


if __name__ == "__main__":
    main()
