"""The recordings of tests/golden, computed again on a device: how far off, and whether within tolerances.

The tolerances are those of the tests that compare with them on the CPU (`tests/model/test_golden.py`, its neighbours).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from greedy import greedy
from material import exact
from recording import Figures

from vsrn.config import ModelConfig, ScanConfig
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.convert.names import CAPTION_KEYS, IMAGE_KEYS
from vsrn.encoders.folding import fold
from vsrn.model import reasoning
from vsrn.model.aggregators import GeneralisedPooling
from vsrn.model.base import Batch, MatchingModel
from vsrn.model.losses import SIMILARITIES, TripletLoss, matching_loss
from vsrn.model.scan import SCAN, similarities
from vsrn.model.vsepp import build_vsepp
from vsrn.model.vsrn import build_vsrn

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
RECORDINGS = ("f30k", "coco", "options", "order")
DIRECTIONS = {"t2i": ("text_to_image", 9.0, 6.0), "i2t": ("image_to_text", 4.0, 5.0)}
AGGREGATIONS = {"LogSumExp": "logsumexp", "Mean": "mean", "Max": "max", "Sum": "sum"}
FIRST_NORMS = ("clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm")
# What was compared, how far off it is, and how far it may be.
Check = tuple[str, float, float]


def judged(checks: Iterator[Check] | list[Check]) -> Figures:
    """The checks as figures: how many there were, which failed, and the one that is nearest to its tolerance."""
    made = list(checks)
    share = {name: difference / tolerance for name, difference, tolerance in made}
    worst = max(made, key=lambda check: check[1] / check[2] if math.isfinite(check[1]) else math.inf)
    failed = {
        name: {"difference": difference, "tolerance": tolerance}
        for name, difference, tolerance in made
        if not difference <= tolerance
    }
    return {
        "passed": not failed,
        "checks": len(made),
        "worst": worst[0],
        "worst_difference": worst[1],
        "worst_tolerance": worst[2],
        "worst_share": share[worst[0]],
        "failed": failed,
    }


def apart(ours: Any, theirs: Any) -> float:
    """The largest absolute difference of two arrays of one shape; infinite where one has a NaN."""
    ours, theirs = (torch.as_tensor(values).detach().cpu().double() for values in (ours, theirs))
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    difference = float((ours - theirs).abs().max())
    return difference if math.isfinite(difference) else math.inf


def relative(ours: Any, theirs: Any) -> float:
    """The absolute difference of two numbers, divided by the second."""
    return apart(ours, theirs) / abs(float(theirs))


def norms_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / max(|ours|, |theirs|), norms over whole tensors: 0 to 2; infinite where one has a NaN."""
    ours, theirs = ours.double(), theirs.double()
    share = float((ours - theirs).norm() / max(ours.norm(), theirs.norm()))
    return share if math.isfinite(share) else math.inf


class Recording:
    """A recorded VSRN on a device, and what it said."""

    def __init__(self, name: str, device: torch.device) -> None:
        folder = GOLDEN / name
        self.legacy = read_checkpoint(folder / "checkpoint.pth.tar", folder / "captioner.pth")
        self.reference: dict[str, Any] = dict(np.load(folder / "reference.npz"))
        self.device = device
        self.model: MatchingModel = build_vsrn(self.legacy.config.model, self.legacy.vocabulary_size)
        self.model.load_state_dict(self.legacy.weights)
        self.model.to(device).eval()

    def on_device(self, name: str) -> torch.Tensor:
        """A recorded array."""
        return torch.from_numpy(self.reference[name]).to(self.device)

    def captions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens on the device, and lengths on the CPU."""
        return self.on_device("captions"), torch.from_numpy(self.reference["lengths"])

    def checks(self) -> Iterator[Check]:
        """Everything that was recorded of it."""
        reference, model = self.reference, self.model
        with torch.no_grad():
            for kind, encoder in (("", model.image_encoder), (" folded", fold(model.image_encoder))):
                images = encoder(self.on_device("images"))
                yield f"image embeddings{kind}", apart(images.embeddings, reference["image_embeddings"]), 1e-5
                yield f"reasoned regions{kind}", apart(images.reasoned_regions, reference["reasoned_regions"]), 1e-5
            captions = model.caption_encoder(*self.captions())
            yield "caption embeddings", apart(captions, reference["caption_embeddings"]), 1e-5
            assert model.captioner is not None
            regions = self.on_device("reasoned_regions")
            loss = model.captioner.generation_loss(regions, *self.captions())
            yield "generation loss", relative(loss, reference["caption_loss"]), 1e-5
            words, scores = greedy(model.captioner, regions, reference["greedy_caption"].shape[1])
            yield "greedy captions", apart(words, reference["greedy_caption"]), 0.5
            yield "greedy scores", apart(scores, reference["greedy_logprobs"]), 1e-5
        yield from self._losses()
        yield from self._gradients()

    def _losses(self) -> Iterator[Check]:
        embeddings = self.on_device("image_embeddings"), self.on_device("caption_embeddings")
        for similarity in ("cosine", "order"):
            for name, hardness in (("max", 1.0), ("sum", 0.0)):
                loss = matching_loss(SIMILARITIES[similarity](*embeddings), 0.2, hardness)
                recorded = self.reference[f"retrieval_loss_{similarity}_{name}"]
                yield f"matching loss {similarity} {name}", relative(loss, recorded), 1e-5

    def _gradients(self) -> Iterator[Check]:
        model = self.model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        batch = Batch(self.on_device("images"), *self.captions(), None)
        losses = model(batch, TripletLoss(self.legacy.config.loss))
        yield "joint loss", relative(losses.joint, self.reference["joint_loss_train"]), 1e-5
        losses.joint.backward()
        ours = dict(model.named_parameters())
        for theirs, recorded in zip(self.reference["grad_names"], self.reference["grad_norms"], strict=True):
            gradient = ours[our_name(str(theirs))].grad
            assert gradient is not None
            allowed = 1e-3 * float(recorded) + (1e-2 if "W.0.bias" in str(theirs) else 1e-12)
            yield f"gradient of {theirs}", apart(gradient.norm(), recorded), allowed


def our_name(theirs: str) -> str:
    """The name of the 2019 code for a parameter -> ours."""
    side, _, name = theirs.partition(".")
    table = {"img_enc": IMAGE_KEYS, "txt_enc": CAPTION_KEYS}[side]
    start = next(start for start in table if name.startswith(start))
    return table[start] + name.removeprefix(start)


def vsrn_recordings(device: torch.device) -> Figures:
    """The four recorded models of 2019, their products folded and plain, and a checkpoint that was saved on a GPU."""
    checks: list[Check] = []
    folded_at = reasoning.FOLD_AT
    with exact():
        try:
            for name in RECORDINGS:
                for way, fold_at in (("folded", 0), ("plain", 10**9)):
                    reasoning.FOLD_AT = fold_at
                    found = Recording(name, device).checks()
                    checks += [(f"{name} {way}: {what}", difference, allowed) for what, difference, allowed in found]
        finally:
            reasoning.FOLD_AT = folded_at
        legacy = read_checkpoint(GOLDEN / "f30k_gpu" / "checkpoint.pth.tar")
        reference = np.load(GOLDEN / "f30k" / "reference.npz")
        model = build_vsrn(legacy.config.model, legacy.vocabulary_size).to(device).eval()
        model.load_state_dict(legacy.weights)
        with torch.no_grad():
            images = model.image_encoder(torch.from_numpy(reference["images"]).to(device)).embeddings
        checks.append(("f30k_gpu: image embeddings", apart(images, reference["image_embeddings"]), 1e-5))
    return judged(checks)


@torch.no_grad()
def scan_recording(device: torch.device) -> Figures:
    """The published SCAN: regions, words, 40 tables of scores and 8 losses."""
    with exact():
        return judged(_scan_checks(device))


def _scan_checks(device: torch.device) -> Iterator[Check]:
    reference = dict(np.load(GOLDEN / "scan" / "reference.npz"))
    images, captions = torch.load(GOLDEN / "scan" / "weights.pth", weights_only=True)["model"]
    words, word_dim = captions["embed.weight"].shape
    joint_dim, feature_dim = images["fc.weight"].shape
    model = SCAN(ModelConfig("scan", feature_dim, joint_dim, word_dim), words).eval()
    model.region_encoder.projection.load_state_dict(_without_prefix(images, "fc."))
    model.word_encoder.embedding.load_state_dict(_without_prefix(captions, "embed."))
    model.word_encoder.gru.load_state_dict(_without_prefix(captions, "rnn."))
    model.to(device)
    lengths = torch.from_numpy(reference["lengths"])
    regions = model.region_encoder(torch.from_numpy(reference["images"]).to(device)).vectors
    read = model.word_encoder(torch.from_numpy(reference["captions"]).to(device), lengths)
    yield "regions", apart(regions, reference["region_embeddings"]), 1e-5
    yield "words", apart(read, reference["word_embeddings"]), 1e-5
    for direction, (asks, temperature, factor) in DIRECTIONS.items():
        for theirs, aggregation in AGGREGATIONS.items():
            for norm in FIRST_NORMS:
                chosen: Any = {"direction": asks, "aggregation": aggregation, "first_norm": norm}
                config = ScanConfig(**chosen, inverse_temperature=temperature, logsumexp_factor=factor)
                scores = similarities(regions, read, lengths, None, config)
                name = f"{direction}_{theirs}_{norm}"
                yield f"scores {name}", apart(scores, reference[f"scores_{name}"]), 1e-5
                if norm == "clipped_l2norm" and aggregation in ("logsumexp", "mean"):
                    for negatives, hardness in (("max", 1.0), ("sum", 0.0)):
                        loss = matching_loss(scores, 0.2, hardness)
                        recorded = reference[f"loss_{direction}_{theirs}_{negatives}"]
                        yield f"loss {direction}_{theirs}_{negatives}", relative(loss, recorded), 1e-5


def _without_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@torch.no_grad()
def pooling_recording(device: torch.device) -> Figures:
    """VSE-infinity's generalised pooling and its weights, and VSE++'s captions."""
    with exact():
        return judged([*_pooling_checks(device), *_vsepp_checks(device)])


def _pooling_checks(device: torch.device) -> Iterator[Check]:
    recorded = torch.load(GOLDEN / "gpo" / "weights.pth", weights_only=True)
    weights = {
        f"{ours}.{kind}_l0": recorded[f"gru.{kind}{theirs}"]
        for ours, theirs in {"forwards": "_l0", "backwards": "_l0_reverse"}.items()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    pooling = GeneralisedPooling()
    pooling.load_state_dict(weights | {"score.weight": recorded["linear.weight"]})
    pooling.to(device)
    reference = np.load(GOLDEN / "gpo" / "reference.npz")
    features, lengths = (torch.from_numpy(reference[name]).to(device) for name in ("features", "lengths"))
    longest = features.shape[1]
    mask = torch.arange(longest, device=device) < lengths[:, None]
    whole = lengths == longest
    yield "pooled", apart(pooling(features, mask), reference["pooled"]), 1e-5
    yield "weights", apart(pooling.weights(lengths, longest), reference["weights"]), 1e-5
    yield "pooled whole", apart(pooling(features[whole]), reference["pooled"][whole.cpu().numpy()]), 1e-5


def _vsepp_checks(device: torch.device) -> Iterator[Check]:
    for name in ("f30k", "order", "options"):
        legacy = read_checkpoint(GOLDEN / name / "checkpoint.pth.tar")
        theirs = legacy.config.model
        taken: Any = {
            field: getattr(theirs, field) for field in ("joint_dim", "word_dim", "caption_layers", "absolute")
        }
        model = build_vsepp(ModelConfig(kind="vsepp", feature_dim=7, **taken), legacy.vocabulary_size).eval()
        own = {key: tensor for key, tensor in legacy.weights.items() if key.startswith("caption_encoder.")}
        model.load_state_dict(own, strict=False)
        model.to(device)
        reference = np.load(GOLDEN / name / "reference.npz")
        tokens, lengths = torch.from_numpy(reference["captions"]).to(device), torch.from_numpy(reference["lengths"])
        yield f"{name}: captions", apart(model.caption_encoder(tokens, lengths), reference["caption_embeddings"]), 1e-5
