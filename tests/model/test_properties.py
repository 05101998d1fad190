"""What must hold of the model whatever its weights: identities, symmetries, padding, obvious versions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from greedy import greedy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vsrn.config import CaptionerConfig, LossConfig, ModelConfig
from vsrn.data.vocabulary import END, PAD, START
from vsrn.model import captioner as captioner_module
from vsrn.model.base import Batch
from vsrn.model.captioner import Captioner
from vsrn.model.gru import at_least_float32, l2_normalise, pad_tokens
from vsrn.model.losses import TripletLoss, contrastive_loss, cosine_similarities, matching_loss, order_similarities
from vsrn.model.reasoning import RegionRelationshipReasoning, normalise_channels
from vsrn.model.vsrn import ImageEncoder, TextEncoder, build_vsrn

B, N, F, D, V = 4, 6, 5, 7, 23
COUNTS = torch.tensor([6, 3, 1, 4])
NORMALISATIONS = ["coco", "flickr30k", "none"]
AGGREGATORS = ["gru", "gru-mean", "gru-residual", "bigru", "mean", "gpo"]
CELLS = ["gru", "lstm"]


def image_encoder(**fields: Any) -> ImageEncoder:
    """Double precision, and BatchNorms that do something, as after training."""
    encoder = ImageEncoder(ModelConfig(feature_dim=F, joint_dim=D, reasoning_layers=2, **fields)).double()
    stir(encoder)
    return encoder


def stir(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            for tensor in (part.weight, part.bias, part.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
            assert part.running_var is not None
            nn.init.uniform_(part.running_var, 0.5, 2.0)


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (B, N, F)), dtype=torch.float64)


def assert_close(ours: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)


# Region relationship reasoning


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [None, torch.arange(N) < COUNTS[:, None]], ids=["all real", "padded"])
def test_a_fresh_reasoning_layer_is_the_identity(training: bool, mask: torch.Tensor | None) -> None:
    regions = torch.randn(B, N, D)
    layer = RegionRelationshipReasoning(D).train(training)
    assert torch.equal(layer(regions, mask), regions)


def test_a_reasoning_layer_is_what_the_paper_writes_image_by_image() -> None:
    layer = RegionRelationshipReasoning(D).double().eval()
    stir(layer)
    regions = features(B, N, D)
    for image, ours in zip(regions, layer(regions), strict=True):
        affinity = torch.stack([torch.stack([layer.theta(i) @ layer.phi(j) for j in image]) for i in image]) / N
        messages = layer.w_r(affinity @ layer.w_g(image))
        assert_close(ours, image + layer.norm(messages))


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_regions_permutes_the_reasoned_regions(training: bool) -> None:
    encoder = image_encoder(normalisation="coco").train(training)
    regions, order = features(), torch.randperm(N)
    straight, permuted = encoder(regions), encoder(regions[:, order])
    assert_close(permuted.reasoned_regions, straight.reasoned_regions[:, order])


def test_the_mean_does_not_see_the_order_of_regions_and_the_gru_does() -> None:
    regions = features()
    for aggregator, alike in (("mean", True), ("gru", False)):
        encoder = image_encoder(aggregator=aggregator).eval()
        same = torch.allclose(encoder(regions).embeddings, encoder(regions.flip(1)).embeddings, atol=1e-9)
        assert same is alike


def test_channels_get_unit_length_over_the_regions_of_an_image() -> None:
    regions = features(B, N, D)
    ours = normalise_channels(regions)
    for image in range(B):
        for channel in range(D):
            column = regions[image, :, channel]
            assert_close(ours[image, :, channel], column / math.sqrt(sum(float(x) ** 2 for x in column)))


# Padding never changes an embedding


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=5), further=st.integers(0, 4), layers=st.integers(1, 2))
def test_padding_a_caption_never_changes_its_embedding(lengths: list[int], further: int, layers: int) -> None:
    torch.manual_seed(sum(lengths) + further)
    encoder = TextEncoder(ModelConfig(joint_dim=D, word_dim=3, caption_layers=layers), V).double()
    captions = [torch.randint(4, V, (length,)) for length in lengths]
    tokens, real = pad_tokens([caption.numpy() for caption in captions])
    together = encoder(nn.functional.pad(tokens, (0, further), value=PAD), real)
    for caption, embedding in zip(captions, together, strict=True):
        alone = encoder(caption[None], torch.tensor([len(caption)]))[0]
        assert_close(embedding, alone)
        assert_close(embedding.norm(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("junk", [0.0, 1e3])
def test_padding_the_regions_never_changes_an_embedding(normalisation: str, aggregator: str, junk: float) -> None:
    encoder = image_encoder(normalisation=normalisation, aggregator=aggregator).eval()
    padded = features()
    padded[torch.arange(N) >= COUNTS[:, None]] = junk
    together = encoder(padded, COUNTS)
    for image, count in enumerate(COUNTS.tolist()):
        alone = encoder(padded[image : image + 1, :count])
        assert_close(together.embeddings[image], alone.embeddings[0])
        assert_close(together.reasoned_regions[image, :count], alone.reasoned_regions[0])
        assert not together.reasoned_regions[image, count:].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_counts_that_call_every_region_real_change_nothing(normalisation: str, training: bool) -> None:
    regions = features()
    with_counts, without = image_encoder(normalisation=normalisation), image_encoder(normalisation=normalisation)
    without.load_state_dict(with_counts.state_dict())
    ours = with_counts.train(training)(regions, torch.full((B,), N))
    expected = without.train(training)(regions)
    assert_close(ours.embeddings, expected.embeddings)
    for name, tensor in with_counts.state_dict().items():
        assert_close(tensor, without.state_dict()[name])


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_statistics_of_a_training_step_do_not_depend_on_padding(normalisation: str) -> None:
    encoder = image_encoder(normalisation=normalisation).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    outcomes = []
    for further, junk in ((0, 0.0), (3, 0.0), (3, -50.0)):
        encoder.load_state_dict(before)
        torch.manual_seed(1)
        padded = torch.full((B, N + further, F), junk, dtype=torch.float64)
        padded[:, :N] = features()
        padded[torch.arange(N + further) >= COUNTS[:, None]] = junk
        embeddings = encoder(padded, COUNTS).embeddings
        outcomes.append((embeddings.detach(), {name: tensor.clone() for name, tensor in encoder.state_dict().items()}))
    for embeddings, state in outcomes[1:]:
        assert_close(embeddings, outcomes[0][0])
        for name, tensor in state.items():
            assert_close(tensor, outcomes[0][1][name])


def test_batchnorm_in_training_counts_every_real_region_once() -> None:
    layer = RegionRelationshipReasoning(D).double().train()
    stir(layer)
    start = layer.norm.running_mean
    assert start is not None
    start = start.clone()
    regions = features(B, N, D)
    mask = torch.arange(N) < COUNTS[:, None]
    ours = layer(regions, mask)
    messages = []
    for image, count in zip(regions, COUNTS.tolist(), strict=True):
        real = image[:count]
        messages.append(layer.w_r(layer.theta(real) @ layer.phi(real).mT / count @ layer.w_g(real)))
    every = torch.cat(messages)
    normal = (every - every.mean(0)) / (every.var(0, unbiased=False) + layer.norm.eps).sqrt()
    expected = torch.cat([image[:c] for image, c in zip(regions, COUNTS.tolist(), strict=True)])
    assert_close(ours[mask], expected + normal * layer.norm.weight + layer.norm.bias)
    assert layer.norm.running_mean is not None
    assert_close(layer.norm.running_mean, 0.9 * start + 0.1 * every.mean(0))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padded_regions_never_change_what_the_captioner_loses_or_writes(cell: str, bidirectional: bool) -> None:
    captioner = make_captioner(cell, bidirectional=bidirectional)
    regions = features(B, N, D)
    regions[torch.arange(N) >= COUNTS[:, None]] = 0
    tokens, lengths = random_captions([5, 3, 9, 2])
    together = captioner.generation_loss(regions, tokens, lengths, COUNTS)
    words, scores = greedy(captioner, regions, 5, COUNTS)
    losses = []
    for image, count in enumerate(COUNTS.tolist()):
        alone = regions[image : image + 1, :count]
        losses.append(captioner.generation_loss(alone, tokens[image : image + 1], lengths[image : image + 1]))
        own_words, own_scores = greedy(captioner, alone, 5)
        assert torch.equal(words[image], own_words[0])
        assert_close(scores[image], own_scores[0])
    assert_close(together, torch.stack(losses).sum() / B)


def test_padding_never_changes_the_joint_loss() -> None:
    config = ModelConfig(
        feature_dim=F,
        joint_dim=D,
        word_dim=3,
        reasoning_layers=2,
        captioner=CaptionerConfig(hidden_dim=3, word_dim=3, dropout=0.0, max_tokens=6),
    )
    model = build_vsrn(config, V).double().eval()
    stir(model)
    regions, (tokens, lengths) = features(), random_captions([5, 3, 9, 2])
    plain = model(Batch(regions, tokens, lengths, COUNTS), TripletLoss(LossConfig()))
    wider = nn.functional.pad(regions, (0, 0, 0, 2), value=9.0)
    padded = model(Batch(wider, nn.functional.pad(tokens, (0, 3)), lengths, COUNTS), TripletLoss(LossConfig()))
    assert_close(padded.matching, plain.matching)
    assert_close(padded.generation, plain.generation)
    assert_close(padded.joint, plain.matching + plain.generation)


# Generation loss


def make_captioner(cell: str, *, bidirectional: bool, max_tokens: int = 6, dropout: float = 0.0) -> Captioner:
    config = CaptionerConfig(
        cell=cell,  # type: ignore[arg-type]
        bidirectional=bidirectional,
        hidden_dim=5,
        word_dim=4,
        dropout=dropout,
        max_tokens=max_tokens,
    )
    return Captioner(config, D, V).double()


def random_captions(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """<start> ... <end>, padded with <pad>."""
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(4, V, (length,))
        tokens[row, 0], tokens[row, length - 1] = START, END
    return tokens, torch.tensor(lengths)


def obvious_generation_loss(
    captioner: Captioner, regions: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """formulas.md word for word: every caption alone, every step, attention over [region ; state] each time."""
    max_len = captioner.config.max_tokens
    labels, masks = labels_and_masks(tokens, lengths, max_len)
    total = torch.zeros((), dtype=regions.dtype)
    for image, label, mask in zip(regions, labels, masks, strict=True):
        decoder = ObviousDecoder(captioner, image)
        for step in range(max_len - 1):
            log_probabilities = decoder.after(label[step])
            total = total - mask[step + 1] * log_probabilities[label[step + 1]]
    return total / len(regions)


class ObviousDecoder:
    """One image's captioner, step by step, as formulas.md writes it."""

    def __init__(self, captioner: Captioner, image: torch.Tensor) -> None:
        self.captioner = captioner
        states, last = captioner.encoder(captioner.projection(image)[None])
        hidden, memory = last if isinstance(last, tuple) else (last, last)
        self.regions, self.state, self.memory = states[0], hidden.reshape(1, -1), memory.reshape(1, -1)

    def after(self, previous: torch.Tensor) -> torch.Tensor:
        """(V,) log-probabilities of the next word."""
        joined = [torch.cat([region, self.state[0]]) for region in self.regions]
        scores = [self.captioner.attention_score(self.captioner.attention_hidden(pair).tanh()) for pair in joined]
        weights = torch.cat(scores).softmax(0)
        context = torch.stack([weight * region for weight, region in zip(weights, self.regions, strict=True)]).sum(0)
        inputs = torch.cat([self.captioner.embedding(previous), context])[None]
        if self.captioner.config.cell == "lstm":
            self.state, self.memory = self.captioner.decoder(inputs, (self.state, self.memory))
        else:
            self.state = self.captioner.decoder(inputs, self.state)
        log_probabilities: torch.Tensor = self.captioner.output(self.state[0]).log_softmax(0)
        return log_probabilities


def labels_and_masks(
    tokens: torch.Tensor, lengths: torch.Tensor, max_len: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    labels, masks = [], []
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        caption = row[:length]
        if length > max_len - 1:
            caption = [*caption[:max_len], END][:max_len]
            caption[max_len - 1] = END
        label = caption + [0] * (max_len + 1 - len(caption))
        first_zero = label.index(0)
        labels.append(torch.tensor(label))
        masks.append(torch.tensor([1.0 if place <= first_zero else 0.0 for place in range(max_len + 1)]).double())
    return labels, masks


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 10), min_size=1, max_size=5),
    max_tokens=st.integers(3, 12),
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
)
def test_the_fast_generation_loss_equals_the_obvious_one(
    lengths: list[int], max_tokens: int, cell: str, bidirectional: bool
) -> None:
    torch.manual_seed(len(lengths) * 100 + sum(lengths) + max_tokens)
    captioner = make_captioner(cell, bidirectional=bidirectional, max_tokens=max_tokens)
    tokens, lengths_tensor = random_captions(lengths)
    regions = features(len(lengths), N, D).requires_grad_()
    fast = captioner.generation_loss(regions, tokens, lengths_tensor)
    slow = obvious_generation_loss(captioner, regions, tokens, lengths_tensor)
    assert_close(fast.detach(), slow.detach())
    wanted = [regions, *captioner.parameters()]
    for ours, theirs in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(slow, wanted), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("shrink_at", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("lengths", [[2], [6, 6, 6], [9, 8, 7, 6, 5, 4, 3, 2], [2, 2, 2, 2, 9], [9, 2, 9, 2], [6, 5]])
def test_when_the_batch_shrinks_does_not_change_the_loss(
    lengths: list[int], shrink_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = make_captioner("gru", bidirectional=False, max_tokens=8)
    regions, (tokens, real) = features(len(lengths), N, D), random_captions(lengths)
    monkeypatch.setattr(captioner_module, "SHRINK_AT", shrink_at)
    assert_close(
        captioner.generation_loss(regions, tokens, real), obvious_generation_loss(captioner, regions, tokens, real)
    )


def test_the_generation_loss_does_not_change_its_arguments() -> None:
    captioner = make_captioner("gru", bidirectional=False, max_tokens=4)
    tokens, lengths = random_captions([9, 3, 4])
    before = tokens.clone(), lengths.clone()
    captioner.generation_loss(features(3, N, D), tokens, lengths)
    assert torch.equal(tokens, before[0])
    assert torch.equal(lengths, before[1])


def test_the_order_of_a_batch_does_not_change_the_generation_loss() -> None:
    captioner = make_captioner("lstm", bidirectional=True)
    regions, (tokens, lengths) = features(5, N, D), random_captions([4, 9, 2, 7, 7])
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = captioner.generation_loss(regions[order], tokens[order], lengths[order])
    assert_close(shuffled, captioner.generation_loss(regions, tokens, lengths))


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_feeds_back_the_word_that_the_obvious_decoder_finds_most_probable(cell: str) -> None:
    captioner = make_captioner(cell, bidirectional=False)
    image = features(1, N, D)
    words, scores = greedy(captioner, image, 5)
    previous, obvious = START, ObviousDecoder(captioner, image[0])
    for word, score in zip(words[0].tolist(), scores[0], strict=True):
        log_probabilities = obvious.after(torch.tensor(previous)).detach()
        assert int(log_probabilities.argmax()) == word
        assert_close(score, log_probabilities[word])
        previous = word


# Matching


@given(
    scores=st.integers(1, 5).flatmap(
        lambda size: st.lists(st.lists(st.integers(-4, 4), min_size=size, max_size=size), min_size=size, max_size=size)
    ),
    margin=st.sampled_from([0.0, 0.2, 1.0]),
    hardness=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_the_matching_loss_is_a_sum_over_violations(scores: list[list[int]], margin: float, hardness: float) -> None:
    similarities = torch.tensor(scores, dtype=torch.float64) / 8
    total = 0.0
    for i in range(len(scores)):
        of_image, of_caption = [0.0], [0.0]
        for j in range(len(scores)):
            if i != j:
                of_image.append(max(0.0, margin + float(similarities[i, j] - similarities[i, i])))
                of_caption.append(max(0.0, margin + float(similarities[j, i] - similarities[i, i])))
        for violations in (of_image, of_caption):
            total += hardness * max(violations) + (1 - hardness) * sum(violations)
    assert float(matching_loss(similarities, margin, hardness)) == pytest.approx(total)


@given(
    scores=st.integers(1, 5).flatmap(
        lambda size: st.lists(st.lists(st.floats(-1, 1), min_size=size, max_size=size), min_size=size, max_size=size)
    ),
    temperature=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_the_contrastive_loss_is_the_surprise_of_every_match(scores: list[list[float]], temperature: float) -> None:
    surprise = 0.0
    for i, own in enumerate(scores):
        for others in (own, [row[i] for row in scores]):
            odds = [math.exp(other / temperature) for other in others]
            surprise -= math.log(odds[i] / sum(odds))
    found = float(contrastive_loss(torch.tensor(scores, dtype=torch.float64), temperature))
    assert found == pytest.approx(surprise, abs=1e-9)


def test_similarities_are_those_of_each_pair() -> None:
    images, captions = features(3, D), features(4, D)
    cosine, order = cosine_similarities(images, captions), order_similarities(images, captions)
    for i, image in enumerate(images.tolist()):
        for c, caption in enumerate(captions.tolist()):
            dot = sum(a * b for a, b in zip(image, caption, strict=True))
            beyond = math.sqrt(sum(max(0.0, b - a) ** 2 for a, b in zip(image, caption, strict=True)))
            assert float(cosine[i, c]) == pytest.approx(dot)
            assert float(order[i, c]) == pytest.approx(-beyond)


def test_the_gradient_of_order_similarity_is_finite_where_nothing_is_violated() -> None:
    images = torch.tensor([[1.0, 2.0], [0.5, 0.5]], requires_grad=True)
    captions = torch.tensor([[0.5, 1.0], [0.5, 0.5]], requires_grad=True)
    similarities = order_similarities(images, captions)
    assert similarities[0, 0].item() == 0
    similarities.sum().backward()  # type: ignore[no-untyped-call]
    for gradient in (images.grad, captions.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
    assert images.grad is not None
    assert not images.grad[0].any(), "no violation, no pull"


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_it_is_squared(dtype: torch.dtype) -> None:
    # 300 squared is beyond float16, and bfloat16 has eight bits of a square.
    vectors = (300 * torch.randn(5, D)).to(dtype)
    ours = l2_normalise(vectors)
    assert ours.dtype is torch.float32
    exact = vectors.double() / vectors.double().norm(dim=-1, keepdim=True)
    assert_close(ours.double(), exact, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_stay_what_they_are(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, dtype=dtype)
    assert at_least_float32(tensor) is tensor
    assert l2_normalise(tensor).dtype is dtype


@pytest.mark.parametrize("counts", [None, COUNTS], ids=["all real", "padded"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("image_norm", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_under_bf16_embeddings_and_losses_are_float32(
    cell: str, counts: torch.Tensor | None, image_norm: bool, similarity: str
) -> None:
    captioner = CaptionerConfig(cell=cell, hidden_dim=16, word_dim=8, dropout=0.0)  # type: ignore[arg-type]
    sizes = ModelConfig(feature_dim=F, joint_dim=32, word_dim=8, reasoning_layers=2, captioner=captioner)
    config = dataclasses.replace(sizes, image_norm=image_norm, similarity=similarity)  # type: ignore[arg-type]
    model = build_vsrn(config, V)
    regions, (tokens, lengths) = features().float(), random_captions([5, 3, 9, 2])
    exact = model(Batch(regions, tokens, lengths, counts), TripletLoss(LossConfig()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(Batch(regions, tokens, lengths, counts), TripletLoss(LossConfig()))
        images, captions = model.image_encoder(regions, counts).embeddings, model.caption_encoder(tokens, lengths)
    for tensor in (images, captions, losses.matching, losses.generation):
        assert tensor.dtype is torch.float32
    assert losses.joint.item() == pytest.approx(exact.joint.item(), rel=0.05)
    # The half precision is in the embeddings; nothing is rounded again after them.
    score = cosine_similarities if similarity == "cosine" else order_similarities
    expected = matching_loss(score(images.double(), captions.double()), 0.2)
    assert losses.matching.item() == pytest.approx(expected.item(), rel=1e-5)


# Options


def test_absolute_and_unnormalised_embeddings_are_what_their_names_say() -> None:
    plain = image_encoder(image_norm=False).eval()
    regions = features()
    raw = plain(regions).embeddings
    for image_norm, absolute, expected in (
        (True, False, l2_normalise(raw)),
        (False, True, raw.abs()),
        (True, True, l2_normalise(raw).abs()),
    ):
        plain.config = dataclasses.replace(plain.config, image_norm=image_norm, absolute=absolute)
        assert_close(plain(regions).embeddings, expected)


def test_without_reasoning_layers_and_with_the_mean_it_is_the_baseline() -> None:
    config = ModelConfig(feature_dim=F, joint_dim=D, reasoning_layers=0, aggregator="mean", normalisation="none")
    encoder = ImageEncoder(config).double()
    regions = features()
    projected = regions.mean(dim=1) @ encoder.projection.weight.T + encoder.projection.bias
    assert_close(encoder(regions).embeddings, projected / projected.norm(dim=-1, keepdim=True))
