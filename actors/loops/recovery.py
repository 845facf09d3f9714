"""Recovery of a job: a new actor in the place of one that failed, or all actors anew, from the last checkpoint. Both count alike."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Protocol, TypeVar

from rich.console import Console

from actors.cluster.waiting import ActorFailed
from actors.loops.progress import ProgressReporter
from rlsys.config.schema import Recovery
from rlsys.system.restarts import Restarts
from rlsys.system.stopping import StopSignals
from rlsys.system.terminal import print_text

T = TypeVar("T")


class Screen(Protocol):
    """Where recoveries are reported: a `ProgressReporter`, or a `ConsoleScreen`."""

    @property
    def stop(self) -> StopSignals | None:
        """What notices signals that ask the job to stop; None: a signal ends it at once."""

    def restart(self, reason: str) -> None:
        """Warn that something starts anew."""

    def say(self, message: str) -> None:
        """Print one line."""


class ConsoleScreen:
    """The screen of a command without a run folder."""

    stop = None

    def __init__(self, console: Console):
        self.console = console

    def restart(self, reason: str) -> None:
        print_text(self.console, reason, "yellow")

    def say(self, message: str) -> None:
        print_text(self.console, message)


class Recoveries:
    """Counts and reports the recoveries of a job; may be used by several threads."""

    def __init__(self, recovery: Recovery, progress: Screen):
        self.recovery, self.progress = recovery, progress
        self._restarts = Restarts(recovery.max_restarts, recovery.window_s)
        self._first: ActorFailed | None = None
        self._lock = Lock()

    def admit(self, failure: ActorFailed, remedy: str) -> None:
        """Count one more recovery, and say what happened and what is done about it.

        A failure recurs if it is an exception in an actor's code; an actor that died or hangs, or whose engine failed, can be replaced.

        Raises:
            Stopped: a signal came before the failure.
            ActorFailed: the failure would recur, or there were more than `recovery.max_restarts` within `recovery.window_s`; the message
                then starts with the first failure.
        """
        recovery = self.recovery
        with self._lock:
            stop = self.progress.stop
            if stop is not None and stop.requested is not None:  # a preempted machine takes its actors with it
                raise stop.stopped("the step was not saved, as an actor failed") from failure
            if not failure.recoverable or recovery.max_restarts == 0:
                raise failure
            self._first = self._first or failure
            if not self._restarts.admit():
                raise ActorFailed(
                    f"{self._first}\nThis was the first failure. Actors started anew {self._restarts.total} time(s), and another failure "
                    f"followed within {recovery.window_s:g} s (recovery.max_restarts={recovery.max_restarts}): {failure}"
                ) from failure
            reason = str(failure).partition("\n")[0].rstrip(".")
            self.progress.restart(f"{reason}; restart {self._restarts.total}: {remedy}")

    def say(self, message: str) -> None:
        """Say that a recovery is over."""
        self.progress.say(message)


def with_restarts(attempt: Callable[[Recoveries], T], recovery: Recovery, progress: ProgressReporter) -> T:
    """Return the result of `attempt`, which starts the actors and resumes the run; call it again after a failure that may not recur.

    Args:
        attempt: gets what counts the recoveries, as it may replace single actors itself.

    Raises:
        Stopped, ActorFailed: as `Recoveries.admit`.
    """
    recoveries = Recoveries(recovery, progress)
    while True:
        try:
            return attempt(recoveries)
        except ActorFailed as failure:
            recoveries.admit(failure, "all actors start anew, and the run continues from its last checkpoint")
            progress.seconds.clear()  # counted again from those of the last checkpoint
