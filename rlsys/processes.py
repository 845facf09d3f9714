"""What the operating system does for processes."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent ends."""


def die_with_parent(how: signal.Signals) -> None:
    """Have the system send this process the signal `how` when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
