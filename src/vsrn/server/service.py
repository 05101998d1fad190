"""What the routes ask for: an index whose encoder is shared by all requests, and never blocks the event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from vsrn.data.regions import Regions, pad_regions
from vsrn.errors import SearchError
from vsrn.metrics import FloatArray
from vsrn.onnx_files import give_back
from vsrn.search.index import Hit, Index, mixed
from vsrn.search.records import PhotoRecord
from vsrn.search.where import Where
from vsrn.server.answers import SearchResult, hit_of
from vsrn.server.photos import draw_photo, open_unchanged
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

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class Batcher(Generic[Item, Answer]):
    """Gathers what coroutines ask into calls of one function, which runs in a thread of its own.

    What waits while the function is busy goes into its next call together; what finds it idle goes in alone, at once.

    function  items -> an answer each, in order
    most      items a call
    heard     told the size of every batch
    """

    def __init__(
        self, function: Callable[[list[Item]], Iterable[Answer]], most: int, heard: Callable[[int], object] = id
    ) -> None:
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


class Service:
    """Answers what the routes ask."""

    def __init__(self, index: Index, metrics: Metrics, limits: Limits) -> None:
        self.index, self.limits = index, limits
        self.encoder = encoder = index.encoder
        of_sentences, of_photos, of_captions = (metrics.batches.labels(kind).observe for kind in INPUTS)
        self._sentences: Batcher[str, FloatArray] = Batcher(encoder.encode_captions, SENTENCES_AT_ONCE, of_sentences)
        self._photos: Batcher[Prepared, FloatArray] = Batcher(self._encode_photos, PHOTOS_AT_ONCE, of_photos)
        self._captions: Batcher[Regions, str] = Batcher(self._write_captions, PHOTOS_AT_ONCE, of_captions)
        self._readers = anyio.CapacityLimiter(READERS)
        self._decoders = anyio.CapacityLimiter(DECODERS)
        # Whether the index keeps regions, and its model a captioner.
        self.captions = index.info.explain and encoder.has_captioner

    async def check(self) -> None:
        """Ask for one of everything that the index keeps of a photo. Raises `SearchError` where it is not there.

        Vectors are asked for by the name of their file too: they stay mapped into the memory of this process where
        the file is gone, but not of the next.
        """
        for hit in await self.search("", 1, Where()):
            await self.read(self.index.thumbnail, hit.id)
            if self.index.info.explain:
                await self.read(self.index.regions, hit.id)
            if next(self.index.folder.glob("vectors-*"), None) is None:
                raise SearchError(f"the vectors of {self.index.folder} are missing.")

    async def read(self, question: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
        """What a method of the index answers. Raises what it raises."""
        return await anyio.to_thread.run_sync(question, *arguments, limiter=self._readers)

    async def search(self, sentence: str, k: int, where: Where, least: float | None = None) -> list[Hit]:
        """The photos that fit a sentence best; arguments as of `Index.search`."""
        vector, words = await self._sentences.ask(sentence), await self.read(self.encoder.read_words, sentence)
        return await self.read(self.index.search_sentence, vector, words, k, where, least)

    async def search_photo(self, content: bytes, k: int, where: Where, sentence: str = "") -> list[Hit]:
        """The photos most like one that is given as bytes, by `sentence` too as in `Index.search_image`.

        Raises `PhotoError` where they are no photo we can read.
        """
        prepared = await anyio.to_thread.run_sync(self._prepare, content, limiter=self._decoders)
        return await self._search_vector(await self._photos.ask(prepared), sentence, k, where)

    async def search_like(self, photo_id: str, k: int, where: Where, sentence: str = "") -> list[Hit]:
        """As `Index.search_like`."""
        photo = await self.read(self.index.photo, photo_id)
        found = await self._search_vector(await self.read(self.index.vector, photo.id), sentence, k + 1, where)
        return [hit for hit in found if hit.id != photo.id][:k]

    async def _search_vector(self, vector: FloatArray, sentence: str, k: int, where: Where) -> list[Hit]:
        if sentence.strip():
            if not (await self.read(self.encoder.read_words, sentence)).asks:
                return []
            vector = mixed(vector, await self._sentences.ask(sentence))
        return await self.read(self.index.search_vector, vector, k, where)

    async def result(self, hits: list[Hit], sentence: str, fold: bool) -> SearchResult:
        """The hits, by `Index.fold` where that is asked for, and what the model makes of the sentence's words."""
        found = await self.read(self.index.fold, hits) if fold else hits
        words = await self.read(self.encoder.read_words, sentence)
        return SearchResult(hits=list(map(hit_of, found)), said=words.sentences(), **words.to_json())

    async def photo(self, record: PhotoRecord, large: bool = False) -> bytes:
        """The photo as a JPEG. Raises `PhotoError` where its file is not what was indexed."""
        path = await self.read(self.index.path, record.id)
        longer, shorter = max(record.width, record.height), max(1, min(record.width, record.height))
        side = math.isqrt(self.limits.large_pixels * longer // shorter) if large else self.limits.photo_side
        return await anyio.to_thread.run_sync(draw_photo, path, record, side, limiter=self._decoders)

    async def original(self, record: PhotoRecord) -> BinaryIO:
        """The photo's file, to be closed. Raises `PhotoError` where it is not what was indexed."""
        path = await self.read(self.index.path, record.id)
        return await anyio.to_thread.run_sync(open_unchanged, path, record, limiter=self._decoders)

    async def caption(self, photo_id: str) -> str:
        """A sentence for a photo of the index, by its model. Raises `UnknownPhotoError`."""
        return await self._captions.ask(await self.read(self.index.regions, photo_id))

    def examples(self) -> list[str]:
        """Sentences that the model can read, to begin with."""
        known = [sentence for sentence in EXAMPLES if not self.encoder.vocabulary.unknown_words([sentence])]
        return known[:MOST_EXAMPLES]

    def close(self) -> None:
        """Close threads and files."""
        for closing in (self._sentences, self._photos, self._captions, self.index):
            closing.close()

    def _prepare(self, content: bytes) -> Prepared:
        from vsrn.data.photos import decode_photo  # noqa: PLC0415
        from vsrn.extractors.base import prepare_pixels  # noqa: PLC0415

        # torch comes with the extractor, so it is loaded when the first photo is.
        extractor = self.encoder.extractor
        picture = decode_photo(content, max_pixels=self.limits.upload_pixels, target_size=extractor.photo_size)
        return prepare_pixels(extractor, picture, "this photo")

    def _encode_photos(self, prepared: list[Prepared]) -> FloatArray:
        try:
            return self.encoder.encode_regions(*pad_regions(self.encoder.extract(prepared)))
        finally:
            give_back()

    def _write_captions(self, regions: list[Regions]) -> list[str]:
        return self.encoder.caption_regions(*pad_regions(regions))
