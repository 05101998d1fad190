"""The memory of a service's threads, as glibc tells it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

THREADS_THAT_ALLOCATE = """
import ctypes, sys, threading
from vsrn.server.running import keep_memory_small

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
if "shared" in sys.argv:
    keep_memory_small()
together = threading.Barrier(8)

def allocate():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no heaps of threads")
def test_threads_keep_memory_small() -> None:
    heaps = {}
    for setting in ("shared", "apart"):
        run = subprocess.run(
            [sys.executable, "-c", THREADS_THAT_ALLOCATE, setting], capture_output=True, text=True, check=True
        )
        heaps[setting] = run.stdout.count("<heap nr=")
    assert heaps["shared"] == 1 < heaps["apart"]
