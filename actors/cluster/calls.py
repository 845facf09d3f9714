"""What the loop asks of the actors: sample, judge, hand over, train, write.

Batches stay in Ray's object store: the driver passes references on, and waits for the few numbers that come with each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from actors.cluster.waiting import ActorFailed, Pending, fetch, wait


class Share(NamedTuple):
    """Requests that an engine is sampling."""

    call: Pending
    engine: int
    samples: int
    number: int
    result: ray.ObjectRef


def rollout_names(count: int) -> list[str]:
    return [f"rollout-{i}" for i in range(count)]


def learner_names(count: int) -> list[str]:
    return [f"learner-{rank}" for rank in range(count)]


@dataclass
class Actors:
    """Handles of a run's actors, and what the loop asks of them. Every wait is bounded by `timeout_s`, in seconds."""

    rollouts: Sequence[Any]
    learners: Sequence[Any]
    reward: Any
    """None where nothing is judged for training."""
    timeout_s: float
    max_num_seqs: int
    """Sequences that one engine decodes side by side."""
    verify_weights: bool = False
    sleeps: bool = False
    """Engines give their memory back while learners train."""

    def __post_init__(self) -> None:
        self.rollout_names = rollout_names(len(self.rollouts))
        self.learner_names = learner_names(len(self.learners))

    def sample(
        self, requests: pa.RecordBatch, temperature: float, top_p: float, max_tokens: int, min_tokens: int = 0
    ) -> list[ray.ObjectRef]:
        """Sample every request (REQUESTS schema), min_tokens to max_tokens each.

        Returns:
            Parts (SAMPLES schema) that together are ordered as `requests`, and by sample.
        """
        parts = dict(self.stream(self._shares(requests), temperature, top_p, max_tokens, min_tokens))
        return [parts[number] for number in range(len(parts))]

    def stream(
        self, shares: Iterable[pa.RecordBatch], temperature: float, top_p: float, max_tokens: int, min_tokens: int = 0
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """Sample share after share (REQUESTS schema each); yields (number of the share, its SAMPLES) as they get done, in any order.

        A share goes to the engine with the fewest samples in flight. Each engine holds enough to be full, and what is left waits
        here for the first that has room, so that a slow engine gets fewer.
        """
        waiting = enumerate(shares)
        # A share counts until its last sample is done; twice what runs side by side keeps an engine full meanwhile.
        room = 2 * self.max_num_seqs
        load = [0] * len(self.rollouts)
        in_flight: dict[ray.ObjectRef, Share] = {}
        finished: SimpleQueue[ray.ObjectRef] = SimpleQueue()
        while True:
            while min(load) < room and (numbered := next(waiting, None)):
                number, asked = numbered
                engine = load.index(min(load))
                receipt, samples = self.rollouts[engine].sample.remote(asked, temperature, top_p, max_tokens, min_tokens)
                call = Pending(receipt, self.rollout_names[engine], "generate")
                in_flight[receipt] = Share(call, engine, len(asked["seeds"].flatten()), number, samples)
                load[engine] += in_flight[receipt].samples
                # Told one by one: ray.wait would look at everything in flight each time.
                receipt.future().add_done_callback(lambda _, receipt=receipt: finished.put(receipt))
            if not in_flight:
                return
            try:
                share = in_flight.pop(finished.get(timeout=self.timeout_s))
            except Empty:
                late = ", ".join(sorted({share.call.actor for share in in_flight.values()}))
                raise ActorFailed(
                    f"no samples within {self.timeout_s:.0f} s from {late}. Raise run.actor_timeout_s if it is only slow."
                ) from None
            fetch(share.call, self.timeout_s)
            load[share.engine] -= share.samples
            yield share.number, share.result

    def _shares(self, requests: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Some four of them fill an engine, and every engine gets one where there are prompts enough."""
        engines, rows = len(self.rollouts), requests.num_rows
        group_size = len(requests["seeds"].flatten()) // rows
        size = rows if engines == 1 else min(max(1, self.max_num_seqs // (4 * group_size)), -(-rows // engines))
        # An Arrow slice takes all of the table it was cut from along when it travels; a copy of its rows does not.
        return [requests.take(pa.array(np.arange(start, min(start + size, rows)))) for start in range(0, rows, size)]

    def judge(
        self, key: str, step: int, groups: pa.RecordBatch, samples: Sequence[ray.ObjectRef], **handed_over: Any
    ) -> dict[str, Any]:
        """Score a batch in the parts that `sample` gave; returns its counts. `handed_over`: `want` and `equal` of `RewardActor.judge`."""
        return self.finish(Pending(self.reward.judge.remote(key, step, groups, *samples, **handed_over), "reward", "judge"))

    def hand_over(self, key: str) -> ray.ObjectRef:
        """What the learner trains on of all that was judged under `key` (LEARNER schema)."""
        rows, batch = self.reward.hand_over.options(num_returns=2).remote(key)
        self.finish(Pending(rows, "reward", "hand_over"))
        return batch

    def write_trajectories(self, key: str, path: Path, trained: pa.Table | None = None) -> None:
        """Write what was judged under `key` as Parquet."""
        self.finish(self.begin_writing(key, path, trained))

    def begin_writing(self, key: str, path: Path, trained: pa.Table | None = None) -> Pending:
        """`write_trajectories`, to be waited for with `finish` once something else has been done meanwhile."""
        return Pending(self.reward.write.remote(key, str(path), trained), "reward", "write")

    def finish(self, call: Pending) -> Any:
        """The result of one call that is under way."""
        return wait([call], self.timeout_s)[0]

    def join_learners(self) -> list[Pending]:
        """Let the learner ranks find each other and load the model; what they then say of themselves, by rank, to be waited for."""
        host, port = self.finish(Pending(self.learners[0].address.remote(), self.learner_names[0], "address"))
        return self._learner_calls("setup", host, port)

    def learn(self, method: str, *args: Any) -> Any:
        """Call `method` on every rank; returns rank 0's answer. A large argument is given as a reference, stored once for all ranks."""
        return wait(self._learner_calls(method, *args), self.timeout_s)[0]

    def close(self) -> None:
        """Let engines and learners shut down in order, briefly; what does not answer is killed."""
        farewells = [actor.shutdown.remote() for actor in [*self.rollouts, *self.learners]]
        ray.wait(farewells, num_returns=len(farewells), timeout=15)
        for actor in [*self.rollouts, *self.learners, *([self.reward] if self.reward else [])]:
            ray.kill(actor)

    def sleep(self) -> None:
        """To be called before learners train: lets every engine give its memory back (`sleeps`). `send_weights` wakes them."""
        if self.sleeps:
            wait([Pending(actor.sleep.remote(), name, "sleep") for actor, name in zip(self.rollouts, self.rollout_names)], self.timeout_s)

    def send_weights(self, version: int) -> dict[str, Any]:
        """Bring the learners' weights to every engine, asleep or awake; the engines' samples carry `version` from then on."""
        return self.learn("send_weights", version, self.verify_weights)

    def _learner_calls(self, method: str, *args: Any) -> list[Pending]:
        return [
            Pending(getattr(actor, method).remote(*args), name, method)
            for actor, name in zip(self.learners, self.learner_names, strict=True)
        ]
