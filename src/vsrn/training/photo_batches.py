"""Batches of captions with their photos, decoded in threads ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import torch

from vsrn.data.photo_splits import PhotoSplit, Pixels, decoding_threads
from vsrn.data.region_store import IntArray
from vsrn.training.batches import Batch, TrainingBatches

BATCHES_AHEAD = 2


class PhotoBatches(TrainingBatches):
    """`TrainingBatches` whose images are random parts of photos, (B, S, S, 3) uint8.

    Which part is drawn depends on the seed, the epoch and the caption alone: whichever thread decodes a photo, and
    wherever a run was cut, the network sees the same pixels.
    """

    @property
    def photos(self) -> PhotoSplit:
        """The split that it learns from."""
        assert isinstance(self.split, PhotoSplit)
        return self.split

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch (from 0), from one of its steps on. Raises `PhotoError` where one cannot be read."""
        ahead: deque[tuple[IntArray, list[Future[Pixels]]]] = deque()
        pool = decoding_threads()
        try:
            for share in self.shares(epoch, first_step):
                photos = [pool.submit(self._pixels, epoch, int(caption)) for caption in share.captions]
                ahead.append((share.captions, photos))
                if len(ahead) > BATCHES_AHEAD:
                    yield self._with_photos(*ahead.popleft())
            while ahead:
                yield self._with_photos(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _pixels(self, epoch: int, caption: int) -> Pixels:
        path = self.photos.path(int(self.split.image_of_caption[caption]))
        return self.photos.view.read_random_part(path, self.seed, epoch, caption)

    def _with_photos(self, captions: IntArray, pixels: list[Future[Pixels]]) -> Batch:
        photos = torch.from_numpy(np.stack([each.result() for each in pixels]))
        return self.batch_of(captions, photos, None)
