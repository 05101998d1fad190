"""Stacked cross attention (section 3.1 of Lee et al., *Stacked Cross Attention for Image-Text Matching*, ECCV 2018).

One side holds the queries, the other is attended to: in text-to-image every word attends to the regions of an image,
in image-to-text every region to the words of a caption. The relevance of a query is its cosine with the vector that it
attended to; the relevances of all queries make the similarity.

The attended vectors are never made: with attention a of a query q over contexts c, the attended vector v = sum a c has
q.v = sum a (q.c) and |v|^2 = a G a with the contexts' inner products G, so affinities are enough.

Shapes: I images of N regions, C captions of T words, D joint size. Affinities are (C, T, I, N): cosines of every word
with every region, 0 where a region or a word is padding. Masks are True where a word (C, T, 1, 1) or a region
(1, 1, I, N) is real; None where all are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from vsrn.config import ModelConfig, ScanConfig
from vsrn.model.base import BaseModel, Batch, Gather, Losses, MatchingLoss, WordGRU, make_projection, project
from vsrn.model.gru import at_least_float32, mask_of
from vsrn.model.losses import Epochs

EPSILON = 1e-8
WORDS, REGIONS = 1, 3


def similarities(
    regions: torch.Tensor,
    words: torch.Tensor,
    lengths: torch.Tensor,
    mask: torch.Tensor | None,
    config: ScanConfig,
    *,
    padded: bool = False,
) -> torch.Tensor:
    """Similarity of every image with every caption: (I, C) float32 or wider.

    regions  (I, N, D) unit vectors, 0 where padded
    words    (C, T, D) unit vectors; those after a caption's last word are not read
    lengths  (C,) words of each caption: on the CPU, or where the words are if `padded`
    padded   whether all captions are compared together, so that no shape depends on `lengths` and the step can be
             recorded as a CUDA graph; else captions of equal length are, which saves the arithmetic of padded words
    """
    by_length = []
    masks = {WORDS: None, REGIONS: None if mask is None else mask[None, None]}
    if padded:
        real = mask_of(words, lengths)
        assert real is not None, "captions have lengths"
        masks[WORDS] = real[..., None, None]
        groups = [words.masked_fill(~real[..., None], 0)]
    else:
        by_length = [(length, (lengths == length).nonzero()[:, 0]) for length in torch.unique(lengths).tolist()]
        groups = [words[rows, :length] for length, rows in by_length]
    # One product for all captions, bf16 under bf16 autocast; everything after it is float32.
    sizes = [group.shape[0] * group.shape[1] for group in groups]
    flat = torch.cat([group.flatten(0, 1) for group in groups])
    affinities = at_least_float32(flat @ regions.flatten(0, 1).mT)
    with torch.autocast(regions.device.type, enabled=False):
        own = _inner_products(regions) if config.direction == "text_to_image" else None
        found = []
        for affinity, group in zip(torch.split(affinities, sizes), groups, strict=True):
            context = own if own is not None else _inner_products(group)
            shaped = affinity.view(*group.shape[:2], *regions.shape[:2])
            found.append(_group_similarities(shaped, context, masks, config))
    scores = torch.cat(found, dim=1)
    if padded:
        return scores
    back = torch.cat([rows for _, rows in by_length]).argsort()
    return scores[:, back.to(regions.device)]


def _group_similarities(
    affinity: torch.Tensor,
    context: torch.Tensor,
    masks: dict[int, torch.Tensor | None],
    config: ScanConfig,
) -> torch.Tensor:
    """(C, T, I, N) affinities -> (I, C).

    context  inner products of what is attended to: regions (I, N, N), or words (C, T, T); 0 where padded
    masks    of WORDS and of REGIONS
    """
    queries, attended = (WORDS, REGIONS) if config.direction == "text_to_image" else (REGIONS, WORDS)
    logits = config.inverse_temperature * _first_norm(affinity, queries, masks[queries], config.first_norm)
    attendable = masks[attended]
    if attendable is not None:
        logits = logits.masked_fill(~attendable, -torch.inf)
    attention = logits.softmax(dim=attended)
    product = (attention * affinity).sum(dim=attended)
    squared_length = _squared_lengths(attention, context, attended)
    # Queries are unit vectors, so their own length is left out of the cosine.
    relevance = (product / squared_length.clamp(min=EPSILON**2).sqrt()).unsqueeze(attended)
    return _aggregate(relevance, queries, masks[queries], config).flatten(1).mT


def _first_norm(affinity: torch.Tensor, queries: int, mask: torch.Tensor | None, name: str) -> torch.Tensor:
    """Affinities made comparable among the real queries (section 3.1, and the variants of the published code)."""
    if name == "softmax":
        if mask is not None:
            affinity = affinity.masked_fill(~mask, -torch.inf)
        return affinity.softmax(dim=queries)
    if name in ("clipped", "clipped_l2norm"):
        affinity = functional.leaky_relu(affinity, 0.1)
    if name in ("l2norm", "clipped_l2norm"):
        # Clamping keeps the square root's gradient finite where padding has zeros alone.
        norm = affinity.square().sum(dim=queries, keepdim=True).clamp(min=EPSILON**4).sqrt()
        affinity = affinity / (norm + EPSILON)
    return affinity


def _squared_lengths(attention: torch.Tensor, context: torch.Tensor, attended: int) -> torch.Tensor:
    """a G a of every query: (C, T, I) or (C, I, N)."""
    if attended == REGIONS:
        captions, words, images, regions = attention.shape
        by_image = attention.view(captions * words, images, regions).transpose(0, 1)
        return ((by_image @ context) * by_image).sum(dim=2).mT.reshape(captions, words, images)
    by_caption = attention.flatten(2)
    return ((context @ by_caption) * by_caption).sum(dim=1).view(len(attention), *attention.shape[2:])


def _aggregate(relevance: torch.Tensor, dim: int, mask: torch.Tensor | None, config: ScanConfig) -> torch.Tensor:
    """Relevances of all real queries, along `dim`, as one number (section 3.1)."""
    if config.aggregation in ("sum", "mean"):
        total = (relevance if mask is None else relevance * mask).sum(dim=dim)
        if config.aggregation == "sum":
            return total
        return total / (relevance.shape[dim] if mask is None else mask.sum(dim=dim))
    if mask is not None:
        relevance = relevance.masked_fill(~mask, -torch.inf)
    if config.aggregation == "max":
        return relevance.amax(dim=dim)
    return (config.logsumexp_factor * relevance).logsumexp(dim=dim) / config.logsumexp_factor


def _inner_products(vectors: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, N, N)."""
    vectors = at_least_float32(vectors)
    return vectors @ vectors.mT


@dataclass(frozen=True)
class EncodedRegions:
    """Images as sets.

    vectors  (B, N, D) unit vectors, 0 where a region is padding
    mask     (B, N) True where a region is real, or None where all are
    """

    vectors: torch.Tensor
    mask: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, images: npt.NDArray[np.integer] | slice) -> EncodedRegions:
        at = images if isinstance(images, slice) else torch.from_numpy(images).to(self.vectors.device)
        return EncodedRegions(self.vectors[at], None if self.mask is None else self.mask[at])


class RegionProjection(nn.Module):
    """Section 3.3: every region projected, unit length."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.feature_dim is not None, "the feature size is known before a model is built"
        self.projection = make_projection(config.feature_dim, config.joint_dim)

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> EncodedRegions:
        """(B, N, F) features as stored, (B,) real regions of each or None for all."""
        regions, mask = functional.normalize(project(self.projection, features), dim=-1), mask_of(features, counts)
        return EncodedRegions(regions if mask is None else regions * mask[..., None], mask)


class WordEncoder(WordGRU):
    """Section 3.4: every word in its context, the GRU's directions averaged, unit length."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size, bidirectional=config.scan.bidirectional)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids, (B,) real tokens of each -> (B, T, D), 0 after the last word."""
        return functional.normalize(self.mean_of_directions(at_least_float32(self.states(tokens, lengths))), dim=-1)


class SCAN(BaseModel):
    """Projected regions, words in context, stacked cross attention: similarities without a vector of an image."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config)
        self.region_encoder = RegionProjection(config)
        self.word_encoder = WordEncoder(config, vocabulary_size)

    @property
    def similarity(self) -> str:
        """Name of its scale; the published ensembles average both directions."""
        return "stacked cross attention"

    def forward(
        self, batch: Batch, loss: MatchingLoss, gather: Gather = lambda rows: rows, epochs: Epochs = math.inf
    ) -> Losses:
        """The matching loss of B matching pairs, and 0, since SCAN has no captioner.

        loss    matching loss of (B, B) similarities after so many epochs
        gather  rows of this process -> rows of the global batch, where several processes train together
        epochs  trained so far, for a loss that warms up; by default the warm-up is over
        """
        features, tokens, lengths, counts, _ = batch
        images = self.region_encoder(features, counts)
        mask = None if images.mask is None else gather(images.mask)
        all_lengths = gather(lengths)
        if len(all_lengths) > len(lengths):
            # Other processes may have longer captions, and all gather words of one shape.
            tokens = functional.pad(tokens, (0, int(all_lengths.max()) - tokens.shape[1]))
        words = gather(self.word_encoder(tokens, lengths))
        padded = lengths.device.type != "cpu"
        scores = similarities(gather(images.vectors), words, all_lengths, mask, self.config.scan, padded=padded)
        matching = loss(scores, epochs)
        return Losses(matching, torch.zeros_like(matching))
