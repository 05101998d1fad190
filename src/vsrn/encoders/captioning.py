"""Writing captions: beam search over the captioner's words, all images and beams of a batch in one step.

A beam of K keeps the K most probable partial captions of an image. One that ends leaves the beam, which is then
narrower by one; when none is left, or the caption is as long as the captioner was trained for, the whole caption of
the best score wins. The score is the mean log-probability of its words and of its end, so that long captions do not
lose by their length alone. A beam of 1 is greedy.

Shapes: B images, K partial captions of each, T words so far, V vocabulary size, H captioner size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vsrn.config import Config
from vsrn.data.tokenizer import join_words
from vsrn.data.vocabulary import END, PAD, START, UNK, Vocabulary
from vsrn.devices import pick_device
from vsrn.encoders.base import DEFAULT_BEAM, NO_CAPTIONER, WrittenCaption
from vsrn.encoders.folding import evaluating
from vsrn.encoders.inputs import slices
from vsrn.errors import CheckpointError, ConfigError
from vsrn.metrics import FloatArray, IntArray
from vsrn.model.captioner import SHRINK_AT, Captioner, rows_of
from vsrn.tensors import load_weights, read_tensors

# Never written: two are no words, and <unk> stands for every unknown word.
FORBIDDEN = (PAD, START, UNK)
WIDEST_BEAM = 100
# Images times beams that are searched at a time.
ROWS_AT_ONCE = 320


class CaptionWriter:
    """A captioner, whose weights may change between two calls, with the words of its vocabulary."""

    def __init__(self, captioner: Captioner, vocabulary: Vocabulary) -> None:
        self.captioner = captioner
        self.vocabulary = vocabulary

    @torch.inference_mode()
    def write(
        self, reasoned_regions: FloatArray, counts: IntArray | None = None, beam: int = DEFAULT_BEAM
    ) -> list[WrittenCaption]:
        """(B, N, D) reasoned regions, (B,) real ones of each or None for all -> a caption for each image.

        Raises `ConfigError` where the beam is not 1 to 100, and `CheckpointError` where the captioner's weights give
        no probabilities.
        """
        if not 1 <= beam <= WIDEST_BEAM:
            raise ConfigError(f"--beam is {beam}; it must be 1 to {WIDEST_BEAM}.")
        with evaluating(self.captioner):
            return self._write(reasoned_regions, counts, beam)

    def _write(self, reasoned_regions: FloatArray, counts: IntArray | None, beam: int) -> list[WrittenCaption]:
        weight, written = next(self.captioner.parameters()), list[WrittenCaption]()
        for part in slices(len(reasoned_regions), max(1, ROWS_AT_ONCE // beam)):
            regions = torch.from_numpy(np.ascontiguousarray(reasoned_regions[part])).to(weight)
            real = None if counts is None else torch.from_numpy(np.asarray(counts[part], np.int64)).to(weight.device)
            # <start> is one of the tokens that the captioner was trained for.
            search = _Search(self.captioner, regions, real, beam, longest=self.captioner.config.max_tokens - 1)
            scores, words = search.run()
            if not bool(torch.isfinite(scores).all()):
                raise CheckpointError(
                    "the captioner's weights give no probabilities (NaN or infinity); train it again."
                )
            texts = [join_words(self.vocabulary.decode(ids).split()) for ids in words.tolist()]
            written += map(WrittenCaption, texts, scores.tolist())
        return written


def read_captioner(
    path: Path, config: Config, vocabulary: Vocabulary, label: dict[str, str], device: str = "auto"
) -> CaptionWriter:
    """Read the captioner of an exported folder onto a device; it computes in float32 however its weights are stored.

    label   what the file must name as its model
    device  `cpu`, `cuda`, `mps` or `auto`

    Raises `CheckpointError` where the model has no captioner, or the file is broken or another model's.
    """
    if not config.model.captioner.enabled:
        raise CheckpointError(NO_CAPTIONER)
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, so it cannot write captions; export the model again.")
    weights, metadata = read_tensors(path)
    if not metadata.items() >= label.items():
        raise CheckpointError(f"{path} is not from the model that the encoders are from; export it again.")
    with torch.device("meta"):
        captioner = Captioner(config.model.captioner, config.model.joint_dim, len(vocabulary))
    load_weights(captioner, {name: tensor.float() for name, tensor in weights.items()}, path)
    return CaptionWriter(captioner.to(pick_device(device)).eval(), vocabulary)


class _Search:
    """Beam search over the images of one batch; images whose beam is empty leave it.

    images  (B,) which of the images are still being written
    words   (B, K, T) partial captions, from <start>
    totals  (B, K) their log-probabilities, -inf where a beam has become narrower
    widths  (B,) how many of them there may be
    """

    def __init__(
        self, captioner: Captioner, reasoned: torch.Tensor, counts: torch.Tensor | None, beam: int, longest: int
    ) -> None:
        B, device = len(reasoned), reasoned.device
        self.captioner, self.beam, self.longest = captioner, beam, longest
        self.regions, self.state = captioner.read(reasoned, counts)
        self.images = torch.arange(B, device=device)
        # All partial captions begin alike, so there is one at first.
        self.words = torch.full((B, 1, 1), START, device=device)
        self.totals = torch.zeros(B, 1, device=device)
        self.widths = torch.full((B,), beam, device=device)
        self.best_scores = torch.full((B,), -torch.inf, device=device)
        self.best_words = torch.full((B, longest), END, device=device)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B,) of the best captions, and their words (B, longest), filled up with <end>."""
        for length in range(1, self.longest + 1):
            self._continue(self._log_probabilities(length))
            self._collect(length)
            living = torch.nonzero((self.totals > -torch.inf).any(dim=1))[:, 0]
            if not len(living):
                break
            if len(living) <= SHRINK_AT * len(self.images):
                self._keep(living)
        return self.best_scores, self.best_words

    def _log_probabilities(self, length: int) -> torch.Tensor:
        """(B, K, V) of each next word, -inf of what may not come."""
        embedded = self.captioner.embedding(self.words[:, :, -1].flatten())
        self.state = self.captioner.step(embedded, self.state, self.regions)
        scores = self.captioner.output(self.state[0]).float().log_softmax(dim=-1)
        scores[:, FORBIDDEN] = -torch.inf
        if length == 1:
            scores[:, END] = -torch.inf
        if length == self.longest:
            scores[:, :END] = scores[:, END + 1 :] = -torch.inf
        return scores.view(*self.totals.shape, -1)

    def _continue(self, scores: torch.Tensor) -> None:
        """Keep the best continuations of each image's partial captions, as many as its beam is wide."""
        totals = (self.totals[:, :, None] + scores).flatten(1)
        best, places = totals.topk(min(self.beam, totals.shape[1]))
        beams, words = places // scores.shape[2], places % scores.shape[2]
        beyond = torch.arange(best.shape[1], device=best.device) >= self.widths[:, None]
        self.totals = best.masked_fill(beyond, -torch.inf)
        continued = self.words.gather(1, beams[:, :, None].expand(-1, -1, self.words.shape[2]))
        self.words = torch.cat([continued, words[:, :, None]], dim=2)
        rows = torch.arange(len(beams), device=beams.device)[:, None] * scores.shape[1] + beams
        self.state = rows_of(self.state, rows.flatten())

    def _collect(self, length: int) -> None:
        """Take captions that have ended out of the beams, and note each image's best."""
        ended = (self.words[:, :, -1] == END) & (self.totals > -torch.inf)
        scores, places = (self.totals / length).masked_fill(~ended, -torch.inf).max(dim=1)
        better = torch.nonzero(scores > self.best_scores[self.images])[:, 0]
        self.best_scores[self.images[better]] = scores[better]
        self.best_words[self.images[better], :length] = self.words[better, places[better], 1:]
        self.totals = self.totals.masked_fill(ended, -torch.inf)
        self.widths = self.widths - ended.sum(dim=1)

    def _keep(self, living: torch.Tensor) -> None:
        """Go on with these images of the batch alone."""
        rows = torch.arange(len(self.state[0]), device=living.device).view(self.totals.shape)[living].flatten()
        self.state, self.regions = rows_of(self.state, rows), self.regions.of(living)
        self.images, self.widths = self.images[living], self.widths[living]
        self.words, self.totals = self.words[living], self.totals[living]
