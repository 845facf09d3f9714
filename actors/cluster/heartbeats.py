"""Heartbeats: actors report that they are alive, so that one that hangs is noticed long before a call to it times out.

Ray notices a process that ends, but not one that stops answering (stopped, swapped out, its driver stuck). A long call is no hang: the
beats come from a thread of their own, and an engine's only after it has answered a ping between two of its steps.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import ray

from actors.cluster.waiting import ActorFailed, Pending, fetch, wait

BEAT_S = 2.0
"""Seconds between two beats of an actor."""


class Heartbeats:
    """The actor that receives the beats of a job."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}

    def beat(self, name: str) -> None:
        """Record a beat of the actor `name`."""
        self._latest[name] = time.monotonic()

    def silence(self) -> dict[str, float]:
        """Return the seconds since each actor's latest beat."""
        now = time.monotonic()
        return {name: now - latest for name, latest in self._latest.items()}


def beat_from_a_thread(name: str, heartbeats: Any) -> None:
    """Report `name` as alive from now on, whatever the other threads of this process compute."""

    def beat() -> None:
        while True:
            heartbeats.beat.remote(name)
            time.sleep(BEAT_S)

    Thread(target=beat, name="heartbeat", daemon=True).start()


class Pulse:
    """Checks the heartbeats of a job's actors while the driver waits for them.

    Args:
        limit_s: silence after which an actor counts as hanging, in seconds; None: heartbeats are off.
    """

    def __init__(self, limit_s: float | None):
        self.limit_s = limit_s
        self._actor = None if limit_s is None else ray.remote(Heartbeats).options(num_cpus=0).remote()
        self._next_look = 0.0
        self._watched: set[str] = set()
        self._silence: dict[str, float] = {}
        # The thread that samples and the one that trains wait at the same time.
        self._lock = Lock()

    def watch(self, actors: Mapping[str, Any]) -> None:
        """Let the actors, which are up, beat from now on."""
        if self._actor is not None:
            with self._lock:
                for name in actors:  # Their silence begins now, whatever an earlier actor of this name did.
                    self._actor.beat.remote(name)
                    self._silence.pop(name, None)
                self._watched |= set(actors)
            calls = [Pending(actor.start_heartbeat.remote(self._actor), name, "start_heartbeat") for name, actor in actors.items()]
            wait(calls, self.limit_s or 0.0, "recovery.heartbeat_s")

    def forget(self, name: str) -> None:
        """Watch an actor that is given up no longer."""
        self._watched.discard(name)

    def silence(self, names: Collection[str]) -> dict[str, float]:
        """Return the seconds since the latest beat of those of `names` that are watched, as seen at most BEAT_S ago; cheap otherwise."""
        if self._actor is None or self.limit_s is None:
            return {}
        with self._lock:
            if (now := time.monotonic()) >= self._next_look:
                self._next_look = now + BEAT_S
                self._silence = fetch(Pending(self._actor.silence.remote(), "heartbeats", "silence"), self.limit_s)
            return {name: seconds for name, seconds in self._silence.items() if name in self._watched and name in names}

    def check(self, names: Collection[str]) -> None:
        """Look at the beats of `names`.

        Raises:
            ActorFailed: one of them was silent for longer than the limit; the message names it.
        """
        for name, seconds in self.silence(names).items():
            if self.limit_s is not None and seconds > self.limit_s:
                message = f"{name} hangs: no sign of life for {seconds:.0f} s (recovery.heartbeat_s={self.limit_s:g})."
                raise ActorFailed(message, recoverable=True, actor=name)

    def of(self, names: Collection[str]) -> PulseOf:
        """Return what checks `names` alone, for a wait that concerns no others."""
        return PulseOf(self, names)

    def close(self) -> None:
        """End the receiving actor."""
        if self._actor is not None:
            ray.kill(self._actor)


@dataclass(frozen=True)
class PulseOf:
    """Checks the heartbeats of some actors."""

    pulse: Pulse
    names: Collection[str]

    def check(self) -> None:
        """Raise ActorFailed if one of them hangs."""
        self.pulse.check(self.names)
