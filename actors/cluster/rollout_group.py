"""The rollout engines as one: which engine samples what, and a new engine in the place of one that died or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.cluster.heartbeats import Pulse
from actors.cluster.replacement import Replacements, not_replaced
from actors.cluster.waiting import GRACE_S, TICK_S, ActorFailed, HasPulse, Pending, fetch, wait, wait_for
from rlsys.config.schema import Run
from rlsys.system.supervision import LIVE, UP, Assignment, Dispatch, State, Supervisor


def engine_names(count: int, kind: str = "rollout") -> list[str]:
    """Names of `count` engines, which those of the policy and of its judge must not share."""
    return [f"{kind}-{i}" for i in range(count)]


class RolloutGroup:
    """All rollout engines as one (`actors.rollout.rollout.RolloutActor`). Every wait is bounded by `run.timeouts_s`.

    An engine that dies or hangs is replaced while the others take over its work, if `replacements` is set. The new one samples only
    after an update of the weights (`Actors.send_weights`). One thread at a time may sample or send weights.

    Args:
        max_num_seqs: sequences that one engine decodes concurrently.
        sleeps: engines release their memory while learners train.
        kind: what their names begin with.
    """

    def __init__(self, actors: Sequence[Any], run: Run, max_num_seqs: int, sleeps: bool = False, kind: str = "rollout"):
        self.engines = dict(zip(engine_names(len(actors), kind), actors, strict=True))
        self.run, self.max_num_seqs, self.sleeps = run, max_num_seqs, sleeps
        self.pulse: Pulse | None = None
        self.supervisor = Supervisor(list(self.engines))
        self.replacements: Replacements | None = None
        """None: an engine cannot be replaced alone."""
        self.create: Callable[[str], Any] | None = None
        """Creates an engine of this name in its place."""
        self.refresh: Callable[[], None] | None = None
        """Called during sampling where no engine is left: gives the current weights to new ones. None: learners may be training."""
        self.fixed_weights = False
        """Whether the weights never change, so that a new engine samples as soon as it is up."""
        self.changed = False
        """Whether the engines that are up are others than those that the learners are connected to."""
        self._starting: dict[str, tuple[Pending, float]] = {}

    @property
    def names(self) -> list[str]:
        return list(self.engines)

    @property
    def actors(self) -> list[Any]:
        """The engines' handles, in the order of `names`."""
        return list(self.engines.values())

    @property
    def starting(self) -> list[Any]:
        """Handles of new engines that are not up yet."""
        return [self.engines[name] for name in self._starting]

    def ready(self) -> list[Pending]:
        """Start the engines; returns the pending calls, which return their self-descriptions."""
        return [Pending(actor.ready.remote(), name, "ready") for name, actor in self.engines.items()]

    def sleep(self) -> None:
        """Let the engines release their memory (if `sleeps`); call it before learners train. Sending weights wakes the engines.

        A new engine that has not joined yet stays as it is.
        """
        if self.sleeps:
            calls = [Pending(self.engines[name].sleep.remote(), name, "sleep") for name in self.supervisor.names(*LIVE)]
            wait_for("weights", calls, self.run, self._pulse())

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

        Which engine gets which share is decided by `rlsys.system.supervision.Dispatch`. The shares of an engine that is lost are sampled
        again by others, with the same seeds.
        """
        # A share counts until its last sample is done; twice the concurrent sequences keep an engine full meanwhile.
        dispatch = Dispatch(self.supervisor, shares, lambda prompts: len(prompts["seeds"].flatten()), 2 * self.max_num_seqs)
        calls: dict[ray.ObjectRef, tuple[Assignment[pa.RecordBatch], ray.ObjectRef]] = {}
        finished: SimpleQueue[ray.ObjectRef] = SimpleQueue()
        timeout_s = self.run.timeout_s("sample")
        while True:
            if self.fixed_weights and self._starting:
                self.join()
            while (given := dispatch.assign()) is not None:
                receipt, samples = self.engines[given.engine].sample.remote(given.share, temperature, top_p, max_tokens, min_tokens)
                calls[receipt] = given, samples
                # A callback for each share: ray.wait would examine everything in flight each time.
                receipt.future().add_done_callback(lambda _, receipt=receipt: finished.put(receipt))
            try:
                if dispatch.in_flight:
                    receipt = self._next_finished(finished, timeout_s, dispatch.in_flight)
                elif not dispatch.has_more():
                    return
                else:
                    self._await_engine()
                    continue
                given, samples = calls.pop(receipt)
                if given in dispatch.in_flight:
                    fetch(Pending(receipt, given.engine, "generate"), timeout_s)
            except ActorFailed as failure:
                self._lose(failure, dispatch)
                continue
            if dispatch.finish(given):
                yield given.number, samples

    def _next_finished(
        self, finished: SimpleQueue[ray.ObjectRef], timeout_s: float, in_flight: Iterable[Assignment[pa.RecordBatch]]
    ) -> ray.ObjectRef:
        """Wait for the next share that is done, or failed; the engines' heartbeats are checked meanwhile."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._listen()
            with suppress(Empty):
                return finished.get(timeout=left if self.pulse is None else min(left, TICK_S))
        late = ", ".join(sorted({share.engine for share in in_flight}))
        message = f"no samples within {timeout_s:.0f} s from {late}. Raise run.timeouts_s.sample if it is only slow."
        raise ActorFailed(message, recoverable=True)

    # --- replacement ---------------------------------------------------------------------------------------------------

    def muster(self) -> list[str]:
        """Return the engines that are up, for an update of their weights, after a look whether they live.

        New engines that have started are among them. If no other is left, waits for one, as long as an engine may take to start.

        Raises:
            ActorFailed: an engine died or hangs and cannot be replaced alone, or a new one did not start.
        """
        if self.replacements is not None:
            self._examine()
            self._take_in()
        if not (names := self.supervisor.names(*UP)):
            raise ActorFailed("no rollout engine is left.", recoverable=True)
        return names

    def updated(self, version: int, names: Sequence[str]) -> None:
        """All of `names` have the weights of `version` now."""
        back = [name for name in names if self.supervisor.state(name) is State.STALE]
        self.supervisor.updated(version, names)
        if self.replacements is not None:
            for name in back:
                weights = "" if self.fixed_weights else f", with the weights of version {version}"
                self.replacements.recoveries.say(f"{name} is back{weights}")

    def replace_by(self, replacements: Replacements) -> None:
        """Let engines be replaced alone whose weights never change."""
        self.replacements, self.fixed_weights, self.refresh = replacements, True, self.join

    def join(self) -> None:
        """Let new engines that are up sample, as they have loaded the only weights that there are; wait for one if no other is up."""
        self._take_in()
        self.updated(self.supervisor.version, self.supervisor.names(*UP))

    def _pulse(self) -> HasPulse | None:
        return self.pulse.of(self.names) if self.pulse is not None else None

    def _listen(self) -> None:
        """Note which engines are silent. Raises ActorFailed if one was for too long."""
        if self.pulse is None:
            return
        for name, seconds in self.pulse.silence(self.supervisor.names(*LIVE)).items():
            silent = seconds > (self.pulse.limit_s or 0.0) / 2
            if silent and self.supervisor.state(name) is State.HEALTHY:
                self.supervisor.suspect(name)
            elif not silent and self.supervisor.state(name) is State.SUSPECT:
                self.supervisor.heard(name)
        self.pulse.check(self.names)

    def _examine(self) -> None:
        """Let new engines start in the place of those that have died or hang; a suspect is waited for until that is clear."""
        calls = {name: Pending(self.engines[name].engine_failure.remote(), name, "engine_failure") for name in self.supervisor.names(*LIVE)}
        while calls or self.supervisor.names(State.SUSPECT):
            try:
                for name, call in list(calls.items()):
                    if broken := wait_for("weights", [call], self.run, self._pulse())[0]:
                        raise ActorFailed(f"{name} failed: {broken}", recoverable=True, actor=name)
                    del calls[name]
                self._listen()
            except ActorFailed as failure:
                self._lose(failure)
                calls.pop(str(failure.actor), None)
            if self.supervisor.names(State.SUSPECT):
                time.sleep(TICK_S)

    def _lose(self, failure: ActorFailed, dispatch: Dispatch[pa.RecordBatch] | None = None) -> None:
        """Let a new engine start in the place of the one that failed, and others take over its shares of `dispatch`.

        Raises:
            ActorFailed: that is not possible.
        """
        name, create = failure.actor, self.create
        if self.replacements is None or create is None or name not in self.supervisor.names(*LIVE):
            raise failure
        self.supervisor.died(name)
        alone = not self.supervisor.names(*LIVE)
        if alone and dispatch is not None and self.refresh is None:
            raise failure
        remedy = "a new one starts"
        if dispatch is not None and (samples := dispatch.lose(name)):
            remedy = f"its {samples} samples " + ("wait for the new one that starts" if alone else f"go to the other engines; {remedy}")

        def install() -> None:
            self.engines[name] = create(name)

        self.replacements.replace(name, self.engines[name], failure, remedy, install)
        self.supervisor.restarting(name)
        self._starting[name] = Pending(self.engines[name].ready.remote(), name, "ready"), time.monotonic() + self.run.timeout_s("start")
        self.changed = True

    def _await_engine(self) -> None:
        """Wait, while shares are left, for an engine that may sample them."""
        if self.supervisor.names(State.SUSPECT):
            time.sleep(TICK_S)
            self._listen()
        elif self.refresh is not None:
            self.refresh()
        else:
            raise ActorFailed("no rollout engine is left to sample.", recoverable=True)

    def _take_in(self) -> None:
        """Let new engines that have started join; wait for the first one if no other engine is up."""
        assert self.replacements is not None
        while self._starting:
            patient = not self.supervisor.names(*UP)
            done, _ = ray.wait([call.ref for call, _ in self._starting.values()], num_returns=1, timeout=TICK_S if patient else 0)
            for name, (call, deadline) in list(self._starting.items()):
                try:
                    if call.ref in done:
                        wait([call], GRACE_S)
                        self.replacements.pulse.watch({name: self.engines[name]})
                        self.supervisor.up(name)
                        del self._starting[name]
                        self.changed = True
                    elif time.monotonic() > deadline:
                        wait([call], 0.0, "run.timeouts_s.start")
                except ActorFailed as error:
                    raise not_replaced(name, error) from error
            if not done and not patient:
                return

    def _shares(self, prompts: pa.RecordBatch, small: bool = False) -> list[pa.RecordBatch]:
        """Split prompts so that about four shares fill an engine and, with enough prompts, every engine gets one.

        A single engine gets everything at once, unless `small`.
        """
        engines, rows = len(self.actors), prompts.num_rows
        group_size = len(prompts["seeds"].flatten()) // rows
        size = rows if engines == 1 and not small else min(max(1, self.max_num_seqs // (4 * group_size)), -(-rows // engines))
        # An Arrow slice is serialized with the whole table it was cut from; a copy of its rows is not.
        return [prompts.take(pa.array(np.arange(start, min(start + size, rows)))) for start in range(0, rows, size)]
