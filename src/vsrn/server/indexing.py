"""Indexing that is started from the page, where `Access` allows it: one process at a time, which outlasts the page."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from vsrn.files import printable
from vsrn.search.child import NICENESS, Child, Line
from vsrn.search.index import Index
from vsrn.search.layout import INFO_FILE, RECORDS_FILE
from vsrn.search.places import usual_folders
from vsrn.server.answers import problems
from vsrn.server.security import Access
from vsrn.server.service import Service

# The rate is that of the last half minute: photos of different folders differ.
SECONDS_OF_RATE = 30.0
LONGEST_FOLDER = 4096

Ended = Literal["", "well", "stopped", "badly"]

log = logging.getLogger("vsrn.server.indexing")


class Choice(BaseModel):
    """What the page offers to whoever may choose a folder to index."""

    index: str = Field(description="Where the index is kept, or will be, on the service's machine.")
    folders: list[str] = Field(description="Folders that are there and usually hold photos.")


class Indexing(BaseModel):
    """How old the index is, and what is being done about it."""

    num_photos: int | None = Field(description="In the index; null where there is none yet.")
    last_run: datetime | None = Field(description="When the last run came to its end; null where none did.")
    skipped: dict[str, int] = Field(description="How many files could not be indexed, by kind of reason.")
    running: bool
    done: int = Field(description="Files of the folder that are finished, in this run or the last.")
    total: int | None = Field(description="All of them; null where that is not known yet.")
    per_second: float | None = Field(description="Files finished a second.")
    seconds_left: float | None = Field(description="At that rate.")
    ended: Ended = Field(description="How the last run of this service ended.")
    said: str = Field(description="A sentence about how it ended.")
    refusal: str = Field(description="Why this service cannot index; empty where it can.")
    choice: Choice | None = Field(description="What a folder may be chosen by; null where none may.")


@dataclass
class _Run:
    """How far one run of `vsrn index` is, or how it ended; fields as those of `Indexing`."""

    running: bool = False
    done: int = 0
    total: int | None = None
    ended: Ended = ""
    said: str = ""
    # Seconds of any clock, and the files that were finished by then.
    steps: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, line: Line) -> None:
        """Take what the child wrote."""
        if "done" in line:
            self.done, self.total = line["done"], line["total"]
            now = time.monotonic()
            self.steps.append((now, self.done))
            while len(self.steps) > 2 and now - self.steps[0][0] > SECONDS_OF_RATE:
                self.steps.popleft()

    def per_second(self) -> float | None:
        """Files a second; None before the first batch. The first step is of files that were as they are."""
        if not self.running or len(self.steps) < 2:
            return None
        (begun, before), (now, done) = self.steps[0], self.steps[-1]
        return (done - before) / max(now - begun, 1e-3)

    def end(self, ended: Ended, said: str = "") -> None:
        """Note how it ended, and a sentence about that."""
        self.running, self.ended, self.said = False, ended, said


@dataclass
class Indexer:
    """Starts, watches and stops the one run."""

    folder: Path  # of the index, which need not be there
    access: Access
    uri: str = ""  # as in `Index`, and so is `device`
    device: str = "auto"
    plugins: Sequence[str] = ()  # modules that indexing imports first
    niceness: int = NICENESS  # by how much everything else goes before it, 0 to 19

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._run = _Run()
        self._child: Child | None = None
        self._thread: threading.Thread | None = None

    @property
    def has_index(self) -> bool:
        """Whether there is an index by now."""
        return (self.folder / INFO_FILE).is_file()

    def open(self) -> Index:
        """The index. Raises `VsrnError` where it cannot be opened."""
        return Index(self.folder, self.uri, self.device)

    def refusal(self) -> str:
        """Why nothing can be indexed from here; empty where it can."""
        if not (self.access.local or self.access.token):
            return "other machines reach this service without a token, so it indexes nothing; set VSRN_TOKEN."
        if not (self.has_index or self.access.may_choose):
            return (
                "other machines reach this service, so nobody chooses a folder here: start it with --choose-folder, or"
                " run `vsrn index PHOTOS` on its machine."
            )
        if self.has_index and not all(os.access(self.folder / name, os.W_OK) for name in ("", RECORDS_FILE)):
            return "this service may only read the index; `vsrn index`, by an account that may write it, updates it."
        return ""

    def start(self, photos: str | None) -> None:
        """Begin a run over the folders of the index, and over one more where it is named.

        Raises `HTTPException` 403 where that is not allowed, 409 where one runs, 422 for a folder that is none.
        """
        refusal = self.refusal()
        if not refusal and photos is not None and not self.access.may_choose:
            refusal = "this service lets nobody choose a folder; start it with --choose-folder, or run `vsrn index`."
        if refusal:
            raise HTTPException(403, refusal)
        folder = None if photos is None and self.has_index else _folder_of(photos or "", self.folder)
        with self._lock:
            if self._run.running:
                raise HTTPException(409, "indexing runs already.")
            asked = {"photos": folder, "uri": self.uri, "device": self.device}
            self._child = Child(self.folder, self.plugins, self.niceness, **asked)
            self._run = _Run(running=True)
            self._thread = threading.Thread(target=self._follow, args=(self._child, self._run), name="indexing")
            self._thread.start()

    def stop(self) -> None:
        """End the run, if there is one; what it has finished stays."""
        with self._lock:
            if self._child is not None and self._run.running:
                self._run.end("stopped", "Stopped. What was finished stays, and the next run goes on from there.")
                self._child.stop()

    def close(self) -> None:
        """Stop, and wait."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def state(self, index: Index | None) -> Indexing:
        """What there is, and what is being done. Raises `SearchError` where the index cannot be read."""
        with self._lock:
            run, rate = replace(self._run), self._run.per_second()
        skipped = [] if index is None else index.skipped()
        refusal = self.refusal()
        choice = None
        if self.access.may_choose and not refusal:
            choice = Choice(index=printable(self.folder), folders=[str(folder) for folder in usual_folders()])
        return Indexing(
            num_photos=None if index is None else len(index),
            last_run=None if index is None else index.last_run(),
            skipped=Counter(file.kind or "unreadable" for file in skipped),
            per_second=rate,
            seconds_left=(run.total - run.done) / rate if rate and run.total is not None else None,
            refusal=refusal,
            choice=choice,
            **vars(run),
        )

    def _follow(self, child: Child, run: _Run) -> None:
        """Read what the child writes, to its end."""
        last = Line()
        for last in child.lines():
            with self._lock:
                run.note(last)
        with self._lock:
            if not run.running:
                return
            if "error" in last:
                log.error("%s", printable(last["error"]))
                # Its sentences name files of this machine, which is for those who may choose among them.
                named = last["error"] if self.access.may_choose else "indexing failed; the log of the service says why."
                run.end("badly", printable(named))
            else:
                run.end("well")


class ServedIndex:
    """The index that is served: opened at once, or as soon as somebody has made it; `over` makes its service."""

    def __init__(self, indexer: Indexer, over: Callable[[Index], Service]) -> None:
        self.indexer, self._over = indexer, over
        self._service: Service | None = None
        self._opening = asyncio.Lock()

    def begin(self, index: Index) -> Service:
        """Serve an index from now on."""
        self._service = self._over(index)
        return self._service

    async def service(self) -> Service | None:
        """The service over the index; None while there is none. Raises `VsrnError` where it cannot be opened."""
        async with self._opening:
            if self._service is None and self.indexer.has_index:
                self.begin(await anyio.to_thread.run_sync(self.indexer.open))
        return self._service

    def num_photos(self) -> int:
        """Photos that can be found."""
        return 0 if self._service is None else len(self._service.index)

    def close(self) -> None:
        """Stop what runs, and close the index."""
        self.indexer.close()
        if self._service is not None:
            self._service.close()


routes = APIRouter(prefix="/api/indexing", tags=["indexing"])
Folder = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=LONGEST_FOLDER,
        description="A folder of photos on the service's machine, to be indexed from now on.",
    ),
]


@routes.get("")
async def indexing(request: Request) -> Indexing:
    """How old the index is, and how far the run is that brings it in step with the photos."""
    served: ServedIndex = request.app.state.served
    service = await served.service()
    if service is None:
        return served.indexer.state(None)
    return await service.read(served.indexer.state, service.index)


@routes.post("", status_code=202, responses=problems(403, 409))
async def index_now(request: Request, folder: Folder = None) -> Indexing:
    """Start such a run."""
    await anyio.to_thread.run_sync(request.app.state.served.indexer.start, folder)
    return await indexing(request)


@routes.delete("", responses=problems(403))
async def stop_indexing(request: Request) -> Indexing:
    """Stop it; what it has finished stays."""
    await anyio.to_thread.run_sync(request.app.state.served.indexer.stop)
    return await indexing(request)


def _folder_of(written: str, index: Path) -> Path:
    """The folder that somebody typed. Raises `HTTPException` 422 where it is none that can be indexed."""
    shown = printable(written[:LONGEST_FOLDER])
    if not written.strip():
        raise HTTPException(422, "no folder is named; type the path of the folder that holds the photos.")
    try:
        folder = Path(written.strip()).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, an account that is not there, a zero byte
        there = False
    if not there or not folder.is_absolute():
        raise HTTPException(422, f"there is no folder {shown}; type its whole path, such as /home/ada/Pictures.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise HTTPException(422, f"the service may not read {shown}; give its account the right, or name another.")
    if folder.resolve() == index.resolve():
        raise HTTPException(422, f"{shown} is where the index will be; name the folder that holds the photos.")
    return folder
