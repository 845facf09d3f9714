"""Replaces single actors of a job while the others go on. Where that is impossible or fails, the job starts all of them anew
(`actors.loops.recovery`).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

import ray

from actors.cluster.heartbeats import Pulse
from actors.cluster.waiting import ActorFailed, Pending, wait_for
from rlsys.config.schema import Run

GONE_S = 15
"""Seconds that a killed actor has to end, so that a new one gets its name and place."""


class Recoveries(Protocol):
    """`actors.loops.recovery.Recoveries`."""

    def admit(self, failure: ActorFailed, remedy: str) -> None:
        """Count and report a recovery, or raise."""

    def say(self, message: str) -> None:
        """Report that it is over."""


class Replacements:
    """The replacements of a job's actors, until `close`.

    Args:
        nodes: Ray's id of the machine of each actor that can be replaced, by name.
    """

    def __init__(self, recoveries: Recoveries, pulse: Pulse, nodes: dict[str, str]):
        self.recoveries, self.pulse, self.nodes = recoveries, pulse, nodes
        self._lock, self._closed = Lock(), False

    def replace(self, name: str, actor: Any, failure: ActorFailed, remedy: str, create: Callable[[], None]) -> None:
        """Kill what is left of an actor that died or hangs, and create a new one in its place, which starts in the background.

        Args:
            remedy: what becomes of its work, for the screen.
            create: creates the new actor, under the same name, and keeps it where the job will end it.

        Raises:
            ActorFailed: it cannot be replaced alone, as its machine is gone, too, or the job ends, or recoveries are used up.
        """
        with self._lock:
            if self._closed or failure.actor != name or not failure.recoverable:
                raise failure
            if self.nodes.get(name) not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
                raise failure
            self.recoveries.admit(failure, remedy)
            self.pulse.forget(name)
            ray.kill(actor)
            # A dead actor answers a call at once, with an error.
            ray.wait([actor.__ray_ready__.remote()], timeout=GONE_S)
            try:
                create()
            except Exception as error:
                raise not_replaced(name, error) from error

    def await_new(self, name: str, actor: Any, run: Run) -> None:
        """Wait until a new actor is up, and watch it.

        Raises:
            ActorFailed: it did not start.
        """
        try:
            wait_for("start", [Pending(actor.ready.remote(), name, "ready")], run)
            self.pulse.watch({name: actor})
        except ActorFailed as error:
            raise not_replaced(name, error) from error

    def close(self) -> None:
        """Replace no more: the job ends its actors."""
        with self._lock:
            self._closed = True


def not_replaced(name: str, error: Exception) -> ActorFailed:
    """Return what to raise if a new actor did not start or could not join: new ones all over may succeed."""
    return ActorFailed(f"{name} could not be replaced: {error}", recoverable=True)
