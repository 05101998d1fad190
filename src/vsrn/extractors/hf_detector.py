"""Regions of Hugging Face's detectors of the DETR kind: `hf-detector:facebook/detr-resnet-50` (`pip install '.[hub]'`).

Such a detector (DETR, Deformable DETR, RT-DETR, YOLOS, ...) asks a fixed number of queries what is in a photo. Each
answers with a box of its own, a class and the numbers that both are read from: those describe the region.

Q queries, C classes, F numbers of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from vsrn.data.regions import RegionNames, Regions
from vsrn.devices import pick_device
from vsrn.errors import ConfigError
from vsrn.extractors.base import ExtractorFiles, Prepared, check_no_names
from vsrn.extractors.hubs import open_hugging_face
from vsrn.tensors import fingerprint_of

FAMILY = "hf-detector"
MOST = 36


class QueryDetectorExtractor:
    """The 36 most confident queries of a detector, falling."""

    has_scores: ClassVar[bool] = True
    photo_size: ClassVar[None] = None

    def __init__(self, name: str, files: ExtractorFiles, processor: Any, network: Any) -> None:
        """Wrap a detector.

        name       as `vsrn extract --extractor` takes it
        processor  its own, which brings photos to the size and the scale that it learned with

        Raises `ConfigError` where it does not answer as a detector of the DETR kind does.
        """
        check_no_names(name, files)
        self.name, self.files, self.processor = name, files, processor
        self.device = pick_device(files.device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        labels: dict[int, str] = network.config.id2label
        self.names = RegionNames(classes=[labels.get(number, "") for number in range(max(labels, default=-1) + 1)])
        self.fingerprint = fingerprint_of(f"{name}, {MOST}, {processor.to_json_string()}, v1", network.state_dict())
        try:
            answers = self._answers(self.prepare(Image.new("RGB", (64, 64))))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"'{name}' is no detector of the DETR kind ({said}); use another model.") from error
        self.num_regions, self.feature_dim = min(MOST, len(answers.features)), answers.features.shape[1]

    def prepare(self, photo: Image.Image) -> Prepared:
        """An RGB photo of any size -> (3, H, W) float32, as the detector's own processor makes it."""
        return np.asarray(self.processor(images=photo, return_tensors="np")["pixel_values"][0])

    def __call__(self, prepared: Sequence[Prepared]) -> list[Regions]:
        """(3, H, W) float32 arrays -> `Regions` of each, one photo at a time: hardly two have the same size."""
        return [self._answers(photo, MOST) for photo in prepared]

    def _answers(self, photo: Prepared, most: int | None = None) -> Regions:
        """(3, H, W) float32 -> the most confident queries, falling; all of them where `most` is None."""
        with torch.inference_mode():
            said = self.network(pixel_values=torch.from_numpy(photo)[None].to(self.device))
            logits, boxes = said.logits[0].float().cpu(), said.pred_boxes[0].float().cpu()
        # One class more than there are names is that of nothing; otherwise each class is a question of its own.
        without = logits.shape[1] == len(self.names.classes) + 1
        confidences = logits.softmax(dim=1)[:, :-1] if without else logits.sigmoid()
        best, classes = confidences.max(dim=1)
        rows = best.sort(descending=True, stable=True).indices[:most]
        # Before its queries a transformer of patches has the patches.
        described = said.last_hidden_state[0, -len(logits) :].float().cpu()
        centre, size = boxes[rows, :2], boxes[rows, 2:]
        return Regions(
            features=described[rows].numpy(),
            boxes=torch.cat([centre - size / 2, centre + size / 2], dim=1).clamp(0, 1).numpy(),
            scores=best[rows].numpy(),
            classes=classes[rows].numpy(),
        )


def make(argument: str, files: ExtractorFiles) -> QueryDetectorExtractor:
    """What `--extractor hf-detector:NAME [--weights FOLDER]` asks for.

    Raises what `open_hugging_face` and `QueryDetectorExtractor` raise.
    """
    name = f"{FAMILY}:{argument}"
    processor, network = open_hugging_face(name, files, "AutoModelForObjectDetection")
    return QueryDetectorExtractor(name, files, processor, network)
