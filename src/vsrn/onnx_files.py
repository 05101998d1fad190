"""ONNX files, which may come from anybody: opened by onnxruntime, and what they hold read as arrays.

Weights outside of a file are refused, sizes are checked, and nothing but the operators of onnxruntime runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from vsrn.errors import CheckpointError

# Fields of ONNX's protocol buffers that are read here, by message.
_GRAPH, _METADATA = 7, 14
_KEY, _VALUE = 1, 2
_INITIALISER = 5
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_FLOATS = {1: "<f4", 10: "<f2"}
# Weights stored as halves are called so; a Cast gives them their own name.
HALF = "_half"
Weights = dict[str, npt.NDArray[Any]]


def read_content(path: Path) -> tuple[bytes, Weights, dict[str, str]]:
    """An ONNX file: its bytes, its float arrays by name (float16 or float32, as stored), and what it says of itself.

    Raises `CheckpointError` where it cannot be read, is cut short, or keeps weights in another file.
    """
    try:
        content = path.read_bytes()
        return content, *_parsed(memoryview(content))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not a readable ONNX file ({error}); export it again.") from error


def open_session(content: bytes | Path, path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    content  the file's bytes, or its path
    path     what messages call it
    threads  for each operation; 0 leaves it to onnxruntime

    Raises `CheckpointError` where onnxruntime cannot read the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # An arena keeps the most that any call took; what is freed after each call costs no time that can be measured.
    options.enable_cpu_mem_arena = False
    # Errors are raised as exceptions, which we turn into one sentence; nothing is to be logged.
    options.log_severity_level = 4
    # An idle worker sleeps instead of spinning: the query path shares its cores with everything else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(content, bytes):
        # Weights outside the file are looked for below this path, where nothing can be.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute()))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise CheckpointError(
            f"{path} cannot be read by onnxruntime ({first_line(error)}); export it again."
        ) from error
    # It would keep the content to open itself again by another provider, which nobody asks for.
    session._model_bytes = b""
    give_back()
    return session


def give_back() -> None:
    """Give back to the system what this process has freed, in about a millisecond; its next use costs time again.

    glibc keeps it otherwise: 46 MB after the network of the model in the box was opened, and 50 MB after it read a
    photo. Elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def first_line(error: Exception) -> str:
    """What an error of onnxruntime says, without the rest of its lines."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _parsed(content: memoryview) -> tuple[Weights, dict[str, str]]:
    weights, metadata = Weights(), dict[str, str]()
    for number, value in _fields(content):
        if number == _METADATA:
            entry = dict(_fields(_message(value)))
            metadata[_text(entry.get(_KEY, b""))] = _text(entry.get(_VALUE, b""))
        elif number == _GRAPH:
            for kind, tensor in _fields(_message(value)):
                if kind == _INITIALISER:
                    weights |= _weight(_message(tensor))
    return weights, metadata


def _weight(tensor: memoryview) -> Weights:
    """A stored tensor by its name, without the suffix of halves; nothing where it holds no floats."""
    dims, entry = list[int](), dict[int, int | memoryview]()
    for number, value in _fields(tensor):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _numbers(value)
        entry[number] = value
    name = _text(entry.get(_NAME, b""))
    if _EXTERNAL in entry or entry.get(_LOCATION):
        raise ValueError(f"it keeps {name[:100]!r} in another file")
    kind = entry.get(_TYPE)
    if not isinstance(kind, int) or kind not in _FLOATS:
        return {}
    raw, dtype = _message(entry.get(_RAW, memoryview(b""))), np.dtype(_FLOATS[kind])
    if math.prod(dims) * dtype.itemsize != len(raw):
        raise ValueError(f"{name[:100]!r} is not as large as it says")
    return {name.removesuffix(HALF): np.frombuffer(raw, dtype).reshape(dims)}


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers and values of a protocol buffer's fields, in their order."""
    place = 0
    while place < len(message):
        key, place = _number(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _number(message, place)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError("it is no protocol buffer")
        size, place = _number(message, place) if kind == 2 else (8 if kind == 1 else 4, place)
        if size > len(message) - place:
            raise ValueError("it is cut short")
        yield key >> 3, message[place : place + size]
        place += size


def _number(message: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is no protocol buffer")


def _numbers(packed: memoryview) -> list[int]:
    numbers, place = list[int](), 0
    while place < len(packed):
        number, place = _number(packed, place)
        numbers.append(number)
    return numbers


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is no protocol buffer")
    return value


def _text(value: int | memoryview | bytes) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")
