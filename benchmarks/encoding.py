"""Encoding images (folded layers, fp32 and bf16) and captions (sorted by length) against the obvious way.

python benchmarks/encoding.py [--captions FILE]

Without a file of captions, one a line, they are random words; real captions begin alike, and that is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import obvious
import torch
from harness import interleave, record_ratio, share_of_products
from problem import WORDS, make_captions, make_features, make_model
from torch.nn.functional import cosine_similarity

from vsrn.data.vocabulary import build_vocabulary
from vsrn.encoders.folding import fold
from vsrn.encoders.torch_backend import encode_tokens
from vsrn.metrics import IntArray

IMAGES, CAPTIONS, BATCH = 512, 4000, 128


@torch.inference_mode()
def main(path: Path | None) -> None:
    """Images first, then captions."""
    model = make_model().eval()
    features = make_features(IMAGES)
    folded = {"fp32": fold(model.image_encoder), "bf16": fold(model.image_encoder, torch.bfloat16)}

    def theirs() -> torch.Tensor:
        return torch.cat([obvious.encode_images(model.image_encoder, part)[0] for part in features.split(BATCH)])

    def ours(precision: str) -> torch.Tensor:
        return torch.cat([folded[precision](part).embeddings for part in features.split(BATCH)])

    exact = theirs()
    difference = float((ours("fp32") - exact).abs().max())
    assert difference < 1e-5, difference
    checked = f"embeddings differ by {difference:.0e} at most; "
    checked += share_of_products(lambda: ours("fp32"), torch.float32)
    record_ratio("Encoding images, fp32", interleave(lambda: ours("fp32"), theirs), 1.4, checked)
    cosine = float(cosine_similarity(ours("bf16"), exact).min())
    assert cosine >= 0.999, cosine
    checked = f"cosine to fp32 at least {cosine:.5f}; {share_of_products(lambda: ours('bf16'), torch.bfloat16)}"
    record_ratio("Encoding images, bf16", interleave(lambda: ours("bf16"), theirs), 8.0, checked)

    captions = real_captions(path) if path else make_captions(CAPTIONS)
    plain = obvious.encode_captions(model.caption_encoder, captions, BATCH)
    difference = float((torch.from_numpy(encode_tokens(model.caption_encoder, captions)) - plain).abs().max())
    assert difference < 1e-5, difference
    ratio = interleave(
        lambda: encode_tokens(model.caption_encoder, captions),
        lambda: obvious.encode_captions(model.caption_encoder, captions, BATCH),
    )
    kind = "real captions" if path else "random words"
    record_ratio(f"Encoding {kind}", ratio, 2.0, f"embeddings differ by {difference:.0e} at most")


def real_captions(path: Path) -> list[IntArray]:
    """The first captions of a file as token ids, with the words of their own vocabulary."""
    captions = path.read_text(encoding="utf-8").splitlines()[:CAPTIONS]
    vocabulary = build_vocabulary(captions, min_count=2)
    assert len(vocabulary) <= WORDS, "the model has no more words than that"
    return [np.array(vocabulary.encode(caption)) for caption in captions]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, help="text file, one caption a line")
    main(parser.parse_args().captions)
