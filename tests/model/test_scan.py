"""SCAN against its definition, written plainly: one image, one caption, one asker at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vsrn.config import LossConfig, ModelConfig, ScanConfig
from vsrn.model.base import Batch
from vsrn.model.losses import TripletLoss
from vsrn.model.scan import SCAN, RegionProjection, similarities
from vsrn.training.passes import with_padded_tokens

F, D, N, V = 7, 6, 5, 20
COUNTS = torch.tensor([5, 2, 4, 1])
LENGTHS = torch.tensor([4, 3, 6, 3])
EVERY_KIND = list(
    product(
        ["text_to_image", "image_to_text"],
        ["logsumexp", "mean", "max", "sum"],
        ["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"],
    )
)


def scan_config(direction: Any, aggregation: Any, first_norm: Any) -> ScanConfig:
    return ScanConfig(direction, first_norm, 9.0, aggregation, 6.0)


def model_config(scan: ScanConfig | None = None, **fields: Any) -> ModelConfig:
    return ModelConfig(kind="scan", feature_dim=F, joint_dim=D, word_dim=4, scan=scan or ScanConfig(), **fields)


def obvious_similarity(regions: list[torch.Tensor], words: list[torch.Tensor], config: ScanConfig) -> torch.Tensor:
    """From the definition, with every attended vector made."""
    askers, contexts = (words, regions) if config.direction == "text_to_image" else (regions, words)
    rows = []
    for context in contexts:
        row = torch.stack([asker @ context for asker in askers])
        if config.first_norm == "softmax":
            row = row.exp() / row.exp().sum()
        if "clipped" in config.first_norm:
            row = torch.where(row > 0, row, 0.1 * row)
        if "l2norm" in config.first_norm:
            row = row / (row.pow(2).sum().sqrt() + 1e-8)
        rows.append(row)
    relevances = []
    for place, asker in enumerate(askers):
        weights = torch.stack([torch.exp(config.inverse_temperature * row[place]) for row in rows])
        shares = weights / weights.sum()
        attended = torch.stack([share * context for share, context in zip(shares, contexts, strict=True)]).sum(dim=0)
        relevances.append(asker @ attended / (asker.norm() * attended.norm()).clamp(min=1e-8))
    all_relevances, factor = torch.stack(relevances), config.logsumexp_factor
    return {
        "logsumexp": (factor * all_relevances).exp().sum().log() / factor,
        "mean": all_relevances.sum() / len(askers),
        "max": all_relevances.max(),
        "sum": all_relevances.sum(),
    }[config.aggregation]


def sets(*sizes: int, dim: int = D) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*sizes, dim, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("direction", "aggregation", "first_norm"), EVERY_KIND)
@pytest.mark.parametrize("padded", [False, True])
def test_similarities_and_their_gradients_are_those_of_the_definition(
    direction: str, aggregation: str, first_norm: str, padded: bool
) -> None:
    config = scan_config(direction, aggregation, first_norm)
    mask = torch.arange(N) < COUNTS[:, None] if padded else None
    regions, words = sets(4, N), sets(4, 6)
    if mask is not None:
        regions = regions * mask[..., None]
    regions.requires_grad_()
    words.requires_grad_()
    ours = similarities(regions, words, LENGTHS, mask, config)
    obvious = torch.stack(
        [
            torch.stack(
                [
                    obvious_similarity(
                        list(image[: COUNTS[place] if padded else N]), list(caption[: LENGTHS[row]]), config
                    )
                    for row, caption in enumerate(words)
                ]
            )
            for place, image in enumerate(regions)
        ]
    )
    torch.testing.assert_close(ours, obvious, rtol=0, atol=1e-9)
    weights = torch.randn_like(ours)
    # Along the unit sphere, where encoders keep their vectors: we take an asker's length to be 1.
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), (regions, words)),
        torch.autograd.grad((obvious * weights).sum(), (regions, words)),
        strict=True,
    ):
        source = regions if one.shape == regions.shape else words
        torch.testing.assert_close(along_sphere(one, source), along_sphere(other, source), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("direction", "aggregation", "first_norm"), EVERY_KIND)
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("junk", [1e3, math.nan])
def test_captions_compared_padded_are_those_compared_by_length(
    direction: str, aggregation: str, first_norm: str, counted: bool, junk: float
) -> None:
    config = scan_config(direction, aggregation, first_norm)
    mask = torch.arange(N) < COUNTS[:, None] if counted else None
    regions, words = sets(4, N), sets(4, 9)
    if mask is not None:
        regions = regions * mask[..., None]
    words[torch.arange(9) >= LENGTHS[:, None]] = junk
    regions.requires_grad_()
    words.requires_grad_()
    weights = torch.randn(4, 4, dtype=torch.float64)
    found = []
    for padded in (False, True):
        scores = similarities(regions, words, LENGTHS, mask, config, padded=padded)
        found.append((scores, *torch.autograd.grad((scores * weights).sum(), (regions, words))))
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


def test_padded_words_take_no_attention_from_words_that_fit_badly() -> None:
    # Words opposite to the regions have logits near -60: next to padding at 0 their attention would round to nothing.
    config = replace(scan_config("image_to_text", "mean", "no_norm"), inverse_temperature=60.0)
    vector = sets(1)
    regions = nn.functional.normalize(vector + 0.1 * sets(4, N), dim=-1)
    words = nn.functional.normalize(-vector + 0.1 * sets(4, 9), dim=-1)
    one, other = (similarities(regions, words, LENGTHS, None, config, padded=padded) for padded in (False, True))
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
    assert (one < -0.9).all()


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("counts", [None, COUNTS])
def test_a_step_with_captions_compared_padded_is_the_step_of_the_cpu(
    direction: Any, counts: torch.Tensor | None
) -> None:
    model, loss = SCAN(model_config(ScanConfig(direction)), V), TripletLoss(LossConfig())
    batch = Batch(torch.randn(4, N, F), torch.randint(4, V, (4, 6)), LENGTHS, counts)
    assert model.takes_lengths_anywhere
    model(batch, loss).joint.backward()
    usual = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    images = model.region_encoder(batch.features, counts)
    words = model.word_encoder(with_padded_tokens(batch).tokens, LENGTHS)
    assert words.shape[1] == 8
    ours = loss(similarities(images.vectors, words, LENGTHS, images.mask, model.config.scan, padded=True))
    torch.testing.assert_close(ours, model(batch, loss).matching)
    ours.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, usual[name], rtol=1e-4, atol=1e-6, msg=name)


class Words(nn.Module):
    """Reads captions without the GRU, which torch computes otherwise where there is no GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)

    def forward(self, tokens: torch.Tensor, _lengths: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.embedding(tokens), dim=-1)


@pytest.mark.parametrize(("direction", "aggregation", "first_norm"), EVERY_KIND)
@pytest.mark.parametrize("counted", [False, True])
def test_with_lengths_on_a_gpu_no_loss_asks_it_for_a_number(
    direction: str, aggregation: str, first_norm: str, counted: bool
) -> None:
    """Tensors without memory, which say that they are on a GPU, raise where a number of theirs is asked for."""
    config = model_config(scan_config(direction, aggregation, first_norm))
    with FakeTensorMode():
        model = SCAN(config, V)
    with FakeTensorMode(), torch.device("cuda"):
        model.region_encoder, model.word_encoder = RegionProjection(config), cast("Any", Words())
        lengths = torch.ones(4, dtype=torch.long)
        with pytest.raises(DataDependentOutputException):
            int(lengths.max())
        batch = Batch(torch.randn(4, N, F), torch.ones(4, 6, dtype=torch.long), lengths, lengths if counted else None)
        assert model(batch, TripletLoss(LossConfig())).joint.device.type == "cuda"


def along_sphere(gradient: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    real = vectors.detach().norm(dim=-1, keepdim=True) > 0
    return (gradient - (gradient * vectors).sum(dim=-1, keepdim=True) * vectors).detach() * real


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_words_are_of_unit_length_whatever_pads_the_caption(bidirectional: bool, layers: int) -> None:
    encoder = SCAN(model_config(ScanConfig(bidirectional=bidirectional), caption_layers=layers), V).double()
    tokens = torch.randint(4, V, (4, 6))
    words = encoder.word_encoder(tokens, LENGTHS)
    for caption, length, row in zip(tokens, LENGTHS, words, strict=True):
        alone = encoder.word_encoder(caption[None, :length], length[None])[0]
        torch.testing.assert_close(row[:length], alone)
        torch.testing.assert_close(alone.norm(dim=-1), torch.ones(int(length), dtype=torch.float64))
        assert not row[length:].any()
    reads_back = not torch.equal(words[0, 0], encoder.word_encoder(tokens.roll(1, dims=1).fill_(5), LENGTHS)[0, 0])
    assert reads_back


def test_a_word_knows_what_follows_it_only_where_the_gru_reads_back() -> None:
    one, other = torch.tensor([[1, 5, 6, 2]]), torch.tensor([[1, 5, 7, 2]])
    for bidirectional in (True, False):
        encoder = SCAN(model_config(ScanConfig(bidirectional=bidirectional)), V).word_encoder
        first, second = (encoder(tokens, torch.tensor([4]))[0, 1] for tokens in (one, other))
        assert torch.equal(first, second) is not bidirectional


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("junk", [0.0, 1e3])
def test_padded_regions_change_neither_loss_nor_gradient(direction: Any, junk: float) -> None:
    model = SCAN(model_config(ScanConfig(direction=direction)), V).double()
    features, tokens = torch.randn(4, N, F, dtype=torch.float64), torch.randint(4, V, (4, 6))
    features[torch.arange(N) >= COUNTS[:, None]] = junk
    wider = nn.functional.pad(features, (0, 0, 0, 3), value=-junk)
    gradients = []
    for each in (features, wider):
        loss = model(Batch(each, tokens, LENGTHS, COUNTS), TripletLoss(LossConfig())).joint
        model.zero_grad()
        loss.backward()
        gradients.append({"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    assert all(math.isfinite(float(tensor.sum())) for tensor in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_under_bf16_similarities_stay_float32_and_near() -> None:
    model = SCAN(model_config(), V)
    features, tokens = torch.randn(4, N, F), torch.randint(4, V, (4, 6))
    exact = model(Batch(features, tokens, LENGTHS, None), TripletLoss(LossConfig())).joint
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(Batch(features, tokens, LENGTHS, None), TripletLoss(LossConfig())).joint
    assert rounded.dtype == torch.float32
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.05)


def test_a_warm_up_begins_with_all_negatives() -> None:
    model = SCAN(model_config(), V)
    inputs = torch.randn(4, N, F), torch.randint(4, V, (4, 6)), LENGTHS, None
    loss = LossConfig(warm_up_epochs=2)
    every, worst = (
        model(Batch(*inputs), TripletLoss(replace(loss, warm_up_epochs=0, negatives=negatives))).matching
        for negatives in ("all", "hardest")
    )
    assert model(Batch(*inputs), TripletLoss(loss), epochs=0).matching == every
    assert model(Batch(*inputs), TripletLoss(loss), epochs=2).matching == worst
    torch.testing.assert_close(model(Batch(*inputs), TripletLoss(loss), epochs=1).matching, (every + worst) / 2)
