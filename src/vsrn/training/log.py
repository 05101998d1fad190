"""What a run writes down: one JSON object a line in metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vsrn.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "metrics.jsonl"


class RunLog:
    """Appends to a run's log. Rows are dictionaries with a "step"; validations nest under "validation".

    TensorBoard events are written where the package is installed (extra `tensorboard`).
    """

    def __init__(self, run: Path, from_step: int) -> None:
        self.path = run / LOG_FILE
        # A killed run may have logged steps beyond its checkpoint, which will be taken again.
        kept = [row for row in read_log(run) if row["step"] <= from_step]
        write_atomically(self.path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
        self._file = self.path.open("ab")
        self._events = _event_writer(run, from_step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
        if self._events is not None:
            for name, value in _flat(row).items():
                self._events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Finish writing."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
    return rows


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    scalars: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            scalars |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            scalars[prefix + name] = float(value)
    return scalars


def _event_writer(run: Path, from_step: int) -> SummaryWriter | None:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional extra

    return SummaryWriter(str(run), purge_step=from_step + 1)
