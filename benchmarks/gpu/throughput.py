"""Part 3: encoding, ranking, extraction and search, each per second."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extracting import grid_on, photos
from material import (
    FLICKR30K_WORDS,
    PAPER,
    SMALL,
    make_captions,
    make_config,
    make_features,
    make_it_reason,
    make_vocabulary,
)
from problem import make_embeddings
from recording import Figures, Part, seconds_of, synchronize

from vsrn.data.listing import PhotoFile, find_photos
from vsrn.data.photo_splits import made_ready, processors
from vsrn.data.region_writer import RegionWriter
from vsrn.data.regions import Regions
from vsrn.data.shards import SplitHeader
from vsrn.encoders.torch_backend import Precision, TorchEncoder
from vsrn.extractors.base import prepare_photo
from vsrn.extractors.batches import process_batches
from vsrn.extractors.extract import extract
from vsrn.extractors.grid import GridExtractor
from vsrn.metrics import EncodedSplit, Ranks, rank_blocks, similarity_blocks
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel


def measure(part: Part) -> None:
    """What the issue names targets for first."""
    for precision in ("bf16", "fp32"):
        part.measure(f"encoding images {precision}", lambda p=precision: images(part, p), needs=8)  # type: ignore[misc]
    part.measure("ranking COCO 5K", lambda: ranking(part), needs=10)
    part.measure("grid extraction", lambda: extraction(part), needs=30, limit=90)
    # Each number of processes takes the time of their start besides.
    part.measure("grid extraction by processes", lambda: extraction_by_processes(part), needs=60, limit=150)
    for precision in ("bf16", "fp32"):
        part.measure(f"encoding captions {precision}", lambda p=precision: captions(part, p), needs=6)  # type: ignore[misc]
    part.measure("search of a million", lambda: search(part), needs=5)


@functools.cache
def encoder_of(device: torch.device, precision: Precision, *, small: bool) -> TorchEncoder:
    """A model of Flickr30K's size with random weights whose reasoning does something."""
    sizes = SMALL if small else PAPER
    config = make_config(
        "f30k", Path(), sizes, device, model__feature_dim=sizes.feature_dim, model__captioner__enabled=False
    )
    vocabulary = make_vocabulary(sizes.words)
    torch.manual_seed(0)
    model = build_model(config, vocabulary)
    make_it_reason(model)
    return TorchEncoder(StoredModel(config, vocabulary, model), str(device), precision)


def images(part: Part, precision: Precision) -> Figures:
    """Images per second: float16 features in host memory to embeddings in numpy, and with features on the device."""
    sizes, device = SMALL if part.small else PAPER, part.device
    encoder = encoder_of(device, precision, small=part.small)
    features = make_features(32 if part.small else 3072, sizes)
    seconds = 0.05 if part.small else 0.8
    figures: Figures = {}
    for batch in (8, 16) if part.small else (128, 256, 1024):
        encode = functools.partial(encoder.encode_regions, features, batch_size=batch)
        figures[f"images_per_second_by_{batch}"] = len(features) / seconds_of(encode, device, seconds, warm_up=1)
        here = torch.from_numpy(features[:batch]).to(device)

        @torch.inference_mode()
        def alone(given: torch.Tensor = here) -> torch.Tensor:
            embeddings: torch.Tensor = encoder.image_encoder(given).embeddings
            return embeddings

        # The encoder looks for changes of the weights at each call; a loop over batches on the device need not.
        with torch.inference_mode():
            network = encoder.image_encoder
            taken = seconds_of(functools.partial(network, here), device, seconds)
        figures[f"on_the_device_by_{batch}"] = batch / taken
        figures[f"on_the_device_looking_for_changes_by_{batch}"] = batch / seconds_of(alone, device, seconds / 2)
    return figures


def captions(part: Part, precision: Precision) -> Figures:
    """Captions per second, strings to embeddings in numpy; tokenising alone for comparison."""
    encoder = encoder_of(part.device, precision, small=part.small)
    number, seconds = (64, 0.05) if part.small else (8192, 1.0)
    written = make_captions(number, make_vocabulary(len(encoder.vocabulary)), FLICKR30K_WORDS, np.random.default_rng(5))
    spent = seconds_of(lambda: encoder.encode_captions(written), part.device, seconds, warm_up=1)
    began = time.perf_counter()
    for caption in written:
        encoder.vocabulary.encode(caption)
    return {
        "captions_per_second": number / spent,
        "share_of_tokenising": (time.perf_counter() - began) / spent,
        "captions": number,
    }


def ranking(part: Part) -> Figures:
    """5,000 images and 25,000 captions of 1,024 numbers, both directions: seconds, and whether ranks are the CPU's.

    The products are exact in float32, so that no order of summation changes a rank.
    """
    embedded, captioned, owners = make_embeddings(*((20, 16) if part.small else (5000, 1024)))
    encoded = EncodedSplit(embedded, captioned)
    began = time.perf_counter()
    expected = rank_blocks(similarity_blocks([encoded]), owners)
    on_the_processor = time.perf_counter() - began
    figures: Figures = {"seconds_on_the_processor": on_the_processor}
    if importlib.util.find_spec("vsrn.encoders.ranking") is None:
        return figures | {"note": "this vsrn ranks on the processor alone"}
    rank_on: Any = importlib.import_module("vsrn.encoders.ranking").rank_on
    rank: Callable[[], Ranks] = functools.partial(rank_on, str(part.device), [encoded], owners)
    found = rank()
    figures["passed"] = all(
        np.array_equal(getattr(found, direction), getattr(expected, direction))
        for direction in ("image_to_text", "text_to_image")
    )
    figures["seconds_both_directions"] = seconds_of(rank, part.device, 0.05 if part.small else 1.0, warm_up=1)
    left, right = (torch.from_numpy(side).to(part.device) for side in (embedded, captioned))
    figures["seconds_of_the_product"] = seconds_of(lambda: left @ right.T, part.device, 0.2)
    return figures


def extraction(part: Part) -> Figures:
    """Photos per second: files to a store by threads; the network, writing and decoding alone."""
    listed = photos_of(part.scratch / "photos", 6 if part.small else 2000)
    number, extractor, workers = len(listed), grid_on(part.device), processors()
    figures: Figures = {"photos": number, "workers": workers}
    extract(listed[:4], extractor, part.scratch / "warm-up", "photos", workers=workers)
    for batch in (2,) if part.small else (32, 256):
        began = time.perf_counter()
        report = extract(
            listed, extractor, part.scratch / f"store-{batch}", "photos", batch_size=batch, workers=workers
        )
        figures[f"photos_per_second_by_{batch}"] = number / (time.perf_counter() - began)
        assert report.num_done == number
    began = time.perf_counter()
    prepare = functools.partial(_prepared, extractor)
    batches = made_ready((listed[start : start + 32] for start in range(0, number, 32)), prepare, workers)
    decoded = [photo for _, made in batches for photo in made]
    figures["decoded_per_second"] = number / (time.perf_counter() - began)
    some, seconds = decoded[:256], 0.05 if part.small else 1.0
    figures["written_per_second_by_256"] = written_per_second(part, extractor, 6 if part.small else 1024)
    taken = seconds_of(lambda: extractor(some), part.device, seconds, warm_up=1)
    figures["extractor_alone_per_second"] = len(some) / taken
    with torch.inference_mode():
        pixels = extractor.pixels(some)
        for name, context in (("fp32", False), ("bf16", True)):
            with torch.autocast(part.device.type, dtype=torch.bfloat16, enabled=context):
                taken = seconds_of(lambda: extractor.grid_of(pixels), part.device, seconds, warm_up=1)
            figures[f"network_alone_{name}_per_second"] = len(some) / taken
    return figures


def extraction_by_processes(part: Part) -> Figures:
    """Photos per second by some numbers of processes: of all, with the processes' start, and after the first batch."""
    listed, extractor = photos_of(part.scratch / "photos", 6 if part.small else 2000), grid_on(part.device)
    figures: Figures = {"photos": len(listed), "processors": processors()}
    ended: list[float] = []

    def batches(*arguments: Any, **named: Any) -> Iterator[Any]:
        for done in process_batches(*arguments, **named, fewest=1):
            ended.append(time.perf_counter())
            yield done

    for processes, batch in ((2, 2),) if part.small else ((8, 256), (16, 256), (8, 32)):
        ended.clear()
        began = time.perf_counter()
        store = part.scratch / f"store-by-{processes}-{batch}"
        extract(listed, extractor, store, "photos", batch_size=batch, workers=processes, batches=batches)
        name = f"photos_per_second_by_{batch}_by_{processes}_processes"
        figures[name] = len(listed) / (time.perf_counter() - began)
        figures[f"{name}_once_started"] = (len(listed) - batch) / (ended[-1] - ended[0])
    return figures


def written_per_second(part: Part, extractor: GridExtractor, number: int) -> float:
    """Photos per second that a store takes, 256 at a time and on disk, when nothing else is done."""
    kind = SplitHeader(extractor.name, extractor.fingerprint, "0" * 64, extractor.num_regions, extractor.feature_dim)
    features = np.random.default_rng(6).standard_normal((extractor.num_regions, extractor.feature_dim))
    batch = [Regions(features.astype(np.float16), extractor.boxes)] * min(256, number)
    with RegionWriter(part.scratch / "written", "photos", kind) as writer:
        began = time.perf_counter()
        for start in range(0, number, len(batch)):
            writer.append([str(start + place) for place in range(len(batch))], batch)
        return writer.num_seen / (time.perf_counter() - began)


def _prepared(extractor: GridExtractor, photo: PhotoFile) -> Any:
    return prepare_photo(extractor, photo.path)


@functools.cache
def photos_of(folder: Path, number: int) -> list[PhotoFile]:
    """So many JPEG files of 500 x 375, of 40 different photos."""
    folder.mkdir()
    contents = []
    for photo in photos(min(40, number), 500, 375):
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    for place in range(number):
        (folder / f"{place:05}.jpg").write_bytes(contents[place % len(contents)])
    return find_photos(folder)


def search(part: Part) -> Figures:
    """The ten nearest of a million vectors of 512 float16 numbers, by one product and topk on the device."""
    vectors, dim = (2000, 16) if part.small else (1_000_000, 512)
    device = part.device
    figures: Figures = {}
    generator = torch.Generator(device).manual_seed(0)
    kind = torch.float16 if device.type == "cuda" else torch.float32
    kept = torch.randn(vectors, dim, device=device, dtype=kind, generator=generator)
    for queries in (1, 64, 1024):
        asked = torch.randn(queries, dim, device=device, dtype=kind, generator=generator)

        def answer(given: torch.Tensor = asked) -> list[list[int]]:
            found: list[list[int]] = (given @ kept.T).topk(10).indices.tolist()
            return found

        taken = seconds_of(answer, device, 0.05 if part.small else 0.4)
        figures[f"ms_for_{queries}"] = 1e3 * taken
        figures[f"queries_per_second_by_{queries}"] = queries / taken
    synchronize(device)
    figures["gb_of_vectors"] = kept.numel() * kept.element_size() / 1e9
    return figures
