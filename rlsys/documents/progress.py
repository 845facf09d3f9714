"""progress.json: what a run is doing now."""

from __future__ import annotations

from typing import ClassVar

from pydantic import FiniteFloat, NonNegativeInt

from rlsys.documents.core import Document


class Progress(Document):
    """Times are in seconds since the epoch."""

    FILE: ClassVar[str] = "progress.json"

    started: FiniteFloat
    """When the process began, of a resumed run the last one."""
    restarts: NonNegativeInt = 0
    """Times that the run, or its actors after a failure, were started again."""
    host: str
    pid: int
    phase: str = "start"
    doing: str = "starting"
    since: FiniteFloat
    """When the phase began."""
    seconds: dict[str, FiniteFloat] = {}
    """By completed phase."""
    lines: list[str] = []
    """The last lines on the screen."""
    ended: FiniteFloat | None = None
    error: str | None = None
    """What ended the run early."""
