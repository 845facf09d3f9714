"""Which engine may sample what: the states of engines that can be replaced one by one, and the work in flight on them.

    healthy <--> suspect        silent for a while: no new work, its old work may still arrive
       |            |
       v            v
      dead <--------+           its work goes back to the queue; whatever it still answers is ignored
       |
       v
    restarting                  a new engine starts in its place
       |
       v
     stale -------> healthy     it is up, with the weights of some checkpoint; an update gives it the current ones

A new engine may die, too, and every engine is retired with its job. Pure bookkeeping without threads of its own, so that every
interleaving can be tested (`tests/rlsys/system/test_supervision.py`); `actors.cluster.rollout_group.RolloutGroup` acts on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class State(Enum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    RETIRED = "retired"


LIVE = (State.HEALTHY, State.SUSPECT)
"""States of an engine that had the current weights when it was last heard."""
UP = (*LIVE, State.STALE)
"""States of an engine that takes part in weight updates."""

NEXT = {
    State.HEALTHY: {State.SUSPECT, State.DEAD, State.STALE, State.RETIRED},
    State.SUSPECT: {State.HEALTHY, State.DEAD, State.STALE, State.RETIRED},
    State.DEAD: {State.RESTARTING, State.RETIRED},
    State.RESTARTING: {State.STALE, State.DEAD, State.RETIRED},
    State.STALE: {State.HEALTHY, State.DEAD, State.RETIRED},
    State.RETIRED: set(),
}
"""States that may follow each state."""


class IllegalTransition(RuntimeError):
    """An engine cannot go from its state to another; the message names all three."""


class Supervisor:
    """The states of engines, and the version of the weights that the healthy ones have.

    Args:
        names: of the engines, all of them healthy.
    """

    def __init__(self, names: Sequence[str], version: int = 0):
        self.version = version
        self._states = dict.fromkeys(names, State.HEALTHY)

    def state(self, name: str) -> State:
        """Return the state of an engine."""
        return self._states[name]

    def names(self, *states: State) -> list[str]:
        """Return the engines in any of `states`."""
        return [name for name, state in self._states.items() if state in states]

    def suspect(self, name: str) -> None:
        """It has been silent for a while."""
        self._enter(name, State.SUSPECT)

    def heard(self, name: str) -> None:
        """A suspect has answered."""
        if self._states[name] is not State.SUSPECT:
            raise IllegalTransition(f"{name}: {self._states[name].value}, expected suspect.")
        self._enter(name, State.HEALTHY)

    def died(self, name: str) -> None:
        """It has ended, or counts as hanging."""
        self._enter(name, State.DEAD)

    def restarting(self, name: str) -> None:
        """A new engine starts in its place."""
        self._enter(name, State.RESTARTING)

    def up(self, name: str) -> None:
        """The new engine answers, without the current weights."""
        if self._states[name] is not State.RESTARTING:
            raise IllegalTransition(f"{name}: {self._states[name].value}, expected restarting.")
        self._enter(name, State.STALE)

    def updated(self, version: int, names: Iterable[str]) -> None:
        """All of `names`, and no others, have received the weights of `version`, which is not below the current one.

        Whoever else had the weights of an earlier version is stale from now on.
        """
        names = set(names)
        if version < self.version:
            raise IllegalTransition(f"weights of version {version} after those of version {self.version}.")
        for name in sorted(names):
            if self._states[name] not in UP:
                raise IllegalTransition(f"{name}: {self._states[name].value}, cannot have received weights.")
        for name in self.names(*UP):
            if name not in names and version > self.version and self._states[name] in LIVE:
                self._enter(name, State.STALE)
            elif name in names and self._states[name] is State.STALE:
                self._enter(name, State.HEALTHY)
        self.version = version

    def retire(self) -> None:
        """The job of all engines has ended."""
        for name, state in self._states.items():
            if state is not State.RETIRED:
                self._enter(name, State.RETIRED)

    def _enter(self, name: str, state: State) -> None:
        if state not in NEXT[self._states[name]]:
            raise IllegalTransition(f"{name}: {self._states[name].value}, cannot become {state.value}.")
        self._states[name] = state


@dataclass(frozen=True, eq=False)
class Assignment(Generic[T]):
    """A share of work that an engine was given."""

    number: int
    """Of the share: the same each time that it is given out."""
    share: T
    samples: int
    engine: str


class Dispatch(Generic[T]):
    """The shares of one stream of work: each is waiting, in flight on one healthy engine, or done, once.

    A share goes to the engine with the fewest samples in flight. Each engine holds enough to be full; the remaining shares wait for the
    first engine with room, so a slow engine gets fewer.

    Args:
        shares: numbered in this order; taken one by one, as engines have room.
        samples: returns the samples of a share.
        room: samples in flight at which an engine gets no further share.
    """

    def __init__(self, supervisor: Supervisor, shares: Iterable[T], samples: Callable[[T], int], room: int):
        self.supervisor, self._samples, self.room = supervisor, samples, room
        self._fresh = enumerate(shares)
        self._again: deque[tuple[int, T]] = deque()
        self._load: dict[str, int] = {}
        self.in_flight: set[Assignment[T]] = set()

    def assign(self) -> Assignment[T] | None:
        """Give the next share to a healthy engine; None: none has room, or no share is left."""
        healthy = self.supervisor.names(State.HEALTHY)
        engine = min(healthy, key=lambda name: self._load.get(name, 0), default=None)
        if engine is None or self._load.get(engine, 0) >= self.room or (numbered := self._next()) is None:
            return None
        number, share = numbered
        assignment = Assignment(number, share, self._samples(share), engine)
        self._load[engine] = self._load.get(engine, 0) + assignment.samples
        self.in_flight.add(assignment)
        return assignment

    def finish(self, assignment: Assignment[T]) -> bool:
        """Record that a share is done. False: its engine was lost before, so that another one has it, and this result is to be ignored."""
        if assignment not in self.in_flight:
            return False
        self.in_flight.remove(assignment)
        self._load[assignment.engine] -= assignment.samples
        return True

    def lose(self, engine: str) -> int:
        """Take back all shares of an engine, to be given out again first; returns their number of samples."""
        lost = sorted((one for one in self.in_flight if one.engine == engine), key=lambda one: one.number)
        self.in_flight -= set(lost)
        self._load.pop(engine, None)
        self._again.extend((one.number, one.share) for one in lost)
        return sum(one.samples for one in lost)

    def has_more(self) -> bool:
        """Return whether a share waits for an engine."""
        if not self._again and (numbered := next(self._fresh, None)) is not None:
            self._again.append(numbered)
        return bool(self._again)

    def _next(self) -> tuple[int, T] | None:
        return self._again.popleft() if self._again else next(self._fresh, None)
