"""The captioning head: a sequence-to-sequence decoder with attention over reasoned regions (section 3.4).

Shapes: B captions, N regions, D joint size, H captioner size (doubled where the encoder is
bidirectional), T tokens of the longest caption in the batch, V vocabulary size.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vsrn.config import CaptionerConfig
from vsrn.data.vocabulary import END
from vsrn.model.decoding import Decoder
from vsrn.model.gru import at_least_float32, dtype_of, is_plain, mask_of, read_sequences, state_at

State = tuple[torch.Tensor, torch.Tensor | None]

# Finished captions are cut from the running batch once this share of its rows, or less, is unfinished.
SHRINK_AT = 0.75
# Marks a place that counts for nothing in the loss.
_NO_WORD = -100


class AttendedRegions(NamedTuple):
    """Regions ready to be attended to at every step.

    states  (B, N, H) states of the captioner's encoder
    keys    (B, N, H) the states' share of the attention's first layer, the same at every step; None where that layer
            is wrapped or has hooks, and so is called as a whole
    mask    (B, N) True where a region is real, or None
    """

    states: torch.Tensor
    keys: torch.Tensor | None
    mask: torch.Tensor | None

    def of(self, images: torch.Tensor | slice) -> AttendedRegions:
        """These images of the batch, by their places in it."""
        kept = (None if part is None else part[images] for part in (self.keys, self.mask))
        return AttendedRegions(self.states[images], *kept)


class Captioner(nn.Module):
    """Encoder over regions, attention, decoder over words; its loss trains the image encoder too."""

    def __init__(self, config: CaptionerConfig, region_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        rnn, cell = (nn.GRU, nn.GRUCell) if config.cell == "gru" else (nn.LSTM, nn.LSTMCell)
        hidden = config.hidden_dim * (2 if config.bidirectional else 1)
        self.projection = nn.Linear(region_dim, config.hidden_dim)
        self.encoder = rnn(config.hidden_dim, config.hidden_dim, batch_first=True, bidirectional=config.bidirectional)
        self.attention_hidden = nn.Linear(2 * hidden, hidden)
        self.attention_score = nn.Linear(hidden, 1, bias=False)
        self.embedding = nn.Embedding(vocabulary_size, config.word_dim)
        self.decoder = cell(config.word_dim + hidden, hidden)
        self.output = nn.Linear(hidden, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_normal_(self.projection.weight)
        nn.init.xavier_normal_(self.output.weight)

    def generation_loss(
        self,
        reasoned_regions: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross entropy of the captions' words, summed over words and divided by B.

        reasoned_regions  (B, N, D)
        tokens            (B, T) ids from <start> to <end>, padded with <pad>
        lengths           (B,) real tokens of each; on the CPU, or where the tokens are
        counts            (B,) real regions of each image, or None for all

        As in the 2019 code, <end> counts as a word, and so does one <pad> after it where
        `max_tokens` leaves room; a longer caption is cut to `max_tokens`, the last being <end>.
        """
        labels = functional.pad(tokens, (0, 1))[:, : self.config.max_tokens]
        cut = (lengths >= self.config.max_tokens).to(labels.device)
        labels[:, -1] = labels[:, -1].masked_fill(cut, END)
        if lengths.device.type == "cpu":
            states, targets = self._states_of_words(reasoned_regions, labels, lengths, counts)
        else:
            states, targets = self._states_of_places(reasoned_regions, labels, lengths, counts)
        logits = at_least_float32(self.output(states.to(dtype_of(self.output))))
        return functional.cross_entropy(logits, targets, reduction="sum", ignore_index=_NO_WORD) / len(tokens)

    def _states_of_words(
        self, regions: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, counts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(words, H) the decoder's state before each real word of the captions, (words,) those words.

        The arithmetic is only that of real words; `generation_loss` says what it takes, `labels` are its tokens.
        """
        steps, order = lengths.clamp(max=self.config.max_tokens - 1).sort(descending=True, stable=True)
        order = order.to(labels.device)
        labels = labels[order]
        attended, state = self.read(regions[order], None if counts is None else counts[order])
        # The steps are computed from weights unless a part is wrapped, has hooks or is an LSTM's.
        parts = {self.decoder: nn.GRUCell, self.attention_score: nn.Linear, self.dropout: nn.Dropout}
        plain = attended.keys is not None and all(is_plain(part, kind) for part, kind in parts.items())
        if plain and regions.device.type == "cpu":
            return self._decoded(labels, steps, attended, state[0])
        words = self.embedding(labels).unbind(dim=1)
        outputs, targets = [], []
        for step in range(int(steps[0])):
            rows = int((steps > step).sum())
            if rows <= SHRINK_AT * len(state[0]):
                # The longest captions come first, so the unfinished ones are the first rows.
                # Cutting at every step would cost more in the backward pass than it saves.
                state, attended = rows_of(state, slice(rows)), attended.of(slice(rows))
            state = self.step(words[step][: len(state[0])], state, attended)
            outputs.append(state[0][:rows])
            targets.append(labels[:rows, step + 1])
        return torch.cat(outputs), torch.cat(targets)

    def _decoded(
        self, labels: torch.Tensor, steps: torch.Tensor, attended: AttendedRegions, first: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `_states_of_words` gives, all steps in one.

        labels  (B, T + 1) ids, the caption with the most words first; steps (B,) words of each; first (B, H)
        """
        real = torch.arange(int(steps[0]))[:, None] < steps  # (T, B)
        labels = labels.mT[: len(real) + 1]
        cell, words = cast("nn.GRUCell", self.decoder), self.dropout(self.embedding(labels[:-1][real]))
        of_words, of_context = cell.weight_ih.tensor_split([words.shape[1]], dim=1)
        gates = functional.linear(words.to(of_words.dtype), of_words, cell.bias_ih)
        hidden, kept = first.shape[1], None
        if self.dropout.training and self.dropout.p:
            kept = self.dropout(at_least_float32(first[:0]).new_ones(len(gates), hidden))
        recurrent = torch.cat([self.attention_hidden.weight[:, hidden:], cell.weight_hh])
        weights = self.attention_score.weight, of_context, recurrent, functional.pad(cell.bias_hh, (hidden, 0))
        regions = attended.states, attended.keys, first
        return Decoder.apply(gates, kept, *regions, *weights, attended.mask, real.sum(dim=1)), labels[1:][real]

    def _states_of_places(
        self, regions: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, counts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(places, H) the decoder's state before each place of the padded captions, (places,) the word or no word.

        With lengths on a device no shape depends on them, so that nothing waits for the device, and a step can be
        recorded and played again; `generation_loss` says what it takes, `labels` are its tokens.
        """
        attended, state = self.read(regions, counts)
        outputs = []
        for word in self.embedding(labels[:, :-1]).unbind(dim=1):
            state = self.step(word, state, attended)
            outputs.append(state[0])
        places = torch.arange(labels.shape[1] - 1, device=labels.device)
        real = places < lengths.clamp(max=self.config.max_tokens - 1)[:, None]
        targets = labels[:, 1:].masked_fill(~real, _NO_WORD)
        return torch.stack(outputs).flatten(0, 1), targets.mT.flatten()

    def read(self, regions: torch.Tensor, counts: torch.Tensor | None) -> tuple[AttendedRegions, State]:
        """(B, N, D) reasoned regions, (B,) real ones of each -> regions to attend to, and the decoder's first state."""
        inputs = self.dropout(self.projection(regions.to(dtype_of(self.projection))))
        states, state = self._encoded(inputs, counts)
        keys = None
        if is_plain(self.attention_hidden, nn.Linear):
            hidden = states.shape[-1]
            keys = functional.linear(states, self.attention_hidden.weight[:, :hidden], self.attention_hidden.bias)
        return AttendedRegions(states, keys, mask_of(regions, counts)), state

    def _encoded(self, inputs: torch.Tensor, counts: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        """(B, N, projected size), (B,) real regions of each or None -> (B, N, H) states, and each direction's last."""
        if self.config.cell == "gru":
            states = read_sequences(cast("nn.GRU", self.encoder), inputs, counts).to(inputs.dtype)
            last = states[:, -1] if counts is None else state_at(states, counts - 1)
            size = self.config.hidden_dim
            return states, (torch.cat([last[:, :size], states[:, 0, size:]], dim=-1), None)
        if counts is None:
            states, (hidden, memory) = self.encoder(inputs)
        else:
            packed = pack_padded_sequence(inputs, counts.cpu(), batch_first=True, enforce_sorted=False)
            packed_states, (hidden, memory) = self.encoder(packed)
            states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=inputs.shape[1])
        # (directions, B, H) -> (B, directions * H)
        return states, (hidden.transpose(0, 1).flatten(1), memory.transpose(0, 1).flatten(1))

    def step(self, words: torch.Tensor, state: State, regions: AttendedRegions) -> State:
        """(rows, word size) embedded previous words and the state -> the next state.

        There may be K rows for each image, next to each other (rows = B K), which share its regions.
        """
        context = self._attend(state[0], regions)
        inputs = self.dropout(torch.cat([words, context.to(words.dtype)], dim=-1))
        if state[1] is None:
            return self.decoder(inputs, state[0]), None
        hidden, memory = self.decoder(inputs, state)
        return hidden, memory

    def _attend(self, state: torch.Tensor, regions: AttendedRegions) -> torch.Tensor:
        """(B K, H) decoder states -> (B K, H) weighted means of their images' regions."""
        images, places = regions.states.shape[:2]
        if regions.keys is None:
            of_state = state.view(images, -1, 1, state.shape[-1]).expand(-1, -1, places, -1)  # (B, K, N, H)
            pairs = torch.cat([regions.states[:, None].expand_as(of_state), of_state], dim=-1)
            hidden = self.attention_hidden(pairs)
        else:
            query = functional.linear(state, self.attention_hidden.weight[:, state.shape[-1] :])
            query = query.view(images, -1, query.shape[-1])  # (B, K, H)
            hidden = regions.keys[:, None] + query[:, :, None]
        scores = self.attention_score(torch.tanh(hidden))[..., 0]
        if regions.mask is not None:
            scores = scores.masked_fill(~regions.mask[:, None], -torch.inf)
        weights = at_least_float32(scores).softmax(dim=-1).to(regions.states.dtype)
        return (weights @ regions.states).flatten(0, 1)


def rows_of(state: State, rows: torch.Tensor | slice) -> State:
    """These rows of the decoder's state."""
    return state[0][rows], None if state[1] is None else state[1][rows]
