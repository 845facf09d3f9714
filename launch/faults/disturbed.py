"""One run, disturbed by faults at random moments, and resumed until it is complete."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.faults.comparison import Comparison, compare
from launch.faults.injection import Fault
from launch.faults.runs import Leftovers, ResumedRun
from rlsys.system.stopping import INTERRUPTED, PREEMPTED

EXPECTED = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {PREEMPTED, -signal.SIGTERM},
    signal.SIGINT: {INTERRUPTED, -signal.SIGINT},
}
"""Exit status after a signal to the driver; negative while Python has only just started."""
POLL_S = 0.2
STALLED_S = 900.0
"""Time without a sign of progress after which a run counts as hung, and is killed."""
MORE_STARTS = 3
"""Starts of the command beyond those that its faults explain."""


@dataclass
class Injected:
    """A fault, and what became of it."""

    fault: str
    after_s: float
    """Seconds from the start of the command to the fault."""
    status: int | None = None
    """Exit status of the command, if it ended then; None: it went on by itself."""
    expected: bool = True
    """Whether it went on by itself, or ended with the status that is promised for a signal to the driver."""


@dataclass
class Outcome:
    """What became of a run."""

    name: str
    faults: list[Injected] = field(default_factory=list)
    starts: int = 0
    complete: bool = False
    longest_stall_s: float = 0.0
    """Seconds between two signs of progress."""
    seconds: float = 0.0
    comparison: Comparison = field(default_factory=Comparison)
    left: Leftovers | None = None
    notes: list[str] = field(default_factory=list)
    """Ends of the command that no fault explains, with the last lines of the screen."""

    @property
    def good(self) -> bool:
        return self.complete and self.comparison.equal and self.left is not None and self.left.nothing and not self.notes

    def describe(self) -> str:
        """Summarise the run in a line."""
        equal = "equal to the bit" if self.comparison.equal else f"differs: {'; '.join(self.comparison.different)}"
        left = [*self.left.processes, *self.left.shared, *self.left.temporary] if self.left else []
        return (
            f"{'complete' if self.complete else 'NOT complete'} after {len(self.faults)} faults, {self.starts} starts and "
            f"{self.seconds:.0f} s; {equal}; longest stall {self.longest_stall_s:.0f} s; left: {', '.join(left) or 'nothing'}"
            + "".join(f"; {note}" for note in self.notes)
        )


class Moment:
    """When to inject a fault: mostly within seconds of one more step's samples, sometimes at any time, also while actors start."""

    def __init__(self, run: ResumedRun, chance: random.Random):
        self._run, self._steps, self._from = run, run.steps(), time.monotonic()
        self._anytime = chance.random() < 0.25
        self._delay = chance.uniform(0, 60) if self._anytime else chance.uniform(0, 4)

    def is_due(self) -> bool:
        if not self._anytime and self._run.steps() <= self._steps:
            self._from = time.monotonic()
        return time.monotonic() - self._from >= self._delay


def disturb(
    run: ResumedRun,
    faults: Sequence[Fault],
    say: Callable[..., None],
    chance: random.Random,
    reference: Path | None = None,
    until: float = float("inf"),
) -> Outcome:
    """Bring `run` to its end through `faults`, one after the other, at moments that `chance` chooses.

    Args:
        say: called with a line about each fault.
        reference: a run to compare with.
        until: time by the monotonic clock from which on nothing more is injected.
    """
    outcome, left, began = Outcome(run.folder.name), list(faults), time.monotonic()
    while not run.complete and run.starts <= len(faults) + MORE_STARTS:
        run.start()
        started, moment, before = time.monotonic(), Moment(run, chance), len(outcome.faults)
        ending = False  # the driver has been told to
        while (status := run.status()) is None:
            time.sleep(POLL_S)
            if run.stalled_s() > STALLED_S:
                outcome.notes.append(f"no progress for {STALLED_S:.0f} s:\n{run.last_lines()}")
                run.kill()
            elif left and not ending and time.monotonic() < until and moment.is_due() and run.inject(left[0]):
                fault, after = left.pop(0), time.monotonic() - started
                say(f"{outcome.name}: {fault} after {run.steps()} steps, {after:.0f} s after start {run.starts}")
                outcome.faults.append(Injected(str(fault), round(after, 1)))
                ending, moment = fault.victim == "driver", Moment(run, chance)
        if ending:
            outcome.faults[-1].status = status
            outcome.faults[-1].expected = status in EXPECTED[fault.number] or (status == 0 and run.complete)
        elif status != 0 and len(outcome.faults) > before:
            outcome.faults[-1].status, outcome.faults[-1].expected = status, False
        if status != 0 and not (ending and outcome.faults[-1].expected):
            outcome.notes.append(f"start {run.starts} ended with status {status}:\n{run.last_lines()}")
    outcome.starts, outcome.complete, outcome.longest_stall_s = run.starts, run.complete, round(run.longest_stall_s, 1)
    outcome.seconds = round(time.monotonic() - began, 1)
    outcome.left = run.leftovers()
    if reference is not None:
        outcome.comparison = compare(run.folder, reference)
    return outcome
