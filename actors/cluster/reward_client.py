"""The calls to the reward actor; a new one in its place gets those of all batches that are not written yet once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.heartbeats import PulseOf
from actors.cluster.replacement import Replacements
from actors.cluster.waiting import ActorFailed, Pending, wait_for
from rlsys.config.schema import Run
from rlsys.data.chain import PromptItem

REWARD = "reward"


@dataclass(eq=False)
class RewardCall:
    """A call of `actors.reward.RewardActor`; its answers are another actor's once that has replaced the first one."""

    key: str
    method: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    results: int = 1
    answers: list[ray.ObjectRef] = field(default_factory=list)
    """The first one is waited for."""


class RewardClient:
    """What turns samples into rewards, and keeps them: the calls to the reward actor (`actors.reward.RewardActor`).

    The loop calls `begin` and `judge` for each batch, then `pop_learner_batch` and `begin_writing` for the step. Here the actor judges by
    the rules of the method; `actors.policy_rewards.PolicyRewards` lets a judge do it. Every wait is bounded by `run.timeouts_s`.

    A batch is in the actor's memory until it is written. If the actor dies or hangs, a new one is given the calls of all such batches, in
    order, with the same samples; a table is written in one go, so every batch ends up there once.
    """

    def __init__(self, actor: Any, run: Run):
        self.actor, self.run = actor, run
        self.pulse: PulseOf | None = None
        self.replacements: Replacements | None = None
        """None: the actor cannot be replaced alone."""
        self.create: Callable[[], Any] | None = None
        """Creates another actor like it."""
        self._calls: list[RewardCall] = []
        self._lock = Lock()

    def ready(self) -> Pending:
        """Start the actor; returns the pending call, which returns its self-description."""
        return Pending(self.actor.ready.remote(), REWARD, "ready")

    def begin(
        self, key: str, step: int, items: Sequence[PromptItem], prompts: pa.RecordBatch, heldout: bool = False
    ) -> Callable[[ray.ObjectRef], None] | None:
        """Announce the batch `prompts` (PROMPTS of `items`), before it is sampled.

        Args:
            heldout: it is to be evaluated, not trained on.

        Returns:
            What is to be called with each part of its samples once it is complete; None: nothing.
        """
        return None

    def judge(self, key: str, step: int, prompts: pa.RecordBatch, samples: Sequence[ray.ObjectRef], **options: Any) -> dict[str, Any]:
        """Score a batch in the parts that `RolloutGroup.sample` returned; returns its counts. `options`: see `RewardActor.judge`."""
        counts: dict[str, Any] = self.finish(self._begin(RewardCall(key, "judge", (key, step, prompts, *samples), options)))
        return counts

    def pop_learner_batch(self, key: str) -> ray.ObjectRef:
        """Take the `LearnerBatch` of everything judged under `key` from the reward actor."""
        call = self._begin(RewardCall(key, "pop_learner_batch", (key,), results=2))
        self.finish(call)
        return call.answers[1]

    def write_trajectories(self, key: str, path: Path) -> None:
        """Write what was judged under `key` as Parquet."""
        self.finish(self.begin_writing(key, path))

    def begin_writing(self, key: str, path: Path, trained: pa.Table | None = None) -> RewardCall:
        """Start `write_trajectories`; pass the result to `finish` later."""
        return self._begin(RewardCall(key, "write", (key, str(path), trained)))

    def finish(self, call: RewardCall) -> Any:
        """Wait for a call, by a new actor if need be, and return its first answer."""
        while True:
            answer = call.answers[0]
            try:
                found = wait_for("judge", [Pending(answer, REWARD, call.method)], self.run, self.pulse)[0]
            except ActorFailed as failure:
                self._replace(call, answer, failure)
                continue
            if call.method == "write":
                with self._lock:
                    self._calls = [one for one in self._calls if one.key != call.key]
            return found

    def _begin(self, call: RewardCall) -> RewardCall:
        with self._lock:
            self._calls.append(call)
            self._issue(call)
        return call

    def _issue(self, call: RewardCall) -> None:
        answers = getattr(self.actor, call.method).options(num_returns=call.results).remote(*call.arguments, **call.options)
        call.answers = answers if call.results > 1 else [answers]

    def _replace(self, call: RewardCall, answer: ray.ObjectRef, failure: ActorFailed) -> None:
        """Start a new actor and repeat the calls of all batches that are not written; another thread may have done so already."""
        with self._lock:
            if call.answers[0] is not answer:
                return
            replacements, create = self.replacements, self.create
            if replacements is None or create is None:
                raise failure

            def install() -> None:
                self.actor = create()

            batches = len({one.key for one in self._calls})
            remedy = f"a new one starts, and gets the samples of {batches} batch(es) again"
            replacements.replace(REWARD, self.actor, failure, remedy, install)
            try:
                replacements.await_new(REWARD, self.actor, self.run)
            except ActorFailed:
                self.replacements = None  # another thread that waits for the same actor does not try once more
                raise
            for one in self._calls:
                self._issue(one)
            replacements.recoveries.say(f"{REWARD} is back")
