"""A captioner's most probable words, one after the other, as the 2019 code writes captions."""

from __future__ import annotations

import torch

from vsrn.data.vocabulary import START
from vsrn.model.captioner import Captioner


@torch.no_grad()
def greedy(
    captioner: Captioner, reasoned_regions: torch.Tensor, num_words: int, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, D) reasoned regions -> (B, num_words) words, not stopping at <end>, and their log-probabilities."""
    regions, state = captioner.read(reasoned_regions, counts)
    word = torch.full((len(reasoned_regions),), START, device=reasoned_regions.device)
    words, scores = [], []
    for _ in range(num_words):
        state = captioner.step(captioner.embedding(word), state, regions)
        score, word = captioner.output(state[0]).log_softmax(dim=-1).max(dim=-1)
        words.append(word)
        scores.append(score)
    return torch.stack(words, dim=1), torch.stack(scores, dim=1)
