"""Memory that was freed, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give back what this process has freed, in about a millisecond; the next use of it costs time again.

    glibc keeps it otherwise: 46 MB after the network of the model in the box was opened, and 50 MB after it read a
    photo. Elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
