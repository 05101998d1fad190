"""Regions of torchvision's two-stage detectors: `torchvision:fasterrcnn_resnet50_fpn_v2`, `torchvision:maskrcnn_...`.

As in bottom-up attention (Anderson et al., CVPR 2018), the 36 proposals that the detector is surest of are the regions.
With `:regressed` behind the name a region is the box that the detector makes of such a proposal, described again.

P proposals, C classes without the background; boxes are xyxy in pixels of the resized photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import ConfigError, PhotoError, did_you_mean
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.extractors.bottom_up.network import SelectionRules, select
from vsrn.tensors import downloaded_before, fingerprint_of, from_hub, load_tensors, not_here

FAMILY = "torchvision"
REGRESSED = ":regressed"


class DetectorExtractor:
    """The 36 surest proposals of a Faster or Mask R-CNN, falling; fewer only where a photo has fewer."""

    has_scores: ClassVar[bool] = True
    photo_size: ClassVar[None] = None

    def __init__(
        self,
        name: str,
        files: ExtractorFiles,
        network: FasterRCNN,
        names: RegionNames | None = None,
        selection: SelectionRules | None = None,
        *,
        regressed: bool = False,
    ) -> None:
        """Wrap a detector.

        name       as `vsrn extract --extractor` takes it
        names      of its classes without the background
        regressed  whether regions are the boxes that the detector makes of its proposals
        """
        self.regressed, self.names = regressed, names or RegionNames()
        self.name, self.files, self.selection = name, files, selection or SelectionRules()
        self.num_regions = self.selection.most
        self.device = pick_device(files.device)
        self.network: Any = network.eval().requires_grad_(False).to(self.device)
        self.fingerprint = fingerprint_of(f"{name}, {self.selection}, v1", network.state_dict())
        self.feature_dim = int(self.network.roi_heads.box_predictor.cls_score.in_features)

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (3, H, W) float32, scaled and resized. Raises `PhotoError` for one too narrow."""
        transform = self.network.transform
        pixels = transform.normalize((pil_to_tensor(photo).float() / 255).to(self.device))
        short, long = sorted(pixels.shape[1:])
        scale = min(transform.min_size[-1] / short, transform.max_size / long)
        if int(short * scale) < 1:
            raise PhotoError(f"is {photo.width} x {photo.height} pixels, too narrow for a detector; crop it.")
        resized, _ = transform.resize(pixels, None)
        return np.asarray(resized.cpu().numpy())

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(3, H, W) float32 arrays -> `Regions` of each, one photo at a time."""
        with torch.inference_mode():
            return [self._regions_of(torch.from_numpy(photo).to(self.device)) for photo in prepared]

    def _regions_of(self, photo: torch.Tensor) -> Regions:
        height, width = photo.shape[1:]
        network, size = self.network, [(height, width)]
        images = ImageList(network.transform.batch_images([photo]), size)
        maps = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, maps if isinstance(maps, dict) else {"0": maps})
        heads = network.roi_heads
        described = heads.box_head(heads.box_roi_pool(maps, proposals, size))  # (P, F)
        logits, deltas = heads.box_predictor(described)  # (P, 1 + C), the background first
        boxes = proposals[0]
        if self.regressed:
            # Each proposal's box for its likeliest class.
            of_classes = heads.box_coder.decode(deltas, proposals)  # (P, 1 + C, 4)
            likeliest = 1 + logits[:, 1:].argmax(dim=1)
            boxes = clip_boxes_to_image(of_classes[torch.arange(len(boxes), device=boxes.device), likeliest], size[0])
        rows, scores = select(boxes, logits.softmax(dim=1)[:, 1:], self.selection)
        rows = rows.to(self.device)
        features = described[rows]
        if self.regressed:
            features = heads.box_head(heads.box_roi_pool(maps, [boxes[rows]], size))
        sides = photo.new_tensor([width, height, width, height])
        return Regions(
            features=features.cpu().numpy(),
            boxes=(boxes[rows] / sides).cpu().numpy(),
            scores=scores.numpy(),
            classes=logits[rows, 1:].argmax(dim=1).cpu().numpy(),
        )


def make(argument: str, files: ExtractorFiles) -> DetectorExtractor:
    """What `--extractor torchvision:NAME[:regressed] [--weights FILE]` asks for.

    Without a file, the weights come from torch's cache, or where `files.download` allows it from the hub. Raises
    `ConfigError` where torchvision has no such two-stage detector, the weights are not here or the hub does not answer,
    and `CheckpointError` where a file does not fit.
    """
    name = f"{FAMILY}:{argument}"
    check_no_names(name, files)
    regressed = argument.endswith(REGRESSED)
    argument = argument.removesuffix(REGRESSED)
    # One-stage detectors (RetinaNet, SSD, FCOS) have nothing that describes a box.
    known = list_models(include=["fasterrcnn*", "maskrcnn*", "keypointrcnn*"])
    if argument not in known:
        raise ConfigError(
            f"torchvision has no two-stage detector '{argument}'; write '{FAMILY}:' and one of {', '.join(known)}."
            f"{did_you_mean(argument, known)}"
        )
    weights = get_model_weights(argument).DEFAULT
    if files.weights is None:
        if not files.download and downloaded_before(weights.url) is None:
            raise not_here(name)
        network = from_hub(name, lambda: get_model(argument, weights="DEFAULT"))
    else:
        network = get_model(argument, weights=None, weights_backbone=None)
        load_tensors(network, files.weights)
    # Its published weights say what its classes are called, and a copy of them has the same.
    names = RegionNames(classes=weights.meta["categories"][1:])
    return DetectorExtractor(name, files, network, names, regressed=regressed)
