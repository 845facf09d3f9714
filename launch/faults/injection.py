"""Finding the processes of a run and harming them, from outside."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

MARK = "RLSYS_FAULTS_MARK"
"""Environment variable that all processes of a command inherit, also those that outlive it."""
ENGINE = "VLLM:EngineCore"
"""Name of an engine's process (`actors.rollout.vllm_compat`); its command line is its actor's."""


@dataclass(frozen=True)
class Fault:
    """A signal to one of the processes of a run."""

    victim: str
    """"driver", "rollout", "engine", "learner" or "reward"."""
    number: signal.Signals

    def __str__(self) -> str:
        return f"{self.victim} {self.number.name}"


ACTOR_FAULTS = tuple(
    Fault(victim, number) for victim in ("rollout", "engine", "learner", "reward") for number in (signal.SIGKILL, signal.SIGSTOP)
)
DRIVER_FAULTS = tuple(Fault("driver", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that inherited `mark`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def actor_processes(processes: Iterable[psutil.Process]) -> dict[str, psutil.Process]:
    """Return the youngest process of each kind of actor among `processes`, and that of the engine."""
    found: dict[str, psutil.Process] = {}
    for process in sorted(processes, key=lambda each: each.pid):
        with suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            for kind, name in (("rollout", "RolloutActor"), ("learner", "LearnerActor"), ("reward", "RewardActor")):
                if title.startswith(f"ray::{name}"):
                    found["engine" if process.name() == ENGINE else kind] = process
    return found


def listening_ports(processes: Iterable[psutil.Process]) -> int:
    """Count the ports on which `processes` listen."""
    ports = set()
    for process in processes:
        with suppress(psutil.Error):
            ports |= {connection.laddr for connection in process.net_connections() if connection.status == psutil.CONN_LISTEN}
    return len(ports)
