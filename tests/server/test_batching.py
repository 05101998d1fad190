"""What coroutines ask at once goes to the encoder together, and everybody gets an own answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from vsrn.server.service import Batcher


class Slow:
    """A function that is held until the test lets it go."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = threading.Event()
        self.inside = 0

    def __call__(self, numbers: list[int]) -> list[int]:
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        self.calls.append(numbers)
        assert self.go.wait(10)
        self.inside -= 1
        if 13 in numbers:
            raise ValueError("unlucky")
        return [number * number for number in numbers]


async def asked(batcher: Batcher[int, int], numbers: range) -> list[asyncio.Task[int]]:
    """One coroutine a number, all of them waiting."""
    tasks = [asyncio.create_task(batcher.ask(number)) for number in numbers]
    await asyncio.sleep(0.02)
    return tasks


def test_the_first_goes_alone_and_what_waits_meanwhile_goes_together() -> None:
    async def run() -> None:
        slow, sizes = Slow(), list[int]()
        batcher = Batcher(slow, most=8, heard=sizes.append)
        first = await asked(batcher, range(1))
        rest = await asked(batcher, range(1, 13))
        slow.go.set()
        assert await asyncio.gather(*first, *rest) == [number * number for number in range(13)]
        assert slow.calls == [[0], list(range(1, 9)), list(range(9, 13))]
        assert sizes == [1, 8, 4]
        batcher.close()

    asyncio.run(run())


def test_an_error_reaches_those_of_its_batch_and_nobody_else() -> None:
    async def run() -> None:
        slow = Slow()
        batcher = Batcher(slow, most=2)
        tasks = await asked(batcher, range(11, 16))
        slow.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert slow.calls == [[11, 12], [13, 14], [15]]
        assert [str(answer) for answer in answers] == ["121", "144", "unlucky", "unlucky", "225"]
        assert await batcher.ask(4) == 16
        batcher.close()

    asyncio.run(run())


def test_whoever_hangs_up_is_not_computed_for_and_disturbs_nobody() -> None:
    async def run() -> None:
        slow = Slow()
        batcher = Batcher(slow, most=8)
        tasks = await asked(batcher, range(1)) + await asked(batcher, range(1, 5))
        for task in (tasks[0], tasks[3]):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        slow.go.set()
        assert [await tasks[number] for number in (1, 2, 4)] == [1, 4, 16]
        assert slow.calls == [[0], [1, 2, 4]]
        batcher.close()

    asyncio.run(run())


def test_too_few_answers_are_an_error_and_nobody_waits_for_ever() -> None:
    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(lambda numbers: numbers[1:], most=8)
        with pytest.raises(ValueError, match="zip"):
            await asyncio.wait_for(batcher.ask(1), 5)
        batcher.close()

    asyncio.run(run())
