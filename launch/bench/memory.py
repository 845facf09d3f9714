"""Memory of the process that these are called in, in bytes. They take and ignore arguments, as Ray's `__ray_call__` gives the actor."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(*_: object) -> int:
    """What it holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(*_: object) -> int:
    """The most that it ever held. Not getrusage's: that begins with what the parent held before this program was started."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
