"""The decoder whose backward pass we wrote, against the captioner's own steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vsrn.config import CaptionerConfig
from vsrn.model.captioner import Captioner

REGIONS, DIM, WORDS = 5, 6, 11


class Wrapped(nn.Module):
    """A layer in the place of another, which a captioner has to call step by step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        result: torch.Tensor = self.inner(*inputs)
        return result


def make(dtype: torch.dtype = torch.float64, **config: object) -> Captioner:
    torch.manual_seed(0)
    config = {"hidden_dim": 4, "word_dim": 3, "max_tokens": 6, "dropout": 0.0} | config
    return Captioner(CaptionerConfig(**config), DIM, WORDS).to(dtype)  # type: ignore[arg-type]


def losses_and_gradients(
    captioner: Captioner, regions: torch.Tensor, lengths: list[int], counts: torch.Tensor | None
) -> list[torch.Tensor]:
    tokens = torch.randint(4, WORDS, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    loss = captioner.generation_loss(regions, tokens, torch.tensor(lengths), counts)
    return [loss, *torch.autograd.grad(loss, [regions, *captioner.parameters()])]


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    counted=st.booleans(),
    bidirectional=st.booleans(),
)
def test_loss_and_every_gradient_are_those_of_the_steps_one_by_one(
    lengths: list[int], counted: bool, bidirectional: bool
) -> None:
    captioner = make(bidirectional=bidirectional)
    regions = torch.randn(len(lengths), REGIONS, DIM, dtype=torch.float64, requires_grad=True)
    counts = torch.arange(len(lengths)) % REGIONS + 1 if counted else None
    ours = losses_and_gradients(captioner, regions, lengths, counts)
    captioner.attention_score.register_forward_hook(lambda *_: None)
    theirs = losses_and_gradients(captioner, regions, lengths, counts)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


def test_with_dropout_the_gradient_is_that_of_differences() -> None:
    captioner = make(dropout=0.5).train()
    regions = torch.randn(3, REGIONS, DIM, dtype=torch.float64, requires_grad=True)
    tokens, lengths = torch.randint(4, WORDS, (3, 5)), torch.tensor([5, 3, 2])

    def loss(regions: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)  # the same numbers are dropped each time
        return captioner.generation_loss(regions, tokens, lengths)

    assert torch.autograd.gradcheck(loss, (regions,))


@pytest.mark.parametrize("part", ["decoder", "attention_score", "attention_hidden", "dropout"])
def test_a_wrapped_part_is_called_and_changes_nothing(part: str) -> None:
    captioner = make()
    regions = torch.randn(2, REGIONS, DIM, dtype=torch.float64, requires_grad=True)
    ours = losses_and_gradients(captioner, regions, [4, 3], None)
    wrapped = Wrapped(getattr(captioner, part))
    setattr(captioner, part, wrapped)
    theirs = losses_and_gradients(captioner, regions, [4, 3], None)
    assert wrapped.calls > 2, "one call a step"
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=1e-12)


def test_rounded_products_are_as_near_to_exact_ones_as_those_of_the_steps_one_by_one() -> None:
    captioner = make(torch.float32, hidden_dim=32, word_dim=16)
    regions = torch.randn(4, REGIONS, DIM, requires_grad=True)
    exact = losses_and_gradients(captioner, regions, [6, 5, 3, 2], None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = losses_and_gradients(captioner, regions, [6, 5, 3, 2], None)
        captioner.attention_score.register_forward_hook(lambda *_: None)
        theirs = losses_and_gradients(captioner, regions, [6, 5, 3, 2], None)
    for mine, its, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.float32
        error, allowed = ((rounded - true).detach().norm() for rounded in (mine, its))
        assert error <= 1.5 * allowed + 0.01 * true.detach().norm()
