"""How often a job may start its actors anew."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class Restarts:
    """Counts restarts, and admits at most `limit` within any `window_s` seconds.

    Args:
        clock: returns seconds that never decrease.
    """

    def __init__(self, limit: int, window_s: float, clock: Callable[[], float] = time.monotonic):
        self.limit, self.window_s, self._clock = limit, window_s, clock
        self.total = 0
        """Restarts admitted so far."""
        self._recent: deque[float] = deque()

    def admit(self) -> bool:
        """Return whether another restart is within the limit; if so, count it."""
        now = self._clock()
        while self._recent and now - self._recent[0] >= self.window_s:
            self._recent.popleft()
        if len(self._recent) >= self.limit:
            return False
        self._recent.append(now)
        self.total += 1
        return True
