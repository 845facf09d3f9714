"""Process settings of the operating system and the C library."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: signal to receive when the parent process ends."""


def die_with_parent(death_signal: signal.Signals) -> None:
    """Have the kernel send this process `death_signal` when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)


PR_SET_NAME = 15
"""Option of Linux's prctl: the name of the calling thread, which is the process's in its main thread."""


def set_process_name(name: str) -> None:
    """Set the name that `ps -e` and `top` show for this process, at most 15 bytes. Call it from the main thread."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of mallopt, from <malloc.h>."""
KEPT_BYTES = 2**30
"""Allocations up to this size stay on the heap when they are freed."""


def return_freed_memory() -> None:
    """Return the memory that this process has freed to the operating system. No effect without glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def keep_freed_memory() -> None:
    """Have this process reuse freed memory instead of returning it to the operating system.

    New memory is mapped and zeroed page by page on first access, and a CPU learner frees and allocates the same gigabytes in every step.
    No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
