"""All steps of the captioner's decoder on the CPU, with attention over regions and a backward pass of our own.

Autograd keeps some forty small operations a word, and adds the gradient of every weight at every step. Here each is one
product over all words, and what is elementwise is float32, which is faster on a CPU than bf16.

Shapes: B captions, longest first, N regions, H state size, P words of all captions together, packed: the first word of
every caption, the second of those that have one, and so on.
"""

from __future__ import annotations

from typing import Any

import torch

from vsrn.model.gru import Cell, Slopes, steps_of, sum_of_rows


class Decoder(torch.autograd.Function):
    """The decoder's state after each word, (P, H) in float32 or float64, and its gradient.

    scores  = v tanh(keys + Q h) = 2 v s + constant     s = sigmoid(2 keys + 2 Q h)
    context = softmax(scores) states, times `kept`
    h'      = GRU(gates + C context, h)

    The constant changes no weight, and torch takes a sixth of the time for a sigmoid.

    gates      (P, 3H) the words' share of the gates, in the precision of the products
    kept       (P, H) what is to be multiplied with what each word's step attends to, for dropout; or None
    states     (B, N, H) regions of each caption's image; keys (B, N, H) as in `AttendedRegions`
    first      (B, H) the decoder's first state
    score      (1, H) v
    context    (3H, H) C
    recurrent  (4H, H) Q, then the GRU's weights of the state; bias (4H,) is beside them
    mask       (B, N) True where a region is real, or None
    rows       (T,) number of captions that have a word at each step
    """

    @staticmethod
    def forward(ctx: Any, gates: torch.Tensor, kept: torch.Tensor | None, *rest: torch.Tensor) -> torch.Tensor:
        """(P, H) states; what each step computed is kept for the backward pass."""
        states, keys, first, score, of_context, of_state, bias, mask, rows = rest
        products, wide = gates.dtype, torch.promote_types(gates.dtype, torch.float32)
        dim = first.shape[1]
        ctx.dtypes = [tensor.dtype for tensor in rest[:7]]
        states, keys = states.to(wide), keys.to(wide) * 2
        score, bias = score.to(wide)[0] * 2, bias.to(products)
        of_context, of_state = of_context.to(products).t(), of_state.to(products).t()
        cell = Cell.empty((len(gates),), dim, wide)
        queries = torch.empty(len(gates), dim, dtype=wide)
        hidden = torch.empty_like(keys)
        contexts = torch.empty(len(gates), dim, dtype=products)
        shares = torch.zeros(len(rows), *states.shape[:2], dtype=wide)
        state = first.to(wide)
        steps = zip(*(steps_of(part, rows) for part in (gates, queries, contexts, *cell)), shares, strict=True)
        keeps = None if kept is None else steps_of(kept, rows)
        with torch.autocast("cpu", enabled=False):
            for number, (given, query, context, *parts, share) in enumerate(steps):
                step, live = Cell(*parts), len(given)
                state = state[:live]
                step.before.copy_(state)
                recurrent = torch.addmm(bias, state.to(products), of_state)
                query.copy_(recurrent[:, :dim]).mul_(2)
                scores = torch.add(keys[:live], query[:, None], out=hidden[:live]).sigmoid_() @ score
                if mask is not None:
                    scores.masked_fill_(~mask[:live], -torch.inf)
                share[:live] = scores.softmax(dim=1)
                taken = torch.bmm(share[:live, None], states[:live])[:, 0]
                context.copy_(taken if keeps is None else taken.mul_(keeps[number]))
                state = step.step(torch.addmm(given, context, of_context), recurrent[:, dim:], state)
        ctx.save_for_backward(*rest[3:6], rows, kept, states, keys, queries, contexts, shares, *cell[:-1])
        return cell.states

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """(P, H) gradient of the states -> those of all that `forward` took."""
        score, context, recurrent, rows, kept, states, keys, queries, contexts, shares, *parts = ctx.saved_tensors
        cell, products, wide, dim = Cell(*[*parts, gradient]), contexts.dtype, states.dtype, gradient.shape[1]
        of_context, of_state = context.to(products), recurrent.to(products)
        score = score.to(wide)[0] * 4
        of_gates = torch.empty(len(gradient), 3 * dim, dtype=products)
        of_recurrent = torch.empty(len(gradient), 4 * dim, dtype=products)
        of_score = torch.zeros_like(score)
        of_taken = torch.zeros(len(rows), len(states), dim, dtype=wide)
        hidden, slope = torch.empty_like(keys), torch.empty_like(keys)
        of_keys, of_last = torch.zeros_like(states), torch.zeros(len(states), dim, dtype=wide)
        keeps = None if kept is None else steps_of(kept, rows)
        packed = (gradient, of_gates, of_recurrent, queries, *cell.slopes())
        steps = list(zip(*(steps_of(part, rows) for part in packed), shares, of_taken, strict=True))
        with torch.autocast("cpu", enabled=False):
            for number in reversed(range(len(rows))):
                given, to_gates, to_recurrent, query, *derivatives, share, to_taken = steps[number]
                live = len(given)
                to_state, share, to_taken = of_last[:live], share[:live], to_taken[:live]
                to_state += given
                Slopes(*derivatives).back(to_state, to_gates, to_recurrent[:, dim:])
                to_taken.copy_(to_gates @ of_context)
                if keeps is not None:
                    to_taken *= keeps[number]
                to_share = torch.bmm(states[:live], to_taken[:, :, None])[..., 0].mul_(share)
                to_scores = to_share.sub_(share * to_share.sum(dim=1, keepdim=True))
                # Computed again: it is in the processor's cache, where what all steps made would be 100 MB and more.
                seen = torch.add(keys[:live], query[:, None], out=hidden[:live]).sigmoid_()
                of_score.addmv_(seen.flatten(0, 1).t(), to_scores.flatten())
                rises = torch.addcmul(seen, seen, seen, value=-1, out=slope[:live])
                to_recurrent[:, :dim] = torch.bmm(to_scores[:, None], rises)[:, 0].mul_(score)
                of_keys[:live].addcmul_(to_scores[..., None], rises)
                to_state += to_recurrent @ of_state
            found = (
                shares.permute(1, 2, 0) @ of_taken.transpose(0, 1),
                of_keys.mul_(score),
                of_last,
                2 * of_score[None],
                of_gates.t() @ contexts,
                of_recurrent.t() @ cell.before.to(products),
                sum_of_rows(of_recurrent),
            )
        return of_gates, None, *map(torch.Tensor.to, found, ctx.dtypes), None, None
