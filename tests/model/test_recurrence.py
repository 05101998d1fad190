"""The GRU whose backward pass we wrote, against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vsrn.model.gru import read_sequences


def by_torch(gru: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]


def make(layers: int, bidirectional: bool, lengths: list[int], dtype: torch.dtype) -> tuple[nn.GRU, torch.Tensor]:
    torch.manual_seed(sum(lengths))
    gru = nn.GRU(3, 4, layers, batch_first=True, bidirectional=bidirectional).to(dtype)
    return gru, torch.randn(len(lengths), max(lengths) + 1, 3, dtype=dtype, requires_grad=True)


@given(
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
)
def test_states_and_gradients_are_those_of_torch(layers: int, bidirectional: bool, lengths: list[int]) -> None:
    gru, inputs = make(layers, bidirectional, lengths, torch.float64)
    ours, theirs = (read(gru, inputs, torch.tensor(lengths)) for read in (read_sequences, by_torch))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    towards = torch.randn_like(theirs)
    sources = [inputs, *gru.parameters()]
    for mine, its in zip(
        torch.autograd.grad((ours * towards).sum(), sources),
        torch.autograd.grad((theirs * towards).sum(), sources),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


def test_without_lengths_every_step_is_real() -> None:
    gru, inputs = make(2, True, [4, 4, 4], torch.float64)
    torch.testing.assert_close(read_sequences(gru, inputs), gru(inputs)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[5, 2, 9], [1, 1]])
def test_rounded_products_leave_states_wide(lengths: list[int]) -> None:
    gru, inputs = make(1, True, lengths, torch.float32)
    exact = read_sequences(gru, inputs, torch.tensor(lengths))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = read_sequences(gru, inputs, torch.tensor(lengths))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02)
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in gru.parameters())
