"""Runs side by side allocate from one heap. The C library itself is asked, in a separate process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, os, threading
from rl_engine.train.__main__ import share_heap
{call}
libc = ctypes.CDLL(None)
libc.fdopen.restype = libc.malloc.restype = ctypes.c_void_p
allocated = [threading.Event() for _ in range(4)]
done = threading.Event()
def work(event):
    libc.malloc(1000)
    event.set()
    done.wait()
threads = [threading.Thread(target=work, args=(event,)) for event in allocated]
for thread, event in zip(threads, allocated):
    thread.start()
    event.wait()
reading, writing = os.pipe()
file = ctypes.c_void_p(libc.fdopen(writing, b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
done.set()
print(os.read(reading, 2**20).decode().count("<heap nr"))
"""


def heaps(call: str) -> int:
    """The number of heaps while four threads hold memory."""
    done = subprocess.run([sys.executable, "-c", COUNT.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has one heap anyway")
def test_threads_of_runs_side_by_side_share_one_heap() -> None:
    assert heaps("share_heap()") == 1
    assert heaps("") > 1
