"""Requests to stop: SIGTERM (preemption, `ray job stop`) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PREEMPTED = 75
"""Exit status after SIGTERM: EX_TEMPFAIL, so that a scheduler starts the same command again."""
INTERRUPTED = 130
"""Exit status after SIGINT."""


class Stopped(Exception):
    """The run was asked to stop; the message says what was saved and how to continue.

    Args:
        status: the command's exit status.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextmanager
def stops_at_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Stopped` in the block, also before and after `StopSignals` takes it: nothing has begun, or all is saved."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; nothing new was saved. The same command resumes from the last checkpoint.", PREEMPTED)

    if threading.current_thread() is not threading.main_thread():  # no other thread can take signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Takes SIGTERM and SIGINT while it is entered.

    While steps run (`steps`), the first signal sets `requested`: the current step ends and is saved. If that takes longer than `grace_s`
    after a SIGTERM, or if a second signal arrives, the run stops at once, as it does outside of steps; its last checkpoint remains.

    Args:
        grace_s: seconds from SIGTERM to the end of the step and its checkpoint.
        say: prints a line.
    """

    def __init__(self, grace_s: float, say: Callable[[str], None]):
        self.grace_s, self._say = grace_s, say
        self.requested: signal.Signals | None = None
        self._in_steps = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other thread can take signals
            for number, handler in ((signal.SIGTERM, self._on_signal), (signal.SIGINT, self._on_signal), (signal.SIGALRM, self._on_alarm)):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._disarm()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Let the first signal wait for the end of a step, which calls `raise_if_requested` once it is saved."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False
            self._disarm()

    def raise_if_requested(self, saved: str) -> None:
        """Raise Stopped if a signal came. `saved`: what the run continues from."""
        if self.requested is not None:
            self._disarm()
            raise self.stopped(f"saved {saved}")

    def stopped(self, what: str) -> Stopped:
        """Return what to raise if a signal came. `what`: what became of the step."""
        assert self.requested is not None
        return self._stopped(self.requested, what)

    def _disarm(self) -> None:
        """End the grace period: what follows, such as the end of the actors, is not to be interrupted."""
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number)
        if not self._in_steps or self.requested is not None:
            if name is signal.SIGINT:
                raise KeyboardInterrupt
            raise self._stopped(name, "nothing new was saved")
        self.requested = name
        within = f" within {self.grace_s:g} s" if name is signal.SIGTERM else ""
        self._say(f"{name.name}: the current step ends and is saved{within}; a second signal stops at once")
        if name is signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, self.grace_s)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        raise self._stopped(signal.SIGTERM, f"the step did not end within {self.grace_s:g} s (recovery.grace_s), so it was not saved")

    def _stopped(self, number: signal.Signals, what: str) -> Stopped:
        status = PREEMPTED if number is signal.SIGTERM else INTERRUPTED
        return Stopped(f"stopped by {number.name}; {what}. The same command resumes from the last checkpoint.", status)
