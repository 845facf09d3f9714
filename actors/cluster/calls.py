"""The calls that the training loop makes to its actors: sample, judge, train, write, send weights.

Batches stay in Ray's object store: the driver passes references on and waits only for the few numbers that come with each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from actors.cluster.heartbeats import Pulse
from actors.cluster.waiting import TICK_S, ActorFailed, HasPulse, Pending, fetch, wait_for
from rlsys.config.schema import CallKind, Run
from rlsys.data.chain import PromptItem

SHUTDOWN_S = 15
"""Seconds that engines and learners have to shut down in order before they are killed."""


class InFlightShare(NamedTuple):
    """Requests that an engine is sampling."""

    call: Pending
    engine: int
    samples: int
    number: int
    result: ray.ObjectRef


def engine_names(count: int, kind: str = "rollout") -> list[str]:
    """Names of `count` engines, which those of the policy and of its judge must not share."""
    return [f"{kind}-{i}" for i in range(count)]


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
        self.names = [f"learner-{rank}" for rank in range(len(self.actors))]

    def join(self) -> list[Pending]:
        """Let the ranks connect to each other and load the model; returns the pending `setup` calls, by rank."""
        host, port = wait_for("start", [Pending(self.actors[0].address.remote(), self.names[0], "address")], self.run)[0]
        return self._begin("setup", host, port)

    def connect_rollouts(self, rollouts: Sequence[Any], backend: str, bucket_mib: int) -> None:
        self.call("start", "connect_rollouts", list(rollouts), backend, bucket_mib, self.run.timeout_s("weights"))

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
        return wait_for(kind, self._begin(method, *args), self.run, self.pulse)[0]

    def _begin(self, method: str, *args: Any) -> list[Pending]:
        return [Pending(getattr(actor, method).remote(*args), name, method) for actor, name in zip(self.actors, self.names, strict=True)]


class RolloutGroup:
    """All rollout engines as one (`actors.rollout.rollout.RolloutActor`). Every wait is bounded by `run.timeouts_s`.

    Args:
        max_num_seqs: sequences that one engine decodes concurrently.
        sleeps: engines release their memory while learners train.
        kind: what their names begin with.
    """

    def __init__(self, actors: Sequence[Any], run: Run, max_num_seqs: int, sleeps: bool = False, kind: str = "rollout"):
        self.actors, self.names = list(actors), engine_names(len(actors), kind)
        self.run, self.max_num_seqs, self.sleeps = run, max_num_seqs, sleeps
        self.pulse: HasPulse | None = None

    def ready(self) -> list[Pending]:
        """Start the engines; returns the pending calls, which return their self-descriptions."""
        return [Pending(actor.ready.remote(), name, "ready") for actor, name in zip(self.actors, self.names, strict=True)]

    def sleep(self) -> None:
        """Let every engine release its memory (if `sleeps`); call it before learners train. Sending weights wakes the engines."""
        if self.sleeps:
            calls = [Pending(actor.sleep.remote(), name, "sleep") for actor, name in zip(self.actors, self.names, strict=True)]
            wait_for("weights", calls, self.run, self.pulse)

    def sample(
        self,
        prompts: pa.RecordBatch,
        temperature: float,
        top_p: float,
        max_tokens: int,
        min_tokens: int = 0,
        watch: Callable[[ray.ObjectRef], None] | None = None,
    ) -> list[ray.ObjectRef]:
        """Sample every seed of `prompts` (PROMPTS), min_tokens to max_tokens each.

        Args:
            watch: called with each part as soon as it is complete; the parts are then small, whatever the number of engines.

        Returns:
            Parts (SAMPLES) that together are in the order of `prompts`, then of the sample.
        """
        parts: dict[int, ray.ObjectRef] = {}
        for number, part in self.stream(self._shares(prompts, watch is not None), temperature, top_p, max_tokens, min_tokens):
            parts[number] = part
            if watch is not None:
                watch(part)
        return [parts[number] for number in range(len(parts))]

    def stream(
        self, shares: Iterable[pa.RecordBatch], temperature: float, top_p: float, max_tokens: int, min_tokens: int = 0
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """Sample share after share (PROMPTS each); yields (number of the share, its SAMPLES) in order of completion.

        A share goes to the engine with the fewest samples in flight. Each engine holds enough to be full; the remaining shares wait
        here for the first engine with room, so a slow engine gets fewer.
        """
        waiting = enumerate(shares)
        # A share counts until its last sample is done; twice the concurrent sequences keep an engine full meanwhile.
        room = 2 * self.max_num_seqs
        load = [0] * len(self.actors)
        in_flight: dict[ray.ObjectRef, InFlightShare] = {}
        finished: SimpleQueue[ray.ObjectRef] = SimpleQueue()
        timeout_s = self.run.timeout_s("sample")
        while True:
            while min(load) < room and (numbered := next(waiting, None)):
                number, prompts = numbered
                engine = load.index(min(load))
                receipt, samples = self.actors[engine].sample.remote(prompts, temperature, top_p, max_tokens, min_tokens)
                call = Pending(receipt, self.names[engine], "generate")
                in_flight[receipt] = InFlightShare(call, engine, len(prompts["seeds"].flatten()), number, samples)
                load[engine] += in_flight[receipt].samples
                # A callback for each share: ray.wait would examine everything in flight each time.
                receipt.future().add_done_callback(lambda _, receipt=receipt: finished.put(receipt))
            if not in_flight:
                return
            share = in_flight.pop(self._next_finished(finished, timeout_s, in_flight.values()))
            fetch(share.call, timeout_s)
            load[share.engine] -= share.samples
            yield share.number, share.result

    def _next_finished(self, finished: SimpleQueue[ray.ObjectRef], timeout_s: float, shares: Iterable[InFlightShare]) -> ray.ObjectRef:
        """Wait for the next share that is done, or failed; the engines' heartbeats are checked meanwhile."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                return finished.get(timeout=left if self.pulse is None else min(left, TICK_S))
            if self.pulse is not None:
                self.pulse.check()
        late = ", ".join(sorted({share.call.actor for share in shares}))
        message = f"no samples within {timeout_s:.0f} s from {late}. Raise run.timeouts_s.sample if it is only slow."
        raise ActorFailed(message, recoverable=True)

    def _shares(self, prompts: pa.RecordBatch, small: bool = False) -> list[pa.RecordBatch]:
        """Split prompts so that about four shares fill an engine and, with enough prompts, every engine gets one.

        A single engine gets everything at once, unless `small`.
        """
        engines, rows = len(self.actors), prompts.num_rows
        group_size = len(prompts["seeds"].flatten()) // rows
        size = rows if engines == 1 and not small else min(max(1, self.max_num_seqs // (4 * group_size)), -(-rows // engines))
        # An Arrow slice is serialized with the whole table it was cut from; a copy of its rows is not.
        return [prompts.take(pa.array(np.arange(start, min(start + size, rows)))) for start in range(0, rows, size)]


class RewardClient:
    """What turns samples into rewards, and keeps them: the calls to the reward actor (`actors.reward.RewardActor`).

    The loop calls `begin` and `judge` for each batch, then `pop_learner_batch` and `begin_writing` for the step. Here the actor judges by
    the rules of the method; `actors.policy_rewards.PolicyRewards` lets a judge do it. Every wait is bounded by `run.timeouts_s`.
    """

    def __init__(self, actor: Any, run: Run):
        self.actor, self.run = actor, run
        self.pulse: HasPulse | None = None

    def ready(self) -> Pending:
        """Start the actor; returns the pending call, which returns its self-description."""
        return Pending(self.actor.ready.remote(), "reward", "ready")

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
        return self.finish(Pending(self.actor.judge.remote(key, step, prompts, *samples, **options), "reward", "judge"))

    def pop_learner_batch(self, key: str) -> ray.ObjectRef:
        """Take the `LearnerBatch` of everything judged under `key` from the reward actor."""
        rows, batch = self.actor.pop_learner_batch.options(num_returns=2).remote(key)
        self.finish(Pending(rows, "reward", "pop_learner_batch"))
        return batch

    def write_trajectories(self, key: str, path: Path) -> None:
        """Write what was judged under `key` as Parquet."""
        self.finish(self.begin_writing(key, path))

    def begin_writing(self, key: str, path: Path, trained: pa.Table | None = None) -> Pending:
        """Start `write_trajectories`; pass the result to `finish` later."""
        return Pending(self.actor.write.remote(key, str(path), trained), "reward", "write")

    def finish(self, call: Pending) -> Any:
        """Wait for one pending call and return its result."""
        return wait_for("judge", [call], self.run, self.pulse)[0]


@dataclass(frozen=True)
class Actors:
    """The actors that the RL loop calls."""

    rollouts: RolloutGroup
    learners: LearnerGroup
    reward: RewardClient

    def watch(self, pulse: Pulse) -> None:
        """Let `pulse` notice an actor that hangs, in every wait from now on."""
        rollouts, learners, reward = self.rollouts, self.learners, self.reward
        pulse.watch(
            dict(zip([*rollouts.names, *learners.names, "reward"], [*rollouts.actors, *learners.actors, reward.actor], strict=True))
        )
        rollouts.pulse = learners.pulse = reward.pulse = pulse


def end_actors(orderly: Sequence[Any], others: Sequence[Any] = ()) -> None:
    """Let the `orderly` actors shut down, briefly, then kill whatever is left, and the `others`; return once all have ended."""
    calls = [actor.shutdown.remote() for actor in orderly]
    ray.wait(calls, num_returns=len(calls), timeout=SHUTDOWN_S)
    for actor in [*orderly, *others]:
        ray.kill(actor)
    # A dead actor answers a call at once, with an error.
    gone = [actor.__ray_ready__.remote() for actor in [*orderly, *others]]
    ray.wait(gone, num_returns=len(gone), timeout=SHUTDOWN_S)
