"""What the operating system does for processes."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent ends."""


def die_with_parent(how: signal.Signals) -> None:
    """Have the system send this process the signal `how` when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of the C library's mallopt, <malloc.h>."""
KEPT_BYTES = 2**30
"""Size below which the C library keeps freed memory for later."""


def keep_freed_memory() -> None:
    """Have this process use memory again that it freed, instead of giving it back to the system.

    What comes from the system comes as pages that are cleared and mapped one by one, at the first touch; a learner on a CPU frees and
    allocates the same gigabytes in every step. Nothing happens without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
