"""Recovery of a job: after the failure of an actor all actors start anew, and the job continues from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from actors.cluster.waiting import ActorFailed
from actors.loops.progress import ProgressReporter
from rlsys.config.schema import Recovery
from rlsys.system.restarts import Restarts

T = TypeVar("T")


def with_restarts(attempt: Callable[[], T], recovery: Recovery, progress: ProgressReporter) -> T:
    """Return the result of `attempt`, which starts the actors and resumes the run; call it again after a failure that may not recur.

    A failure recurs if it is an exception in an actor's code; an actor that died or hangs, or whose engine failed, is replaced.

    Raises:
        Stopped: a signal came before the failure.
        ActorFailed: the failure would recur, or there were more than `recovery.max_restarts` within `recovery.window_s`; the message
            then starts with the first failure.
    """
    restarts = Restarts(recovery.max_restarts, recovery.window_s)
    first: ActorFailed | None = None
    while True:
        try:
            return attempt()
        except ActorFailed as failure:
            if progress.stop.requested is not None:  # a preempted machine takes its actors with it
                raise progress.stop.stopped("the step was not saved, as an actor failed") from failure
            if not failure.recoverable or recovery.max_restarts == 0:
                raise
            first = first or failure
            if not restarts.admit():
                raise ActorFailed(
                    f"{first}\nThis was the first failure. All actors started anew {restarts.total} time(s), and another failure followed "
                    f"within {recovery.window_s:g} s (recovery.max_restarts={recovery.max_restarts}): {failure}"
                ) from failure
            reason = str(failure).partition("\n")[0].rstrip(".")
            progress.restart(f"{reason}; restart {restarts.total}: all actors start anew, and the run continues from its last checkpoint")
