"""Our model against numbers recorded from the 2019 model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greedy import greedy

from vsrn.config import LossConfig
from vsrn.convert.checkpoint import LegacyModel, read_checkpoint
from vsrn.convert.names import CAPTION_KEYS, IMAGE_KEYS
from vsrn.encoders.folding import fold
from vsrn.model import reasoning
from vsrn.model.base import Batch
from vsrn.model.losses import SIMILARITIES, TripletLoss, matching_loss
from vsrn.model.vsrn import build_vsrn

RECORDINGS = ["f30k", "coco", "options", "order"]


class Recording:
    """One recorded model and what it said."""

    def __init__(self, folder: Path) -> None:
        self.legacy: LegacyModel = read_checkpoint(folder / "checkpoint.pth.tar", folder / "captioner.pth")
        self.reference: dict[str, Any] = dict(np.load(folder / "reference.npz"))
        self.model = build_vsrn(self.legacy.config.model, self.legacy.vocabulary_size)
        self.model.load_state_dict(self.legacy.weights)
        self.model.eval()

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.reference[name])

    @property
    def features(self) -> torch.Tensor:
        return self.tensor("images")

    @property
    def captions(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensor("captions"), self.tensor("lengths")


@pytest.fixture(params=RECORDINGS)
def recording(request: pytest.FixtureRequest, golden: Path) -> Recording:
    return Recording(golden / request.param)


@pytest.fixture(params=[0.0, math.inf], ids=["folded", "plain"], autouse=True)
def fold_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of taking a reasoning layer's products must give the recorded numbers."""
    monkeypatch.setattr(reasoning, "FOLD_AT", request.param)


@torch.no_grad()
def test_the_encoder_folded_for_inference(recording: Recording) -> None:
    images = fold(recording.model.image_encoder)(recording.features)
    assert_close(images.embeddings, recording.tensor("image_embeddings"))
    assert_close(images.reasoned_regions, recording.tensor("reasoned_regions"))


@torch.no_grad()
def test_embeddings_and_reasoned_regions(recording: Recording) -> None:
    images = recording.model.image_encoder(recording.features)
    captions = recording.model.caption_encoder(*recording.captions)
    assert_close(images.embeddings, recording.tensor("image_embeddings"))
    assert_close(images.reasoned_regions, recording.tensor("reasoned_regions"))
    assert_close(captions, recording.tensor("caption_embeddings"))


@torch.no_grad()
def test_a_checkpoint_saved_from_a_gpu_gives_the_same_numbers(golden: Path) -> None:
    legacy = read_checkpoint(golden / "f30k_gpu" / "checkpoint.pth.tar")
    reference = np.load(golden / "f30k" / "reference.npz")
    model = build_vsrn(legacy.config.model, legacy.vocabulary_size).eval()
    model.load_state_dict(legacy.weights)
    embeddings = model.image_encoder(torch.from_numpy(reference["images"])).embeddings
    assert_close(embeddings, torch.from_numpy(reference["image_embeddings"]))


@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_matching_loss(recording: Recording, similarity: str, negatives: str) -> None:
    images, captions = recording.tensor("image_embeddings"), recording.tensor("caption_embeddings")
    loss = matching_loss(SIMILARITIES[similarity](images, captions), margin=0.2, hardness=float(negatives == "hardest"))
    recorded = recording.tensor(f"retrieval_loss_{similarity}_{'max' if negatives == 'hardest' else 'sum'}")
    torch.testing.assert_close(loss, recorded, rtol=1e-5, atol=0)


@torch.no_grad()
def test_generation_loss(recording: Recording) -> None:
    assert recording.model.captioner is not None
    loss = recording.model.captioner.generation_loss(recording.tensor("reasoned_regions"), *recording.captions)
    torch.testing.assert_close(loss, recording.tensor("caption_loss"), rtol=1e-5, atol=0)


def test_greedy_captions(recording: Recording) -> None:
    assert recording.model.captioner is not None
    recorded = recording.tensor("greedy_caption")
    words, scores = greedy(recording.model.captioner, recording.tensor("reasoned_regions"), recorded.shape[1])
    assert torch.equal(words, recorded)
    assert_close(scores, recording.tensor("greedy_logprobs"))


def test_joint_loss_in_training_mode_and_every_gradient(recording: Recording) -> None:
    model = recording.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    loss: LossConfig = recording.legacy.config.loss
    losses = model(Batch(recording.features, *recording.captions, None), TripletLoss(loss))
    torch.testing.assert_close(losses.joint.detach(), recording.tensor("joint_loss_train"), rtol=1e-5, atol=0)

    losses.joint.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for theirs, recorded in zip(recording.reference["grad_names"], recording.reference["grad_norms"], strict=True):
        gradient = ours.pop(our_name(str(theirs)))
        assert gradient is not None
        absolute = 1e-2 if "W.0.bias" in str(theirs) else 0.0
        np.testing.assert_allclose(float(gradient.norm()), recorded, rtol=1e-3, atol=absolute, err_msg=str(theirs))
    assert all(name.startswith("captioner.") for name in ours), "every encoder parameter was compared"


def our_name(theirs: str) -> str:
    side, _, name = theirs.partition(".")
    table = {"img_enc": IMAGE_KEYS, "txt_enc": CAPTION_KEYS}[side]
    start = next(start for start in table if name.startswith(start))
    return table[start] + name.removeprefix(start)


def assert_close(ours: torch.Tensor, recorded: torch.Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=1e-5)
