"""An update of an index in a process of its own, at low priority: whoever starts it keeps its memory small, is not
ended by a crash of it, and can stop it at any moment.

The child reads what it is asked as one line of JSON from its standard input, and ends as soon as that is closed, so
that it never outlives its parent. It writes a line of JSON whenever a batch has reached the disk, and one at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from vsrn.errors import SearchError, VsrnError

if TYPE_CHECKING:
    from vsrn.search.build import IndexReport, ProgressCallback

NICENESS = 10
SECONDS_TO_END = 10.0


class Line(TypedDict, total=False):
    """What a child writes: how far it is, or how it ended.

    done, total  files of the folder that are finished, and all of them
    report       the fields of an `IndexReport`
    error        why it failed, in one sentence
    """

    done: int
    total: int
    report: dict[str, Any]
    error: str


class Child:
    """A process that brings an index in step with its photos, once."""

    def __init__(self, folder: Path | str, plugins: Sequence[str] = (), niceness: int = NICENESS, **asked: Any) -> None:
        """Start it.

        folder    of the index
        plugins   modules that it imports first (`vsrn --plugin`)
        niceness  by how much others go before it, 0 to 19
        asked     arguments of `update_index` beside `folder`; what JSON cannot say, such as `batches`, is no option
        """
        self._stopped = False
        self._process = subprocess.Popen(
            # -P: the folder that somebody works in may hold a file of any name, and is not to be imported from.
            [sys.executable, "-P", "-m", "vsrn.search.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "VSRN_TOKEN"},
            start_new_session=True,  # Ctrl-C in a terminal is for the parent alone
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            asked |= {"folder": str(folder), "plugins": list(plugins), "niceness": niceness}
            self._process.stdin.write(json.dumps(asked, default=str) + "\n")  # paths as text
            self._process.stdin.flush()

    def lines(self) -> Iterator[Line]:
        """What it writes, until it has ended; a report or an error comes last."""
        process, last = self._process, Line()
        assert process.stdout is not None
        assert process.stdin is not None
        with process:
            for text in process.stdout:
                last = json.loads(text)
                yield last
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if "report" not in last and "error" not in last:
            how = "was stopped" if self._stopped else f"broke off (code {process.returncode})"
            yield {"error": f"indexing {how}; all finished photos are kept, and the next run goes on from there."}

    def report(self, progress: ProgressCallback) -> IndexReport:
        """Wait for its end, and give what became of the photos. Raises `SearchError` where it failed."""
        from vsrn.search.build import IndexReport  # noqa: PLC0415 - with Pillow, which a service may do without

        last = Line()
        try:
            for last in self.lines():
                if "done" in last:
                    progress(last["done"], last["total"])
        finally:
            self.stop()
        if "error" in last:
            raise SearchError(last["error"])
        return msgspec.convert(last["report"], IndexReport)

    def stop(self) -> None:
        """End it now, if it has not ended; one batch of photos at most is lost."""
        self._stopped = True
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main() -> None:
    """The child: do what standard input asks, and tell standard output."""
    # What libraries print belongs in the log.
    with os.fdopen(os.dup(1), "w", encoding="ascii") as told:
        os.dup2(2, 1)
        asked = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        niceness = asked.pop("niceness")
        if hasattr(os, "nice"):  # not on Windows
            os.nice(niceness)

        def tell(line: Line) -> None:
            print(json.dumps(line), file=told, flush=True)

        try:
            plugins = asked.pop("plugins")
            for module in plugins:
                importlib.import_module(module)
            from vsrn.extractors.batches import batches_for  # noqa: PLC0415 - with Pillow, which a parent lacks
            from vsrn.search.build import update_index  # noqa: PLC0415 - takes a second and Pillow

            asked["batches"] = batches_for(asked.get("device") or "auto", plugins)
            report = update_index(**asked, progress=lambda done, total: tell({"done": done, "total": total}))
            tell({"report": msgspec.to_builtins(report)})
        except VsrnError as error:
            tell({"error": str(error)})
        except OSError as error:
            what = "the disk" if error.filename is None else error.filename
            tell({"error": f"{what} cannot be read or written ({error.strerror}); mend that and index again."})
        except MemoryError:
            tell({"error": "the memory is used up; free some and index again."})


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
