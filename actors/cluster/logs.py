"""Log files of actors: libraries' output goes to a file, and only selected lines to the driver's terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO


def redirect_output(path: Path) -> TextIO:
    """Append this process's stdout and stderr (C libraries' too) to `path`; return a stream that still reaches the driver.

    Ray forwards file descriptors 1 and 2 of an actor to the driver, so both are replaced.
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
