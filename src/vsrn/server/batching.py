"""Many requests, one call: what waits while the encoder is busy goes into its next call together.

Nothing waits for company: a request that finds the encoder idle goes in alone and at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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
