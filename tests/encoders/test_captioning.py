"""Captions written in batches against slow searches that read everything again for every word."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from greedy import greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from vsrn.config import CaptionerConfig, Config, ModelConfig
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.data.vocabulary import END, PAD, SPECIAL_WORDS, START, UNK, Vocabulary
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.plain_captioner import PlainCaptions, shapes_of
from vsrn.encoders.torch_backend import TorchCaptions, TorchEncoder
from vsrn.errors import CheckpointError, ConfigError
from vsrn.model.captioner import Captioner
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel

DIM = 6
Score = Callable[[tuple[int, ...]], torch.Tensor]


def make_writer(seed: int, words: int, *, spread: float = 3.0, **config: Any) -> CaptionWriter:
    """A random captioner; `spread` makes it as decided as a trained one, and <end> likely enough."""
    torch.manual_seed(seed)
    sizes = CaptionerConfig(**{"hidden_dim": 5, "word_dim": 4, "max_tokens": 6} | config)
    captioner = Captioner(sizes, DIM, len(SPECIAL_WORDS) + words)
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.mul_(spread)
    return writer_of(captioner.eval(), Vocabulary([*SPECIAL_WORDS, *(f"word{number}" for number in range(words))]))


def writer_of(captioner: Captioner, vocabulary: Vocabulary) -> CaptionWriter:
    return CaptionWriter(functools.partial(TorchCaptions, captioner), captioner.config.max_tokens, vocabulary)


def module_of(writer: CaptionWriter) -> Captioner:
    assert isinstance(writer.begin, functools.partial)
    captioner: Captioner = writer.begin.args[0]
    return captioner


def without_torch(writer: CaptionWriter) -> CaptionWriter:
    """The same captioner as exported models run it."""
    module = module_of(writer)
    weights = {name: weight.numpy() for name, weight in module.state_dict().items()}
    assert {name: weight.shape for name, weight in weights.items()} == shapes_of(
        module.config, DIM, len(writer.vocabulary)
    )
    begin = functools.partial(PlainCaptions, weights, module.config)
    return CaptionWriter(begin, module.config.max_tokens, writer.vocabulary)


def make_regions(seed: int, images: int, regions: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(images, regions, DIM)).astype(np.float32)


@torch.no_grad()
def next_word(writer: CaptionWriter, image: torch.Tensor, prefix: tuple[int, ...]) -> torch.Tensor:
    """(V,) log-probabilities of the word after a prefix, read from <start> on, of what may come there."""
    regions, state = module_of(writer).read(image[None], None)
    for word in (START, *prefix):
        state = module_of(writer).step(module_of(writer).embedding(torch.tensor([word])), state, regions)
    scores = module_of(writer).output(state[0])[0].log_softmax(dim=0)
    scores[[PAD, START, UNK]] = -torch.inf
    if not prefix:
        scores[END] = -torch.inf
    return scores


def no_fit(_caption: str) -> float:
    return 0.0


def slow_beam(
    writer: CaptionWriter, image: torch.Tensor, beam: int, fit: Callable[[str], float] = no_fit
) -> tuple[tuple[int, ...], float]:
    """Beam search over one image with lists and sorting."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, module_of(writer).config.max_tokens):
        last = length == module_of(writer).config.max_tokens - 1
        candidates = []
        for total, prefix in live:
            scores = next_word(writer, image, prefix)
            for word in [END] if last else range(len(scores)):
                if scores[word] > -torch.inf:
                    candidates.append((total + float(scores[word]), (*prefix, word)))
        best = sorted(candidates, reverse=True)[: beam - len(ended)]
        ended += [(total, words) for total, words in best if words[-1] == END]
        live = [(total, words) for total, words in best if words[-1] != END]
    total, words = max(ended, key=lambda found: found[0] / len(found[1]) + fit(writer.vocabulary.decode(found[1])))
    return words, total / len(words)


def assert_written(writer: CaptionWriter, regions: Any, counts: list[int] | None, beam: int) -> None:
    real = regions if counts is None else [image[:count] for image, count in zip(regions, counts, strict=True)]
    slowly = [slow_beam(writer, torch.from_numpy(image), beam) for image in real]
    for one in (writer, without_torch(writer)):
        written = one.write(regions, None if counts is None else np.array(counts), beam)
        for caption, (words, score) in zip(written, slowly, strict=True):
            assert caption.text == writer.vocabulary.decode(words)
            # Weights are spread up to eightfold, so that rounding grows with the score.
            assert caption.score == pytest.approx(score, rel=3e-5, abs=1e-5)


@pytest.mark.parametrize("beam", [1, 2, 5, 17])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_is_written_as_each_image_alone_slowly(beam: int, cell: str, bidirectional: bool) -> None:
    writer = make_writer(beam, words=6, cell=cell, bidirectional=bidirectional)
    assert_written(writer, make_regions(1, images=9), None, beam)
    assert_written(writer, make_regions(2, images=5), [4, 1, 3, 2, 4], beam)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 6), st.integers(3, 7), st.floats(0.5, 8))
def test_any_captioner_and_beam(seed: int, beam: int, words: int, max_tokens: int, spread: float) -> None:
    writer = make_writer(seed, words, max_tokens=max_tokens, spread=spread)
    assert_written(writer, make_regions(seed, images=3), None, beam)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(0.5, 8), st.floats(0, 3))
def test_of_the_captions_in_the_beam_the_most_probable_and_fitting_one_is_written(
    seed: int, beam: int, spread: float, weight: float
) -> None:
    def fit(caption: str, image: int) -> float:
        return weight * zlib.crc32(f"{image}: {caption}".encode()) / 2**32

    writer, regions = make_writer(seed, words=6, spread=spread), make_regions(seed, images=3)
    written = writer.write(
        regions,
        beam=beam,
        fit=lambda captions, images: np.array([fit(*pair) for pair in zip(captions, images.tolist(), strict=True)]),
    )
    for image, caption in enumerate(written):
        of_image = functools.partial(fit, image=image)
        words, score = slow_beam(writer, torch.from_numpy(regions[image]), beam, of_image)
        assert caption.text == writer.vocabulary.decode(words)
        assert caption.score == pytest.approx(score, rel=3e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_holds_everything_finds_the_best_of_all_captions(seed: int) -> None:
    writer = make_writer(seed, words=3, max_tokens=5)
    regions = make_regions(seed, images=2)
    scores: dict[tuple[int, ...], float] = {}
    for image, written in zip(torch.from_numpy(regions), writer.write(regions, beam=100), strict=True):
        for length in (1, 2, 3):
            for words in itertools.product(range(4, 7), repeat=length):
                caption = (*words, END)
                steps = [next_word(writer, image, caption[:place])[word] for place, word in enumerate(caption)]
                scores[caption] = float(sum(steps)) / len(caption)
        best = max(scores, key=lambda caption: scores[caption])
        assert written.text == writer.vocabulary.decode(best)
        assert written.score == pytest.approx(scores[best], abs=1e-5)


def test_a_beam_of_one_is_greedy(golden: Any) -> None:
    legacy = read_checkpoint(golden / "f30k" / "checkpoint.pth.tar", golden / "f30k" / "captioner.pth")
    model = build_model(legacy.config, words := Vocabulary(_invented(legacy.vocabulary_size)))
    model.load_state_dict(legacy.weights)
    assert model.captioner is not None
    regions = torch.from_numpy(np.load(golden / "f30k" / "reference.npz")["reasoned_regions"])
    longest = model.captioner.config.max_tokens - 1
    likeliest, _ = greedy(model.captioner.eval(), regions, longest)
    allowed = [row for row in range(len(likeliest)) if not set(likeliest[row].tolist()) & {PAD, START, UNK, END}]
    assert allowed, "some image's greedy words are such as may be written"
    written = writer_of(model.captioner, words).write(regions.numpy(), beam=1)
    for row in allowed:
        assert written[row].text == words.decode(likeliest[row, : longest - 1].tolist())


def test_what_is_written_ends_in_time_and_is_made_of_words() -> None:
    writer = make_writer(3, words=2, max_tokens=8)
    with torch.no_grad():
        module_of(writer).output.weight.zero_()
        # What must not be written is far more probable than anything else, and <end> less.
        module_of(writer).output.bias.copy_(torch.tensor([9.0, 9, -9, 9, 0, 0]))
    for beam in (1, 4):
        for caption in writer.write(make_regions(0, images=3), beam=beam):
            assert len(caption.text.split()) == 6
            assert set(caption.text.split()) <= {"word0", "word1"}
    with torch.no_grad():
        module_of(writer).output.bias[END] = 20
    assert [len(caption.text.split()) for caption in writer.write(make_regions(0, images=2))] == [1, 1]


def test_more_images_than_are_searched_at_once() -> None:
    writer, regions = make_writer(0, words=5), make_regions(5, images=90)
    together = writer.write(regions, beam=9)
    alone = [writer.write(image[None], beam=9)[0] for image in regions]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    assert writer.write(regions[:0]) == []


@pytest.mark.parametrize("beam", [0, -1, 101])
def test_a_beam_of_no_width_or_too_wide_is_refused(beam: int) -> None:
    with pytest.raises(ConfigError, match=f"--beam is {beam}; it must be 1 to 100"):
        make_writer(0, words=3).write(make_regions(0, images=1), beam=beam)


def test_a_captioner_of_no_numbers_is_refused() -> None:
    writer = make_writer(0, words=3)
    with torch.no_grad():
        module_of(writer).output.bias[5] = torch.nan
    with pytest.raises(CheckpointError, match="no probabilities"):
        writer.write(make_regions(0, images=2))


def make_encoder(**model: Any) -> TorchEncoder:
    torch.manual_seed(1)
    config = Config(model=ModelConfig(feature_dim=7, joint_dim=DIM, word_dim=4, reasoning_layers=1, **model))
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog", "cat", "runs", "sleeps"])
    return TorchEncoder(StoredModel(config, vocabulary, build_model(config, vocabulary)), "cpu")


def test_an_encoder_writes_from_its_reasoned_regions() -> None:
    encoder = make_encoder(captioner=CaptionerConfig(hidden_dim=5, word_dim=4, max_tokens=7))
    features = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)
    counts = np.array([5, 2, 3, 1])
    with torch.no_grad():
        reasoned = encoder.model.image_encoder(torch.from_numpy(features), torch.from_numpy(counts)).reasoned_regions
    assert encoder.model.captioner is not None
    writer = writer_of(encoder.model.captioner, encoder.stored.vocabulary)
    wanted = writer.write(reasoned.numpy(), counts, beam=3)
    assert encoder.caption_regions(features, counts, beam=3) == [caption.text for caption in wanted]


def test_a_model_without_a_captioner_says_so() -> None:
    encoder = make_encoder(captioner=CaptionerConfig(enabled=False))
    with pytest.raises(CheckpointError, match="has no captioner, so it cannot write captions"):
        encoder.caption_regions(np.zeros((1, 2, 7), dtype=np.float32))


def _invented(size: int) -> list[str]:
    return [*SPECIAL_WORDS, *(f"word{number}" for number in range(size - len(SPECIAL_WORDS)))]
