"""Encoding images (folded layers, fp32 and bf16) and captions (sorted by length) against the obvious way.

python benchmarks/encoding.py
"""

from __future__ import annotations

import obvious
import torch
from harness import interleave, record_ratio
from problem import make_captions, make_features, make_model
from torch.nn.functional import cosine_similarity

from vsrn.inference.encoder import autocast, encode_tokens
from vsrn.inference.folding import fold

CPU = torch.device("cpu")
IMAGES, CAPTIONS, BATCH = 512, 4000, 128


@torch.inference_mode()
def main() -> None:
    """Images first, then captions."""
    model = make_model().eval()
    features, folded = make_features(IMAGES), fold(model.image_encoder)

    def theirs() -> torch.Tensor:
        return torch.cat([obvious.encode_images(model.image_encoder, part)[0] for part in features.split(BATCH)])

    def ours(precision: str) -> torch.Tensor:
        with autocast(CPU, precision):  # type: ignore[arg-type]
            return torch.cat([folded(part).embeddings for part in features.split(BATCH)])

    exact = theirs()
    difference = float((ours("fp32") - exact).abs().max())
    assert difference < 1e-5, difference
    checked = f"embeddings differ by {difference:.0e} at most"
    record_ratio("Encoding images, fp32", interleave(lambda: ours("fp32"), theirs), 1.4, checked)
    cosine = float(cosine_similarity(ours("bf16"), exact).min())
    assert cosine >= 0.999, cosine
    checked = f"cosine to fp32 at least {cosine:.5f}"
    record_ratio("Encoding images, bf16", interleave(lambda: ours("bf16"), theirs), 3.0, checked)

    captions = make_captions(CAPTIONS)
    plain = obvious.encode_captions(model.caption_encoder, captions, BATCH)
    sorted_ours = torch.from_numpy(encode_tokens(model.caption_encoder, captions))
    difference = float((sorted_ours - plain).abs().max())
    assert difference < 1e-5, difference
    ratio = interleave(
        lambda: encode_tokens(model.caption_encoder, captions),
        lambda: obvious.encode_captions(model.caption_encoder, captions, BATCH),
    )
    record_ratio("Encoding captions", ratio, 2.0, f"embeddings differ by {difference:.0e} at most")


if __name__ == "__main__":
    main()
