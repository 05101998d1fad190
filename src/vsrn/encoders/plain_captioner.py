"""The captioner in numpy, for exported models: what `vsrn.model.captioner.Captioner` does in evaluation mode.

Shapes: B images, N regions, D joint size, K partial captions of each image, R = B K rows, H captioner size (doubled
where its encoder is bidirectional), V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import safetensors

from vsrn.config import CaptionerConfig, Config
from vsrn.data.vocabulary import Vocabulary
from vsrn.encoders.base import NO_CAPTIONER
from vsrn.encoders.captioning import CaptionWriter, Mask
from vsrn.errors import CheckpointError
from vsrn.metrics import FloatArray, IntArray

Weights = Mapping[str, FloatArray]
# What a cell remembers: (R, H) its state, and for an LSTM its memory, of the same shape.
State = tuple[FloatArray, ...]


def read_captioner(path: Path, config: Config, vocabulary: Vocabulary, label: Mapping[str, str]) -> CaptionWriter:
    """Read the captioner of an exported folder; it computes in float32 however its weights are stored.

    label  what the file must name as its model

    Raises `CheckpointError` where the model has no captioner, or the file is broken or another model's.
    """
    sizes = config.model.captioner
    if not sizes.enabled:
        raise CheckpointError(NO_CAPTIONER)
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, so it cannot write captions; export the model again.")
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated.") from error
    if not metadata.items() >= label.items():
        raise CheckpointError(f"{path} is not from the model that the encoders are from; export it again.")
    fault = _fault_of(weights, shapes_of(sizes, config.model.joint_dim, len(vocabulary)))
    if fault:
        raise CheckpointError(f"{path} does not fit the network: it {fault}; export the model again.")
    weights = {name: np.asarray(weight, np.float32) for name, weight in weights.items()}
    return CaptionWriter(partial(PlainCaptions, weights, sizes), sizes.max_tokens, vocabulary)


def shapes_of(config: CaptionerConfig, region_dim: int, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a captioner, by the name that torch gives it."""
    one, directions = config.hidden_dim, 2 if config.bidirectional else 1
    hidden, gates = one * directions, 3 if config.cell == "gru" else 4
    shapes: dict[str, tuple[int, ...]] = {
        "projection.weight": (one, region_dim),
        "projection.bias": (one,),
        "attention_hidden.weight": (hidden, 2 * hidden),
        "attention_hidden.bias": (hidden,),
        "attention_score.weight": (1, hidden),
        "embedding.weight": (vocabulary_size, config.word_dim),
        "output.weight": (vocabulary_size, hidden),
        "output.bias": (vocabulary_size,),
    }
    for part, read, size in (
        *((f"encoder.{{}}_l0{suffix}", one, one) for suffix in ("", "_reverse")[:directions]),
        ("decoder.{}", config.word_dim + hidden, hidden),
    ):
        shapes[part.format("weight_ih")], shapes[part.format("weight_hh")] = (gates * size, read), (gates * size, size)
        shapes[part.format("bias_ih")] = shapes[part.format("bias_hh")] = (gates * size,)
    return shapes


def _fault_of(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Why weights are not those of a captioner of these shapes; empty where they are."""
    for name in weights.keys() - wanted.keys():
        return f"has left over {name[:100]!r}"
    for name, shape in wanted.items():
        found = weights.get(name)
        if found is None:
            return f"misses {name}"
        if found.shape != shape or found.dtype.kind != "f":
            return f"has in another shape {name} ({found.shape} of {found.dtype}, not {shape})"
        if not np.isfinite(found).all():
            return f"has with NaN or infinity {name}"
    return ""


class PlainCaptions:
    """The captions of a batch, being written; as `vsrn.encoders.captioning.Continuations`."""

    def __init__(self, weights: Weights, config: CaptionerConfig, regions: FloatArray, counts: IntArray | None) -> None:
        """Read (B, N, D) reasoned regions, (B,) real ones of each or None for all, by weights as `shapes_of` says."""
        self.weights = weights
        counts = np.full(len(regions), regions.shape[1]) if counts is None else counts
        self.real = np.arange(regions.shape[1]) < counts[:, None]
        inputs = self._linear("projection", np.asarray(regions, np.float32))
        directions = ("", "_reverse") if config.bidirectional else ("",)
        parts = 1 if config.cell == "gru" else 2
        states, last = zip(*(self._read(inputs, parts, direction) for direction in directions), strict=True)
        self.states: FloatArray = np.concatenate(states, axis=2)
        self.state: State = tuple(np.concatenate(sides, axis=1) for sides in zip(*last, strict=True))
        of_states, self.of_query = np.split(weights["attention_hidden.weight"], [self.states.shape[2]], axis=1)
        self.keys = self.states @ of_states.T + weights["attention_hidden.bias"]

    def _read(self, inputs: FloatArray, parts: int, direction: str) -> tuple[FloatArray, State]:
        """(B, N, H) inputs, parts of a state -> (B, N, H) states of one direction, and its last one."""
        gates = inputs @ self.weights[f"encoder.weight_ih_l0{direction}"].T
        gates += self.weights[f"encoder.bias_ih_l0{direction}"]
        states = np.zeros(inputs.shape, np.float32)
        state: State = (np.zeros_like(states[:, 0]),) * parts
        places = range(inputs.shape[1])
        for place in reversed(places) if direction else places:
            after = self._cell(gates[:, place], state, f"encoder.{{}}_hh_l0{direction}")
            # What is no region leaves the state as it was.
            state = tuple(np.where(self.real[:, place, None], *sides) for sides in zip(after, state, strict=True))
            states[:, place] = state[0]
        return states, state

    def step(
        self, words: IntArray, rows: IntArray, images: IntArray | None, allowed: Mask, most: int
    ) -> tuple[FloatArray, IntArray]:
        """Write one word more of each row; as the protocol says."""
        if images is not None:
            self.states, self.keys, self.real = self.states[images], self.keys[images], self.real[images]
        weights, state = self.weights, tuple(part[rows] for part in self.state)
        inputs = np.concatenate([weights["embedding.weight"][words], self._attended(state[0])], axis=1)
        gates = inputs @ weights["decoder.weight_ih"].T + weights["decoder.bias_ih"]
        self.state = self._cell(gates, state, "decoder.{}_hh")
        scores = self._linear("output", self.state[0])
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        scores[:, ~allowed] = -np.inf
        places = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        best = np.take_along_axis(scores, places, 1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)

    def _cell(self, gates: FloatArray, state: State, names: str) -> State:
        """(R, gates H) of the input, the state before -> the state after one step of a GRU or an LSTM.

        names  of the weight and the bias of the state, with {} for which of the two
        """
        hidden, *memories = state
        of_state = hidden @ self.weights[names.format("weight")].T + self.weights[names.format("bias")]
        if not memories:
            size = hidden.shape[1]
            reset, update = np.split(_sigmoid(gates[:, : 2 * size] + of_state[:, : 2 * size]), 2, axis=1)
            new = np.tanh(gates[:, 2 * size :] + reset * of_state[:, 2 * size :])
            return (new + update * (hidden - new),)
        entering, kept, new, leaving = np.split(gates + of_state, 4, axis=1)
        memory = _sigmoid(kept) * memories[0] + _sigmoid(entering) * np.tanh(new)
        return _sigmoid(leaving) * np.tanh(memory), memory

    def _attended(self, hidden: FloatArray) -> FloatArray:
        """(R, H) states of the decoder -> (R, H) weighted means of their images' regions."""
        images, _, size = self.states.shape
        query = (hidden @ self.of_query.T).reshape(images, -1, 1, size)
        scores = np.tanh(self.keys[:, None] + query) @ self.weights["attention_score.weight"][0]
        scores = np.where(self.real[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return np.asarray((weights @ self.states).reshape(len(hidden), size))

    def _linear(self, name: str, inputs: FloatArray) -> FloatArray:
        """(..., in) -> (..., out) by a weight and a bias."""
        return np.asarray(inputs @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])


def _sigmoid(numbers: FloatArray) -> FloatArray:
    return np.asarray(0.5 * np.tanh(0.5 * numbers) + 0.5)
