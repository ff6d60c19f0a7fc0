"""What is asked of the system: to show a line, to hold back an interrupt, how much memory."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def say(text: str = "") -> None:
    """One line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Hold back the first Ctrl-C: the list it yields is no longer empty.  The second one strikes.

    A step that is broken off in the middle leaves weights and optimiser that no other run has.
    Signals reach the main thread alone; elsewhere the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def physical_memory() -> float:
    """Bytes that this machine has; infinite where that cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system at every step.

    Fresh pages must be zeroed by the kernel: that is the larger part of an elementwise operation
    on activations of some megabytes.  Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names and values of <malloc.h>
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, -1)
