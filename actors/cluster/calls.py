"""The calls that the training loop makes to its actors: sample, judge, train, write, send weights.

Batches stay in Ray's object store: the driver passes references on and waits only for the few numbers that come with each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.cluster.heartbeats import Pulse
from actors.cluster.replacement import not_replaced
from actors.cluster.reward_client import REWARD, RewardClient
from actors.cluster.rollout_group import RolloutGroup
from actors.cluster.waiting import ActorFailed, HasPulse, Pending, wait_for
from rlsys.config.schema import CallKind, Run

SHUTDOWN_S = 15
"""Seconds that engines and learners have to shut down in order before they are killed."""


class LearnerGroup:
    """All learner ranks as one. Each method calls the method of the same name of every rank's `actors.learner.learner.LearnerActor`
    (where noted, `actors.learner.scalar_learner.ScalarLearner`), waits as long as `run.timeouts_s` allows, and returns rank 0's answer.

    A large argument is best passed as an object reference, which is stored once for all ranks.

    Args:
        verify_weights: compare checksums of all sent tensors.
    """

    def __init__(self, actors: Sequence[Any], run: Run, verify_weights: bool = False):
        self.actors, self.run, self.verify_weights = list(actors), run, verify_weights
        self.pulse: HasPulse | None = None
        self.transfer_pulse: HasPulse | None = None
        """Of the ranks and the engines, which a transfer needs as well."""
        self.names = [f"learner-{rank}" for rank in range(len(self.actors))]

    def join(self) -> list[Pending]:
        """Let the ranks connect to each other and load the model; returns the pending `setup` calls, by rank."""
        host, port = wait_for("start", [Pending(self.actors[0].address.remote(), self.names[0], "address")], self.run)[0]
        return self._begin("setup", host, port)

    def connect_rollouts(self, rollouts: Sequence[Any], backend: str, bucket_mib: int) -> None:
        self._transfer = backend, bucket_mib
        self.reconnect(rollouts)

    def reconnect(self, rollouts: Sequence[Any]) -> None:
        """`connect_rollouts`, as before, to other engines."""
        self.call("start", "connect_rollouts", list(rollouts), *self._transfer, self.run.timeout_s("weights"))

    def start_stage(self, lr: float, warmup_steps: int) -> None:
        self.call("train", "start_stage", lr, warmup_steps)

    def decay_over(self, steps: int) -> None:
        self.call("train", "decay_over", steps)

    def snapshot_reference(self) -> None:
        self.call("train", "snapshot_reference")

    def train_grpo(self, batch: Any, temperature: float, total_samples: int | None = None) -> dict[str, Any]:
        return self.call("train", "train_grpo", batch, temperature, total_samples)

    def train_sft(self, batch: Any) -> dict[str, Any]:
        return self.call("train", "train_sft", batch)

    def send_weights(self, version: int) -> dict[str, Any]:
        """Send the weights to every engine, asleep or awake; later samples carry `version`."""
        return self.call("weights", "send_weights", version, self.verify_weights)

    def save(self, folder: Path, files: Mapping[str, str] | None = None) -> None:
        """Save model and optimizer, with further text files in the model's folder."""
        self.call("checkpoint", "save", str(folder), dict(files or {}))

    def load(self, folder: Path) -> None:
        self.call("checkpoint", "load", str(folder))

    def train(self, batch: Any) -> dict[str, Any]:
        """ScalarLearner only."""
        return self.call("train", "train", batch)

    def score(self, batch: Any) -> list[float]:
        """ScalarLearner only."""
        return self.call("train", "score", batch)

    def save_model(self, folder: Path) -> None:
        """ScalarLearner only."""
        self.call("checkpoint", "save_model", str(folder))

    def call(self, kind: CallKind, method: str, *args: Any) -> Any:
        """Call any `method` on every rank; returns rank 0's answer. The first failure ends the wait and names its rank."""
        pulse = self.transfer_pulse if kind in ("start", "weights") else self.pulse
        return wait_for(kind, self._begin(method, *args), self.run, pulse)[0]

    def _begin(self, method: str, *args: Any) -> list[Pending]:
        return [Pending(getattr(actor, method).remote(*args), name, method) for actor, name in zip(self.actors, self.names, strict=True)]


@dataclass(frozen=True)
class Actors:
    """The actors that the RL loop calls."""

    rollouts: RolloutGroup
    learners: LearnerGroup
    reward: RewardClient

    def send_weights(self, version: int) -> dict[str, Any]:
        """Send the learners' weights to every engine that is up; later samples carry `version`. Returns as `LearnerGroup.send_weights`.

        An engine that has died since it sampled is replaced, and new ones are connected first. An engine that fails in the middle of the
        transfer refuses all further calls, and ends the attempt.
        """
        rollouts = self.rollouts
        names = rollouts.muster()
        if rollouts.changed:
            try:
                self.learners.reconnect([rollouts.engines[name] for name in names])
            except ActorFailed as error:
                raise not_replaced("an engine", error) from error
            rollouts.changed = False
        sent = self.learners.send_weights(version)
        rollouts.updated(version, names)
        return sent

    def refresh(self) -> None:
        """Give new engines the current weights; the learners must be idle, and have sent theirs."""
        self.send_weights(self.rollouts.supervisor.version)

    def watch(self, pulse: Pulse) -> None:
        """Let `pulse` notice an actor that hangs, in every wait from now on."""
        rollouts, learners, reward = self.rollouts, self.learners, self.reward
        ranks = dict(zip(learners.names, learners.actors, strict=True))
        pulse.watch(rollouts.engines | ranks | {REWARD: reward.actor})
        rollouts.pulse, learners.pulse, reward.pulse = pulse, pulse.of(learners.names), pulse.of([REWARD])
        learners.transfer_pulse = pulse.of([*learners.names, *rollouts.names])


def end_actors(orderly: Sequence[Any], others: Sequence[Any] = ()) -> None:
    """Let the `orderly` actors shut down, briefly, then kill whatever is left, and the `others`; return once all have ended."""
    calls = [actor.shutdown.remote() for actor in orderly]
    ray.wait(calls, num_returns=len(calls), timeout=SHUTDOWN_S)
    for actor in [*orderly, *others]:
        ray.kill(actor)
    # A dead actor answers a call at once, with an error.
    gone = [actor.__ray_ready__.remote() for actor in [*orderly, *others]]
    ray.wait(gone, num_returns=len(gone), timeout=SHUTDOWN_S)
