"""A GRU over a batch of captions, forward and backward in bf16: ours against torch's on packed sequences.

python benchmarks/caption_gru.py

Captions are as long as Flickr8K's; one of them has the most tokens that its captions have, as one in a batch often has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import interleave, record
from problem import BATCH, JOINT_DIM, make_captions
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vsrn.model.gru import read_sequences

WORD_DIM, LONGEST, ROUNDS = 300, 35, 9

Read = Callable[[nn.GRU, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """One direction, as VSRN has it, and both, as VSE-infinity and SCAN do."""
    torch.manual_seed(0)
    lengths = torch.tensor([LONGEST, *(len(caption) for caption in make_captions(BATCH - 1))])
    words = torch.randn(BATCH, LONGEST, WORD_DIM)
    for directions, bidirectional in (("one direction", False), ("both directions", True)):
        gru = nn.GRU(WORD_DIM, JOINT_DIM, batch_first=True, bidirectional=bidirectional)
        difference = largest_difference(gru, words, lengths)
        assert difference < 1e-4, difference
        ratio = interleave(
            lambda gru=gru: train(read_sequences, gru, words, lengths),  # type: ignore[misc]
            lambda gru=gru: train(by_torch, gru, words, lengths),  # type: ignore[misc]
            ROUNDS,
        )
        record(
            f"Captions in training, bf16, {directions}",
            target="none set",
            measured=f"{ratio.median:.1f}x [{ratio.low:.1f}-{ratio.high:.1f}]",
            reached=True,
            checked=f"states and gradients in fp32 differ by {difference:.0e} of the largest at most",
            ratio=ratio,
        )


def by_torch(gru: nn.GRU, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, T, I) -> (B, T, D or 2D), as the 2019 code read captions."""
    packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=words.shape[1])[0]


def train(read: Read, gru: nn.GRU, words: torch.Tensor, lengths: torch.Tensor) -> None:
    """Forward and backward, into the words too."""
    words = words.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = read(gru, words, lengths)
    gru.zero_grad()
    states.float().pow(2).sum().backward()


def largest_difference(gru: nn.GRU, words: torch.Tensor, lengths: torch.Tensor) -> float:
    """Of states and gradients in float32, as a share of each one's largest number."""
    words = words.clone().requires_grad_()
    found = []
    for read in (read_sequences, by_torch):
        states = read(gru, words, lengths)
        found.append([states, *torch.autograd.grad(states.pow(2).sum(), [words, *gru.parameters()])])
    shares = [
        float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
        for ours, theirs in zip(*found, strict=True)
    ]
    return max(shares)


if __name__ == "__main__":
    main()
