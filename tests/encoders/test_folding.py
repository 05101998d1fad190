"""The image encoder for use against the one that trains, in float32 and rounded to bfloat16."""

from __future__ import annotations

import pytest
import torch

from vsrn.config import ModelConfig
from vsrn.encoders.folding import fold
from vsrn.model.vsrn import ImageEncoder

COUNTS = torch.tensor([5, 1, 12, 7])


def trained_encoder(aggregator: str, normalisation: str) -> ImageEncoder:
    """An encoder whose layers and BatchNorms do something, as after training."""
    torch.manual_seed(0)
    config = ModelConfig(
        feature_dim=24,
        joint_dim=32,
        aggregator=aggregator,
        normalisation=normalisation,  # type: ignore[arg-type]
    )
    encoder = ImageEncoder(config)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


@pytest.mark.parametrize("counts", [None, COUNTS], ids=["all real", "padded"])
@pytest.mark.parametrize("normalisation", ["coco", "flickr30k", "none"])
@pytest.mark.parametrize("aggregator", ["gru", "gru-mean", "gru-residual", "bigru", "mean", "gpo"])
@torch.inference_mode()
def test_folding_changes_no_embedding_and_rounding_hardly_any(
    aggregator: str, normalisation: str, counts: torch.Tensor | None
) -> None:
    encoder = trained_encoder(aggregator, normalisation)
    features = torch.rand(4, 12, 24, generator=torch.Generator().manual_seed(1))
    plain = encoder(features, counts).embeddings
    torch.testing.assert_close(fold(encoder)(features, counts).embeddings, plain, rtol=0, atol=1e-5)
    rounded = fold(encoder, torch.bfloat16)(features, counts).embeddings
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(rounded, plain).min() > 0.999
    assert not torch.equal(rounded, plain)


@torch.inference_mode()
def test_features_are_taken_in_the_precision_they_are_stored_in() -> None:
    encoder = trained_encoder("gru", "flickr30k")
    stored = torch.rand(4, 12, 24, generator=torch.Generator().manual_seed(1)).half()
    assert torch.equal(encoder(stored).embeddings, encoder(stored.float()).embeddings)
