"""What the routes ask for: an index whose encoder is shared by all requests, and never blocks the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
import anyio.to_thread
from starlette.concurrency import run_in_threadpool

from vsrn.data.regions import Regions, pad_regions
from vsrn.data.tokenizer import tokenize
from vsrn.encoders.base import Encoder
from vsrn.encoders.explain import Explanation
from vsrn.errors import SearchError
from vsrn.metrics import FloatArray
from vsrn.search.index import Hit, Index
from vsrn.search.records import PhotoRecord, Where
from vsrn.server.photos import draw_photo
from vsrn.server.security import Limits
from vsrn.server.traffic import Metrics

if TYPE_CHECKING:
    from vsrn.extractors.base import Prepared

INPUTS = ("sentence", "photo", "caption")
SENTENCES_AT_ONCE, PHOTOS_AT_ONCE = 64, 8
# Each reads with a connection of its own, whose cache takes 2 MB.
READERS = 4
# Decoding takes the memory of all of a photo's pixels.
DECODERS = 2

JPEG_START = b"\xff\xd8\xff"

MOST_EXAMPLES = 4
EXAMPLES = (
    "two dogs play in the snow",
    "a child on a swing",
    "a man climbs a rock",
    "people sit on a boat",
    "a red tree left of a yellow house",
    "a white star in the dark",
    "a green heart at sea",
    "a blue box inside a pink ring",
)

Answer = TypeVar("Answer")
Found = list[tuple[PhotoRecord, float]]


class Service:
    """Answers what the routes ask."""

    def __init__(self, index: Index, encoder: Encoder, metrics: Metrics, limits: Limits) -> None:
        self.index, self.encoder, self.limits = index, encoder, limits
        of_sentences, of_photos, of_captions = (metrics.batches.labels(kind).observe for kind in INPUTS)
        self._sentences: Batcher[str, FloatArray] = Batcher(encoder.encode_captions, SENTENCES_AT_ONCE, of_sentences)
        self._photos: Batcher[Prepared, FloatArray] = Batcher(self._encode_photos, PHOTOS_AT_ONCE, of_photos)
        self._captions: Batcher[Regions, str] = Batcher(self._write_captions, PHOTOS_AT_ONCE, of_captions)
        self._readers = anyio.CapacityLimiter(READERS)
        self._decoders = asyncio.Semaphore(DECODERS)

    async def warm_up(self) -> None:
        """Load what the first search needs."""
        await self.search("", 1, Where())

    async def check(self) -> None:
        """Ask for one of everything that the index keeps of a photo. Raises `SearchError` where it is not there.

        Vectors are asked for by the name of their file too: they stay mapped into the memory of this process where
        the file is gone, but not of the next.
        """
        for record, _ in await self.search("", 1, Where()):
            await self.thumbnail(record.id)
            await self._reading(partial(self._check_files, record.id))

    def _check_files(self, photo_id: str) -> None:
        if self.index.info.explain:
            self.index.regions(photo_id)
        if next(self.index.folder.glob("vectors-*"), None) is None:
            raise SearchError(f"the vectors of {self.index.folder} are missing.")

    async def search(self, sentence: str, k: int, where: Where) -> Found:
        """The photos that fit a sentence best."""
        return await self._nearest(await self._sentences.ask(sentence), k, where)

    async def search_photo(self, content: bytes, k: int, where: Where) -> Found:
        """The photos most like one that is given as bytes. Raises `PhotoError` where they are no photo we can read."""
        prepared = await self._decoding(partial(self._prepare, content))
        return await self._nearest(await self._photos.ask(prepared), k, where)

    async def search_like(self, photo_id: str, k: int, where: Where) -> Found:
        """The photos most like one of the index. Raises `UnknownPhotoError`."""
        return await self._reading(lambda: self._with_records(self.index.search_like(photo_id, k, where)))

    async def latest(self, k: int) -> tuple[int, list[PhotoRecord]]:
        """How many photos there are, and those taken last."""
        return await self._reading(lambda: (len(self.index), self.index.latest(k)))

    async def record(self, photo_id: str) -> PhotoRecord:
        """What is known of a photo. Raises `UnknownPhotoError`."""
        return await self._reading(lambda: self.index.photo(photo_id))

    async def thumbnail(self, photo_id: str) -> bytes:
        """A small JPEG. Raises `UnknownPhotoError`, and `SearchError` where the index holds something else there."""
        content = await self._reading(lambda: self.index.thumbnail(photo_id))
        if not content.startswith(JPEG_START):
            raise SearchError(f"what {self.index.folder} keeps as the thumbnail of {photo_id!r} is no JPEG.")
        return content

    async def photo(self, record: PhotoRecord) -> bytes:
        """The photo as a JPEG. Raises `PhotoError` where its file is not what was indexed."""
        path = await self._reading(lambda: self.index.path(record.id))
        return await self._decoding(partial(draw_photo, path, record, self.limits.photo_side))

    async def explain(self, photo_id: str, sentence: str) -> Explanation:
        """Which regions earned a match. Raises `UnknownPhotoError`."""
        return await self._reading(lambda: self.index.explain(photo_id, sentence))

    async def caption(self, photo_id: str) -> str:
        """A sentence for a photo of the index, by its model. Raises `UnknownPhotoError`."""
        return await self._captions.ask(await self._reading(lambda: self.index.regions(photo_id)))

    @property
    def captions(self) -> bool:
        """Whether the index keeps regions, and its model a captioner."""
        return self.index.info.explain and self.encoder.has_captioner

    def examples(self) -> list[str]:
        """Sentences that the model can read, to begin with."""
        return [sentence for sentence in EXAMPLES if not self.unknown_words(sentence)][:MOST_EXAMPLES]

    def unknown_words(self, sentence: str) -> list[str]:
        """Words of a sentence that the model has never read, each once."""
        return [word for word in dict.fromkeys(tokenize(sentence)) if word not in self.encoder.vocabulary.ids]

    def close(self) -> None:
        """Close threads and files."""
        self._sentences.close()
        self._photos.close()
        self._captions.close()
        self.index.close()

    async def _nearest(self, vector: FloatArray, k: int, where: Where) -> Found:
        return await self._reading(lambda: self._with_records(self.index.search_vector(vector, k, where)))

    def _with_records(self, hits: Sequence[Hit]) -> Found:
        # What another process took out of the index in between is left out.
        records = self.index.photos(hit.id for hit in hits)
        return [(records[hit.id], hit.score) for hit in hits if hit.id in records]

    async def _reading(self, question: Callable[[], Answer]) -> Answer:
        return await anyio.to_thread.run_sync(question, limiter=self._readers)

    async def _decoding(self, work: Callable[[], Answer]) -> Answer:
        async with self._decoders:
            return await run_in_threadpool(work)

    def _prepare(self, content: bytes) -> Prepared:
        from vsrn.data.photos import decode_photo  # noqa: PLC0415
        from vsrn.extractors.base import prepare_pixels  # noqa: PLC0415

        # torch comes with the extractor, so it is loaded when the first photo is.
        extractor = self.encoder.extractor
        picture = decode_photo(content, max_pixels=self.limits.upload_pixels, target_size=extractor.photo_size)
        return prepare_pixels(extractor, picture, "this photo")

    def _encode_photos(self, prepared: list[Prepared]) -> FloatArray:
        return self.encoder.encode_regions(*pad_regions(self.encoder.extract(prepared)))

    def _write_captions(self, regions: list[Regions]) -> list[str]:
        return self.encoder.caption_regions(*pad_regions(regions))


Item = TypeVar("Item")


class Batcher(Generic[Item, Answer]):
    """Gathers what coroutines ask into calls of one function, which runs in a thread of its own."""

    def __init__(
        self, function: Callable[[list[Item]], Iterable[Answer]], most: int, heard: Callable[[int], object] = id
    ) -> None:
        """
        function  items -> an answer each, in order
        most      items a call
        heard     told the size of every batch
        """
        self.function, self.most, self.heard = function, most, heard
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._work: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Answer:
        """The answer to one item. Raises what the function raised for the batch that it went in."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_all())
        return await answer

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _answer_all(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]
            # Whoever hung up meanwhile wants no answer.
            batch = [(item, answer) for item, answer in taken if not answer.done()]
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        self.heard(len(batch))
        items = [item for item, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self.function, items)
            answered = list(zip(batch, answers, strict=True))
        except Exception as error:
            for _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in answered:
            if not waiting.done():
                waiting.set_result(answer)
