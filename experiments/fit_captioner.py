"""Give a model a captioner: it learns to write from the model's regions, which stay as they are.

    python experiments/fit_captioner.py RUN -o OUT --data.path STORE    # goes on where it was stopped

STORE holds the regions that RUN reads. What RUN finds does not change. The captioner learns people's captions word by
word (cross entropy), and then from captions of its own: of several that it draws for a photo, those that CIDEr-D likes
better than the others become likelier (self-critical training: Rennie et al. 2017, with the mean of the other draws as
the baseline). The captioner whose captions of the held-out photos have the best CIDEr-D, with a beam of 5, is kept.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from vsrn.config import CaptionerConfig
from vsrn.data.splits import Split
from vsrn.data.vocabulary import END, PAD, START, UNK, Vocabulary
from vsrn.devices import pick_device
from vsrn.encoders.captioning import CaptionWriter
from vsrn.encoders.torch_backend import TorchCaptioner
from vsrn.evaluation.caption_scores import CiderD, caption_scores, words_of
from vsrn.extractors.provenance import kept_weights
from vsrn.model.base import MatchingModel
from vsrn.model.captioner import Captioner
from vsrn.model.gru import pad_tokens
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, read_model, write_model
from vsrn.training.batches import draw_margins, drop_regions
from vsrn.training.run import open_training_splits

CAPTIONS_A_STEP = 128
# Photos a step where captions are drawn, captions drawn of each, and their longest.
PHOTOS_A_STEP, DRAWS, LONGEST = 64, 5, 25
# A drawn caption's end counts as a word, or captions that stop short would score best.
END_WORD = "<end>"


@dataclass(frozen=True)
class Data:
    """Where the regions are."""

    path: str


@dataclass(frozen=True)
class Photos:
    """Photos with the regions that a model makes of theirs, and their captions.

    regions  (num_images, N, D) float16
    tokens   of each caption
    image    (num_captions,) which photo a caption is of
    people   the captions of each photo
    """

    regions: torch.Tensor
    tokens: list[np.ndarray]
    image: np.ndarray
    people: list[list[str]]


def main(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    data: Data,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    start_from: Path | None = None,
    epochs: int = 12,
    reward_epochs: int = 10,
    learning_rate: float = 1e-3,
    reward_rate: float = 5e-5,
    dropout: float = 0.3,
    regions_dropped: float = 0.0,
    hidden_dim: int = 256,
    word_dim: int = 160,
    device: str = "auto",
    seed: int = 0,
) -> None:
    """Train a captioner and write the model with it.

    Args:
        run: A model.
        data: Its regions.
        output: Folder of the model with its captioner.
        start_from: A model whose captioner, of the same sizes, this one goes on from; by default it is fresh.
        epochs: Passes over the captions of people.
        reward_epochs: Passes over the photos with captions of its own, after that.
        learning_rate: Adam's at first; a cosine leads it to 0.
        reward_rate: The same for captions of its own.
        dropout: Share of the captioner's inputs that is dropped.
        regions_dropped: Largest share of a photo's regions that is dropped, beside people's captions.
        hidden_dim: Size of the captioner's states.
        word_dim: Size of the captioner's words.
        device: Where it is done: cpu, cuda or auto.
        seed: Of its first weights, of order, dropout and draws.
    """
    torch.manual_seed(seed)
    place = pick_device(device)
    stored = with_captioner(read_model(run), CaptionerConfig(True, "gru", False, hidden_dim, word_dim, dropout, 40))
    captioner = stored.model.captioner
    assert captioner is not None
    if start_from is not None:
        learned = read_model(start_from).model.captioner
        assert learned is not None
        captioner.load_state_dict(learned.state_dict())
    stored.model.to(place)
    learn, choose = (
        photos_of(stored.model, split, stored.vocabulary, place)
        for split in open_training_splits(replace(stored.config, data=replace(stored.config.data, path=data.path)))
        if isinstance(split, Split)
    )
    output.mkdir(parents=True, exist_ok=True)
    state, first, best = output / "captioner.state", 0, 0.0
    optimizer = torch.optim.Adam(captioner.parameters(), fused=True)
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=place)
        captioner.load_state_dict(saved["captioner"])
        optimizer.load_state_dict(saved["optimizer"])
        first, best = saved["epoch"], saved["best"]
    elif start_from is not None:
        best = score(captioner.eval(), stored.vocabulary, choose)[1]
        print(f"at first: CIDEr-D {best}", flush=True)
        write(stored, run, output)
    reward = Reward(learn, stored.vocabulary)
    for epoch in range(first, epochs + reward_epochs):
        random = np.random.default_rng((seed, epoch))
        if epoch == epochs:
            optimizer = torch.optim.Adam(captioner.parameters(), fused=True)
        captioner.train()
        if epoch < epochs:
            rates = (learning_rate, epoch / epochs, (epoch + 1) / epochs)
            mean = learn_captions(captioner, optimizer, learn, rates, random, regions_dropped)
        else:
            rates = (reward_rate, (epoch - epochs) / reward_epochs, (epoch - epochs + 1) / reward_epochs)
            mean = learn_rewards(captioner, optimizer, learn, rates, random, reward)
        scores = score(captioner.eval(), stored.vocabulary, choose)
        print(f"epoch {epoch + 1}: {mean:.3f}, held-out photos: {scores}", flush=True)
        if scores[1] > best:
            best = scores[1]
            write(stored, run, output)
        saved = {"captioner": captioner.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(saved | {"epoch": epoch + 1, "best": best}, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)


def learn_captions(
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    photos: Photos,
    rates: tuple[float, float, float],
    random: np.random.Generator,
    most_dropped: float,
) -> float:
    """An epoch of people's captions; gives the mean loss of a caption."""
    order, losses = random.permutation(len(photos.tokens)), []
    steps = len(order) // CAPTIONS_A_STEP
    for step, captions in enumerate(order[: steps * CAPTIONS_A_STEP].reshape(steps, -1)):
        tokens, lengths = pad_tokens([photos.tokens[caption] for caption in captions])
        place = photos.regions.device
        regions = photos.regions[torch.from_numpy(photos.image[captions]).to(place)].float()
        regions, counts = without_some(regions, most_dropped, random)
        with torch.autocast(place.type, dtype=torch.bfloat16):
            loss = captioner.generation_loss(regions, tokens.to(place), lengths.to(place), counts)
        take_step(captioner, optimizer, loss, cosine(rates, step / steps))
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def without_some(
    regions: torch.Tensor, most: float, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, N, D) regions -> those that are kept, first, and (B,) how many; `most` is the largest share dropped."""
    if most == 0:
        return regions, None
    margins = draw_margins(len(regions), regions.shape[1], most, [int(random.integers(2**31))])
    kept, counts = drop_regions(regions.cpu().numpy(), None, margins)
    return torch.from_numpy(kept).to(regions.device), torch.from_numpy(counts).to(regions.device)


def learn_rewards(
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    photos: Photos,
    rates: tuple[float, float, float],
    random: np.random.Generator,
    reward: Reward,
) -> float:
    """An epoch of captions that the captioner draws itself; gives their mean CIDEr-D, 0 to 10."""
    order, means = random.permutation(len(photos.people)), []
    steps = len(order) // PHOTOS_A_STEP
    for step, images in enumerate(order[: steps * PHOTOS_A_STEP].reshape(steps, -1)):
        place = photos.regions.device
        words, log_probabilities, real = draw(captioner, photos.regions[torch.from_numpy(images).to(place)].float())
        rewards = reward(words, images).to(place)
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (DRAWS - 1)
        loss = -((rewards - others)[:, :, None] * log_probabilities * real).sum() / real.sum()
        take_step(captioner, optimizer, loss, cosine(rates, step / steps))
        means.append(rewards.mean().item())
    return float(np.mean(means))


def draw(captioner: Captioner, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, N, D) regions -> (B, DRAWS, T) words drawn, their log-probabilities, and 1 where they belong to a caption."""
    attended, (state, memory) = captioner.read(regions, None)
    assert memory is None
    state = state.repeat_interleave(DRAWS, dim=0)
    words = torch.full((len(state),), START, device=state.device)
    ended = torch.zeros_like(words, dtype=torch.bool)
    drawn, chances, real = [], [], []
    for step in range(LONGEST):
        state, _ = captioner.step(captioner.embedding(words), (state, None), attended)
        scores = captioner.output(state)
        scores[:, [PAD, START, UNK]] = -torch.inf
        if step == 0:
            scores[:, END] = -torch.inf
        scores = scores.log_softmax(dim=-1)
        words = torch.multinomial(scores.detach().exp(), 1)[:, 0].masked_fill(ended, END)
        drawn.append(words)
        chances.append(scores.gather(1, words[:, None])[:, 0].masked_fill(ended, 0))
        real.append((~ended).float())
        ended = ended | (words == END)
        if bool(ended.all()):
            break
    return tuple(torch.stack(each, dim=1).unflatten(0, (-1, DRAWS)) for each in (drawn, chances, real))  # type: ignore[return-value]


class Reward:
    """CIDEr-D of captions drawn for the photos that are learned from."""

    def __init__(self, photos: Photos, vocabulary: Vocabulary) -> None:
        self.words = vocabulary.words
        self.people = [[[*words_of(caption), END_WORD] for caption in captions] for captions in photos.people]
        self.cider = CiderD(self.people)

    def __call__(self, drawn: torch.Tensor, images: np.ndarray) -> torch.Tensor:
        """(B, DRAWS, T) words drawn for photos -> (B, DRAWS)."""
        rewards = [
            [self.cider(self.as_words(ids), self.people[image]) for ids in of_photo]
            for of_photo, image in zip(drawn.tolist(), images, strict=True)
        ]
        return torch.tensor(rewards)

    def as_words(self, ids: list[int]) -> list[str]:
        """The words before the end, and the end where there is one."""
        words = [self.words[word] for word in (ids[: ids.index(END)] if END in ids else ids)]
        return [word for word in words if any(letter.isalnum() for letter in word)] + [END_WORD] * (END in ids)


def score(captioner: Captioner, vocabulary: Vocabulary, photos: Photos) -> tuple[float, float]:
    """BLEU-4 and CIDEr-D of the captions that it writes with a beam of 5."""
    written = CaptionWriter(TorchCaptioner(captioner), vocabulary).write(photos.regions.float().cpu().numpy())
    scores = caption_scores([each.text for each in written], photos.people, samples=2)
    return round(scores.bleu_4, 2), round(scores.cider_d, 2)


def take_step(captioner: Captioner, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """Follow the gradient of a loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(captioner.parameters(), 2.0)
    optimizer.step()


def cosine(rates: tuple[float, float, float], share: float) -> float:
    """The learning rate after this share of an epoch; rates are the first one, and where the epoch begins and ends."""
    rate, begin, end = rates
    return rate * 0.5 * (1 + math.cos(math.pi * (begin + share * (end - begin))))


@torch.inference_mode()
def photos_of(model: MatchingModel, split: Split, vocabulary: Vocabulary, place: torch.device) -> Photos:
    """A split, with what the model makes of its regions."""
    parts = []
    for images in np.array_split(np.arange(split.num_images), max(1, split.num_images // 100)):
        features, counts = split.read_images(images)
        assert counts is None
        regions = model.image_encoder(torch.from_numpy(features.astype(np.float32)).to(place)).reasoned_regions
        parts.append(regions.half().clone())
    tokens = [np.array(vocabulary.encode(caption)) for caption in split.captions]
    return Photos(torch.cat(parts), tokens, np.asarray(split.image_of_caption), split.captions_by_image())


def with_captioner(stored: StoredModel, captioner: CaptionerConfig) -> StoredModel:
    """The model with a fresh captioner."""
    config = replace(stored.config, model=replace(stored.config.model, captioner=captioner))
    model = build_model(config, stored.vocabulary)
    parts = {name: tensor for name, tensor in stored.model.state_dict().items() if not name.startswith("captioner.")}
    model.load_state_dict(parts, strict=False)
    return replace(stored, config=config, model=model.eval())


def write(stored: StoredModel, run: Path, output: Path) -> None:
    """The model as it is now, with the extractor of the run that it began from."""
    extractor = kept_weights(run)
    if extractor is not None:
        shutil.copyfile(extractor, output / extractor.name)
    write_model(output, stored)


if __name__ == "__main__":
    tyro.cli(main)
