"""The other side of every comparison: the original's *arithmetic*, written plainly.

It computes what our code computes, with the same weights, the way the 2019 code goes about it: attention over
concatenated states at every step, a fixed number of decoding steps, the vocabulary projected at each of them,
captions encoded in the order they come, one query ranked at a time with a full sort, SCAN's attention one caption
at a time. Nothing here is made slow on purpose: it is torch and numpy, used as one would at first.

Shapes: B images or captions, N regions, D joint size, T tokens, H captioner size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vsrn.data.vocabulary import END
from vsrn.metrics import FloatArray, IntArray, Ranks
from vsrn.model.aggregators import GlobalSemanticReasoning
from vsrn.model.base import BaseImageEncoder, BaseTextEncoder, MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.gru import at_least_float32, l2_normalise, pad_tokens
from vsrn.model.losses import matching_loss
from vsrn.model.reasoning import RegionRelationshipReasoning, normalise_channels
from vsrn.model.vsrn import ImageEncoder, TextEncoder


def joint_loss(
    model: MatchingModel, features: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor, margin: float
) -> torch.Tensor:
    """Matching loss with hardest negatives plus generation loss of B pairs; every caption brings its own image."""
    assert model.captioner is not None
    embeddings, regions = encode_images(model.image_encoder, features)
    captions = model.caption_encoder(tokens, lengths)
    matching = matching_loss(at_least_float32(embeddings) @ at_least_float32(captions).T, margin)
    return matching + generation_loss(model.captioner, regions, tokens, lengths)


def encode_images(encoder: BaseImageEncoder, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, F) -> embeddings (B, D) and reasoned regions (B, N, D); Flickr30K path, four products a layer."""
    assert isinstance(encoder, ImageEncoder)
    regions = encoder.projection(features)
    for layer in encoder.reasoning:
        assert isinstance(layer, RegionRelationshipReasoning)
        regions = reason(layer, regions)
    regions = normalise_channels(regions)
    assert isinstance(encoder.aggregator, GlobalSemanticReasoning)
    assert encoder.norm is not None
    return l2_normalise(encoder.norm(encoder.aggregator.gru(regions)[1][0])), regions


def reason(layer: RegionRelationshipReasoning, regions: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, N, D), with each product of the paper taken by itself, as 1x1 convolutions over (B, D, N)."""
    channels = regions.transpose(1, 2).contiguous()  # (B, D, N)
    theta = _convolve(layer.theta, channels).transpose(1, 2)
    phi = _convolve(layer.phi, channels)
    affinity = torch.matmul(theta, phi) / regions.shape[1]
    messages = torch.matmul(affinity, _convolve(layer.w_g, channels).transpose(1, 2).contiguous())
    update = layer.norm(_convolve(layer.w_r, messages.transpose(1, 2).contiguous()))
    return (update + channels).transpose(1, 2).contiguous()


def _convolve(linear: nn.Linear, channels: torch.Tensor) -> torch.Tensor:
    return functional.conv1d(channels, linear.weight[..., None], linear.bias)


def generation_loss(
    captioner: Captioner, regions: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Every caption takes max_tokens - 1 steps; padding is projected onto the vocabulary and masked afterwards."""
    longest = captioner.config.max_tokens
    labels = torch.zeros(len(tokens), longest + 1, dtype=torch.long)
    mask = torch.zeros(len(tokens), longest + 1)
    for row, length in enumerate(lengths.tolist()):
        kept = min(length, longest)
        labels[row, :kept] = tokens[row, :kept]
        if length > longest - 1:
            labels[row, longest - 1] = END
        mask[row, : kept + 1] = 1
    states, last = captioner.encoder(captioner.dropout(captioner.projection(regions)))
    state, loss = last[0], torch.zeros(())
    for step in range(longest - 1):
        context = _attend(captioner, states, state)
        word = captioner.embedding(labels[:, step])
        state = captioner.decoder(captioner.dropout(torch.cat([word, context], dim=1)), state)
        log_probabilities = functional.log_softmax(at_least_float32(captioner.output(state)), dim=1)
        target = labels[:, step + 1]
        loss = loss - (log_probabilities.gather(1, target[:, None])[:, 0] * mask[:, step + 1]).sum()
    return loss / len(tokens)


def _attend(captioner: Captioner, states: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Attention over [region ; state], concatenated anew for every region at every step."""
    repeated = state[:, None, :].expand(-1, states.shape[1], -1)
    hidden = torch.tanh(captioner.attention_hidden(torch.cat([states, repeated], dim=2)))
    weights = functional.softmax(captioner.attention_score(hidden)[..., 0], dim=1)
    return torch.bmm(weights[:, None, :], states)[:, 0]


def encode_captions(encoder: BaseTextEncoder, tokens: Sequence[IntArray], batch_size: int) -> torch.Tensor:
    """Captions in the order they come: padded to the longest of their batch, packed, and unpacked again."""
    assert isinstance(encoder, TextEncoder)
    parts = []
    for first in range(0, len(tokens), batch_size):
        padded, lengths = pad_tokens(tokens[first : first + batch_size])
        packed = pack_padded_sequence(encoder.embedding(padded), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(encoder.gru(packed)[0], batch_first=True)
        parts.append(l2_normalise(states[torch.arange(len(padded)), lengths - 1]))
    return torch.cat(parts)


def rank(images: FloatArray, captions: FloatArray, image_of_caption: IntArray) -> Ranks:
    """One query at a time: its similarities to everything, sorted in full, and the place of the match looked up."""
    image_to_text = np.empty(len(images), dtype=np.int64)
    for image, embedding in enumerate(images):
        order = np.argsort(-(captions @ embedding), kind="stable")
        places = np.flatnonzero(image_of_caption[order] == image)
        image_to_text[image] = places[0]
    text_to_image = np.empty(len(captions), dtype=np.int64)
    for caption, embedding in enumerate(captions):
        order = np.argsort(-(images @ embedding), kind="stable")
        text_to_image[caption] = np.flatnonzero(order == image_of_caption[caption])[0]
    return Ranks(image_to_text, text_to_image)


def scan_text_to_image(regions: torch.Tensor, words: Sequence[torch.Tensor], temperature: float = 9.0) -> torch.Tensor:
    """SCAN's text-to-image scores (Lee et al. 2018, section 3.1), one caption against all images at a time.

    regions (num_images, N, D) and words, per caption (T, D), of unit length -> (num_images, num_captions), the mean
    over words of the cosine between each word and the regions it attends to.
    """
    scores = []
    for caption in words:
        queries = caption[None].expand(len(regions), -1, -1).contiguous()  # (num_images, T, D)
        affinity = torch.bmm(regions, queries.transpose(1, 2))  # (num_images, N, T)
        affinity = functional.leaky_relu(affinity, 0.1)
        affinity = affinity / (affinity.pow(2).sum(dim=2, keepdim=True).sqrt() + 1e-8)
        attention = functional.softmax(temperature * affinity, dim=1)  # over regions
        attended = torch.bmm(attention.transpose(1, 2).contiguous(), regions)  # (num_images, T, D)
        scores.append(functional.cosine_similarity(queries, attended, dim=2).mean(dim=1))
    return torch.stack(scores, dim=1)
