"""`vsrn serve` under load: many clients at once, each asking again as soon as it is answered.

python benchmarks/serve.py [--index INDEX] [--clients 50] [--seconds 60]

The service is a process of its own, as a user starts it. Clients share another one, on the same cores, and each has a
connection of its own. A sentence is random words of the model's vocabulary; every tenth request is for a thumbnail of
a photo just found, and every twentieth for an explanation of it where the index explains. Without --index the index
is the one of benchmarks/search.py: 10,000 photos, 512 dimensions, random weights. There is no other side to run
against, so times are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx2
import numpy as np
from harness import record

from search import make_index
from vsrn.data.vocabulary import read_vocabulary

HITS, WORDS_PER_SENTENCE = 24, 8
FLAT = 1.05
SECONDS_BETWEEN_READINGS = 1.0


@dataclass
class Load:
    """What the clients saw."""

    until: float
    words: list[str]
    explains: bool
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def main() -> None:
    """Start the service, ask it, and record what happened."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        index = options.index or Path(folder) / "index"
        if options.index is None:
            make_index(index, Path(folder))
        # A pipe that nobody reads would hold the service up once it is full.
        with (Path(folder) / "said").open("w") as said:
            service = subprocess.Popen([sys.executable, "-m", "vsrn", "serve", str(index), "--port", "0"], stderr=said)
        try:
            measure(service, Path(said.name), index, options)
        finally:
            service.terminate()
            assert service.wait(timeout=30) == 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    return parser.parse_args()


def measure(service: subprocess.Popen[bytes], said: Path, index: Path, options: argparse.Namespace) -> None:
    """Load on a service that has started, after a warm-up.

    said  file of what the service tells, its address first
    """
    started = None
    while started is None:
        assert service.poll() is None, said.read_text()
        time.sleep(0.1)
        started = re.search(r"([\d,]+) photos at (http://\S+)/ ", said.read_text())
    words = [word for word in read_vocabulary(index / "model" / "vocabulary.json").words[4:] if word.isalnum()]
    explains = json.loads((index / "index.json").read_text())["explain"]
    asyncio.run(ask(started[2], Load(time.monotonic() + 0.1 * options.seconds, words, explains), options.clients, []))
    load, memory = Load(time.monotonic() + options.seconds, words, explains), list[float]()
    reading = lambda: memory.append(resident(service.pid))  # noqa: E731 - one line, called from one place
    asyncio.run(ask(started[2], load, options.clients, [reading]))
    report(load, memory, started[1], options)


async def ask(address: str, load: Load, clients: int, readings: list) -> None:  # type: ignore[type-arg]
    """All clients at once, until the time is over."""
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=30) as client:
        tasks = [asyncio.create_task(one_client(client, load, random.Random(seed))) for seed in range(clients)]
        while time.monotonic() < load.until:
            for reading in readings:
                reading()
            await asyncio.sleep(SECONDS_BETWEEN_READINGS)
        await asyncio.gather(*tasks)


async def one_client(client: httpx2.AsyncClient, load: Load, chance: random.Random) -> None:
    """A person who never rests."""
    found = {"id": "", "thumbnail": ""}
    number = chance.randrange(20)
    while time.monotonic() < load.until:
        number += 1
        sentence = quote(" ".join(chance.choices(load.words, k=WORDS_PER_SENTENCE)))
        url = f"/api/search?sentence={sentence}&k={HITS}"
        if number % 20 == 0 and load.explains and found["id"]:
            url = f"/api/explain?sentence={sentence}&id={quote(found['id'], safe='')}"
        elif number % 10 == 0 and found["id"]:
            url = f"/{found['thumbnail']}"
        start = time.perf_counter()
        answer = await client.get(url)
        load.milliseconds.append(1e3 * (time.perf_counter() - start))
        load.statuses[answer.status_code] += 1
        if url.startswith("/api/search"):
            hits = answer.json()["hits"]
            assert len(hits) == HITS
            found = chance.choice(hits)


def resident(pid: int) -> float:
    """Megabytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(load: Load, memory: list[float], photos: str, options: argparse.Namespace) -> None:
    """Keep what was measured."""
    p50, p99 = (float(np.percentile(load.milliseconds, share)) for share in (50, 99))
    total = len(load.milliseconds)
    failed = total - load.statuses[200]
    fifth = max(1, len(memory) // 5)
    early, late = max(memory[:fifth]), max(memory[-fifth:])
    record(
        f"vsrn serve, {options.clients} clients at once",
        target=f"no error, memory flat: within {FLAT - 1:.0%}",
        measured=f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {total / options.seconds:.0f} requests/s, {failed} errors;"
        f" memory {late / early - 1:+.1%} from the first fifth to the last, {late:.0f} MB",
        reached=failed == 0 and late <= FLAT * early,
        checked=f"{total:,} requests in {options.seconds:g} s on {photos} photos, each answer of {HITS} hits counted;"
        " clients on the same cores",
        p50_ms=p50,
        p99_ms=p99,
        requests_per_second=total / options.seconds,
        errors=failed,
        memory_mb=memory,
        memory_early_mb=early,
        memory_late_mb=late,
    )


if __name__ == "__main__":
    main()
