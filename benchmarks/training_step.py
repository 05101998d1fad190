"""One training step with the joint loss: ours in fp32 and bf16 against the obvious arithmetic in fp32.

python benchmarks/training_step.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import obvious
import torch
from harness import interleave, record_ratio, share_of_products
from problem import make_batch, make_model

from vsrn.config import LossConfig
from vsrn.model.base import Batch
from vsrn.model.losses import TripletLoss

LOSS = TripletLoss(LossConfig())


def main() -> None:
    """Check that both sides have the same loss, then time whole steps."""
    batch = make_batch()
    checked = check(batch)
    model = make_model()
    theirs = obvious_step(copy.deepcopy(model), batch)
    for precision, dtype, target in (("fp32", torch.float32, 4.0), ("bf16", torch.bfloat16, 8.0)):
        ours = our_step(copy.deepcopy(model), batch, precision)
        ratio = interleave(ours, theirs, rounds=4)
        share = share_of_products(ours, dtype)
        record_ratio(f"Training step, {precision}", ratio, target, f"{checked}; {share}")


def check(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> str:
    """Losses without dropout, which no two orders of computing draw alike."""
    model = make_model(dropout=0.0).train()
    features, tokens, lengths = batch
    theirs = obvious.joint_loss(copy.deepcopy(model), features, tokens, lengths, LossConfig().margin)
    ours = model(Batch(features, tokens, lengths, None), LOSS).joint
    difference = abs(float((ours - theirs).detach())) / float(theirs.detach())
    assert difference < 1e-5, difference
    return f"losses differ by {difference:.0e} (relative)"


def our_step(model: torch.nn.Module, batch: tuple[torch.Tensor, ...], precision: str) -> Callable[[], None]:
    """The step of training/trainer.py."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    features, tokens, lengths = batch

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(Batch(features, tokens, lengths, None), LOSS).joint
        take(optimizer, loss)

    return step


def obvious_step(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """The same by benchmarks/obvious.py."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    features, tokens, lengths = batch
    return lambda: take(optimizer, obvious.joint_loss(model, features, tokens, lengths, LossConfig().margin))  # type: ignore[arg-type]


def take(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Backpropagate, clip, step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 2.0)
    optimizer.step()


if __name__ == "__main__":
    main()
