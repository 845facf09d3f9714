"""Keeps libraries' chatter out of the terminal: an actor's output goes to a file, and only chosen lines to the driver."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO


def to_file(path: Path) -> TextIO:
    """Send this process's stdout and stderr (C libraries' too) to `path`, appending; return a stream that still reaches the driver.

    Ray forwards what an actor writes to its own two file descriptors, so these are what has to be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    console = os.fdopen(os.dup(2), "w", buffering=1)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    return console
