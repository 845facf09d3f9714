"""Bounded waits for remote calls. No wait is unbounded, and every error names the actor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from rlsys.config.schema import CallKind, Run
from rlsys.models.loading import ModelError
from rlsys.system.environment_errors import describe_environment_error

GRACE_S = 10.0
"""Seconds after a failure in which the death of a peer still counts as its cause."""


TICK_S = 1.0
"""Seconds between two looks at the actors' heartbeats during a wait."""


class ActorFailed(RuntimeError):
    """A remote call failed, its actor died, hung, or timed out; the message names the actor and the call.

    Args:
        recoverable: new actors may succeed: the old ones died, hung or lost their engine. False for an exception in an actor's code, which
            would be raised again.
        actor: the one that died, hung or lost its engine: a new one in its place may be enough. None: that is not known.
    """

    def __init__(self, message: str, recoverable: bool = False, actor: str | None = None):
        super().__init__(message)
        self.recoverable, self.actor = recoverable, actor


class HasPulse(Protocol):
    """`actors.cluster.heartbeats.Pulse`."""

    def check(self) -> None:
        """Raise ActorFailed if an actor hangs."""


@dataclass(frozen=True)
class Pending:
    """A remote call in progress."""

    ref: ray.ObjectRef
    actor: str
    call: str


def wait(calls: Sequence[Pending], timeout_s: float, setting: str = "run.actor_timeout_s", pulse: HasPulse | None = None) -> list[Any]:
    """Return the results of `calls`, in order. Raises at the first failure, without waiting for the rest.

    A failed rank leaves its peers blocked in a collective, so results are checked as they arrive.

    Args:
        setting: key of the config to raise if the calls are only slow.
        pulse: checked meanwhile.

    Raises:
        ActorFailed: a call raised, an actor died or hangs, or not all calls were done after `timeout_s` seconds.
        ModelError: a call raised it.
    """
    open_calls = {call.ref: call for call in calls}
    results: dict[ray.ObjectRef, Any] = {}
    deadline = time.monotonic() + timeout_s
    while open_calls:
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait(list(open_calls), num_returns=1, timeout=left if pulse is None else min(left, TICK_S))
        if not done and pulse is not None and left > 0:
            pulse.check()
            continue
        if not done:
            late = ", ".join(f"{call.actor} ({call.call})" for call in open_calls.values())
            alone = next(iter(open_calls.values())).actor if len(open_calls) == 1 else None
            message = f"no answer within {timeout_s:.0f} s from {late}. Raise {setting} if it is only slow."
            raise ActorFailed(message, recoverable=True, actor=alone)
        call = open_calls.pop(done[0])
        try:
            results[call.ref] = fetch(call, timeout_s)
        except ActorFailed as error:
            if death := _death_among(open_calls, error):
                raise death from death.__cause__
            raise
    return [results[call.ref] for call in calls]


def _death_among(calls: dict[ray.ObjectRef, Pending], failure: ActorFailed) -> ActorFailed | None:
    """Return the death of an actor among open `calls`, or None.

    When a rank dies, its peers' collective fails first: their connection breaks at once, while Ray takes seconds to declare a death.
    """
    deadline = time.monotonic() + GRACE_S
    open_calls = {} if isinstance(failure.__cause__, ray.exceptions.RayActorError) else dict(calls)
    while open_calls:
        done, _ = ray.wait(list(open_calls), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            break
        try:
            fetch(open_calls.pop(done[0]), GRACE_S)
        except ModelError:
            pass
        except ActorFailed as error:
            if isinstance(error.__cause__, ray.exceptions.RayActorError):
                return error
    return None


def wait_for(kind: CallKind, calls: Sequence[Pending], run: Run, pulse: HasPulse | None = None) -> list[Any]:
    """`wait` as long as the config allows calls of this kind to take."""
    return wait(calls, run.timeout_s(kind), f"run.timeouts_s.{kind}", pulse)


def fetch(call: Pending, timeout_s: float) -> Any:
    """Return the result of one finished call; a ModelError is raised as it is, any other failure as ActorFailed."""
    try:
        return ray.get(call.ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModelError):
            raise error.cause from None
        words = describe_environment_error(error.cause) if error.cause is not None else None
        # An operating-system error needs no traceback; anything else is reported with the actor's.
        reason = words if words is not None else f"{error.cause or error}\n{error}"
        recoverable = bool(getattr(error.cause, "recoverable", False))
        raise ActorFailed(f"{call.actor} failed in {call.call}: {reason}", recoverable, call.actor) from error
    except ray.exceptions.RayActorError as error:
        raise ActorFailed(f"{call.actor} died during {call.call}: {error}", recoverable=True, actor=call.actor) from error
    except ray.exceptions.GetTimeoutError as error:
        raise ActorFailed(f"{call.actor}: the result of {call.call} did not arrive within {timeout_s:.0f} s.", recoverable=True) from error
    except ray.exceptions.RayError as error:
        # The arguments or the result were stored on a machine that is gone.
        raise ActorFailed(f"{call.actor}: {call.call}: {type(error).__name__}: {error}", recoverable=True) from error
