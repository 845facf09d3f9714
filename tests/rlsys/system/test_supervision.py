"""Every interleaving of engines that finish, die, hang and come back with batches, weight updates and resumes keeps the promises of a run.

Under test are the real supervisor and dispatch (`rlsys.system.supervision`) and the real admission of batches (`actors.loops.admission`),
with its thread. The engines, and the weights that they hold, are a separate record of this test.
"""

from __future__ import annotations

import threading
from contextlib import closing
from queue import SimpleQueue

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from actors.loops.admission import admit
from rlsys.system.supervision import LIVE, NEXT, UP, Dispatch, IllegalTransition, State, Supervisor

STEPS, SHARES = 5, 4
PATIENCE_S = 60
"""Longest wait for another thread: only broken code ever waits that long."""


def prompts_of(step):
    return [f"step {step}, prompt {number}" for number in range(SHARES)]


class Attempt:
    """The driver's two threads, from a start of all actors to the next one. Each waits where it would call actors."""

    def __init__(self, engines, version, first, staleness):
        self.supervisor = Supervisor(engines, version)
        self.began, self.sampled, self.taken, self.trained = SimpleQueue(), SimpleQueue(), SimpleQueue(), SimpleQueue()
        threading.Thread(target=self._train, args=(first, staleness), daemon=True).start()

    def _collect(self, step):
        dispatch = Dispatch(self.supervisor, prompts_of(step), lambda _: 2, 4)
        self.began.put((step, dispatch))
        batch = self.sampled.get(timeout=PATIENCE_S)
        if batch is None:
            raise RuntimeError("abandoned")
        return batch

    def _train(self, first, staleness):
        try:
            with closing(admit(self._collect, first, STEPS, staleness)) as batches:
                for batch in batches:
                    self.taken.put(batch)
                    if not self.trained.get(timeout=PATIENCE_S):
                        return
        except RuntimeError as error:
            assert str(error) == "abandoned"

    def abandon(self):
        self.sampled.put(None)
        self.trained.put(False)


class Run(RuleBasedStateMachine):
    """A run of STEPS steps. `weights` are what each engine really has: None after a start, as no update has reached it."""

    @initialize(engines=st.integers(1, 3), staleness=st.integers(0, 2))
    def start(self, engines, staleness):
        self.engines, self.staleness = [f"rollout-{i}" for i in range(engines)], staleness
        self.saved, self.history = (0, 0), []
        self._begin(0, 0)

    def _begin(self, trained, version):
        self.trained, self.collected, self.version = trained, trained, version
        self.weights = dict.fromkeys(self.engines, version)
        self.flying, self.batch, self.step, self.dispatch, self.results = [], None, None, None, {}
        self.attempt = Attempt(self.engines, version, trained + 1, self.staleness)
        self._settle()

    def _settle(self):
        """Wait for what the driver's threads must do next, and check that they do no more."""
        following = self.collected + 1
        if self.dispatch is None and following <= min(STEPS, self.trained + 1 + self.staleness):
            self.step, self.dispatch = self.attempt.began.get(timeout=PATIENCE_S)
            self.results = {}
            assert self.step == following
        if self.batch is None and self.collected > self.trained:
            self.batch = self.attempt.taken.get(timeout=PATIENCE_S)
        assert self.attempt.began.empty() and self.attempt.taken.empty()

    def _pick(self, data, *states):
        return data.draw(st.sampled_from(self.attempt.supervisor.names(*states)))

    def _any(self, *states):
        return bool(self.attempt.supervisor.names(*states))

    # --- engines -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.dispatch is not None)
    @rule()
    def assign(self):
        while (given := self.dispatch.assign()) is not None:
            assert self.attempt.supervisor.state(given.engine) is State.HEALTHY
            assert self.weights[given.engine] == self.version, "an engine serves weights other than the current ones"
            self.flying.append((self.dispatch, given, self.weights[given.engine]))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data):
        """In any order; also of an engine that counts as dead, and of a batch that others have finished."""
        dispatch, given, version = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if dispatch.finish(given):
            assert dispatch is self.dispatch and given.number not in self.results
            self.results[given.number] = (given.share, version)
            if not dispatch.in_flight and not dispatch.has_more():
                self._end_batch()

    def _end_batch(self):
        self.attempt.sampled.put([self.results[number] for number in sorted(self.results)])
        self.collected, self.dispatch = self.step, None
        self._settle()

    @precondition(lambda self: self._any(State.HEALTHY))
    @rule(data=st.data())
    def silent(self, data):
        self.attempt.supervisor.suspect(self._pick(data, State.HEALTHY))

    @precondition(lambda self: self._any(State.SUSPECT))
    @rule(data=st.data())
    def heard(self, data):
        self.attempt.supervisor.heard(self._pick(data, State.SUSPECT))

    @precondition(lambda self: self._any(*LIVE, State.RESTARTING, State.STALE))
    @rule(data=st.data())
    def die(self, data):
        name = self._pick(data, *LIVE, State.RESTARTING, State.STALE)
        self.attempt.supervisor.died(name)
        if self.dispatch is not None:
            self.dispatch.lose(name)

    @precondition(lambda self: self._any(State.DEAD))
    @rule(data=st.data())
    def restart(self, data):
        name = self._pick(data, State.DEAD)
        self.attempt.supervisor.restarting(name)
        self.weights[name] = None

    @precondition(lambda self: self._any(State.RESTARTING))
    @rule(data=st.data())
    def come_up(self, data):
        self.attempt.supervisor.up(self._pick(data, State.RESTARTING))

    # --- the loop ------------------------------------------------------------------------------------------------

    def _send(self, version):
        names = self.attempt.supervisor.names(*UP)
        self.attempt.supervisor.updated(version, names)
        self.version = version
        self.weights.update(dict.fromkeys(names, version))

    # No batch is being sampled while weights are sent.
    @precondition(lambda self: self.batch is not None and self.dispatch is None and self._any(*UP))
    @rule()
    def train_and_update(self):
        prompts, versions = zip(*self.batch)
        assert list(prompts) == prompts_of(self.trained + 1), "a prompt is lost, doubled, or out of its place"
        assert self.version - min(versions) <= self.staleness
        self.history = [*self.history[: self.trained], prompts]
        self.batch, self.trained = None, self.trained + 1
        self._send(self.version + 1)
        self.attempt.trained.put(True)
        self._settle()

    @precondition(lambda self: self.staleness == 0 and self.dispatch is not None and not self._any(*LIVE) and self._any(State.STALE))
    @rule()
    def refresh(self):
        """Where no engine is left and learners are idle, new ones get the current weights in the middle of a batch."""
        self._send(self.version)

    @rule()
    def save(self):
        self.saved = self.trained, self.version

    @rule()
    def start_all_anew(self):
        self.attempt.abandon()
        self._begin(*self.saved)

    def teardown(self):
        """Whatever state the run is in, it can be completed, with every prompt of every step trained on once."""
        if not hasattr(self, "attempt"):
            return
        try:
            while self.trained < STEPS:
                supervisor = self.attempt.supervisor
                for name in self.engines:
                    if supervisor.state(name) is State.SUSPECT:
                        supervisor.heard(name)
                    if supervisor.state(name) is State.DEAD:
                        supervisor.restarting(name)
                        self.weights[name] = None
                    if supervisor.state(name) is State.RESTARTING:
                        supervisor.up(name)
                if self.batch is not None and self.dispatch is None:
                    self.train_and_update()
                elif not supervisor.names(*LIVE) and self.staleness == 0:
                    self.refresh()
                elif not supervisor.names(*LIVE):
                    self.start_all_anew()
                else:
                    self.assign()
                    dispatch, given, version = self.flying.pop()
                    if dispatch.finish(given):
                        self.results[given.number] = (given.share, version)
                        if not dispatch.in_flight and not dispatch.has_more():
                            self._end_batch()
            assert self.history == [tuple(prompts_of(step)) for step in range(1, STEPS + 1)]
        finally:
            self.attempt.abandon()


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


EVENTS = {
    "suspect": {State.HEALTHY: State.SUSPECT},
    "heard": {State.SUSPECT: State.HEALTHY},
    "died": dict.fromkeys((State.HEALTHY, State.SUSPECT, State.RESTARTING, State.STALE), State.DEAD),
    "restarting": {State.DEAD: State.RESTARTING},
    "up": {State.RESTARTING: State.STALE},
}
WAY_TO = {
    State.HEALTHY: [],
    State.SUSPECT: ["suspect"],
    State.DEAD: ["died"],
    State.RESTARTING: ["died", "restarting"],
    State.STALE: ["died", "restarting", "up"],
}


def engine_in(state):
    supervisor = Supervisor(["rollout-0"])
    for event in WAY_TO.get(state, []):
        getattr(supervisor, event)("rollout-0")
    if state is State.RETIRED:
        supervisor.retire()
    assert supervisor.state("rollout-0") is state
    return supervisor


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS)
def test_an_event_leads_to_its_state_or_is_refused(state, event):
    supervisor = engine_in(state)
    if (expected := EVENTS[event].get(state)) is not None:
        getattr(supervisor, event)("rollout-0")
        assert supervisor.state("rollout-0") is expected and expected in NEXT[state]
    else:
        with pytest.raises(IllegalTransition, match=f"rollout-0: {state.value}, "):
            getattr(supervisor, event)("rollout-0")
        assert supervisor.state("rollout-0") is state


@pytest.mark.parametrize("state", State)
def test_weights_make_a_stale_engine_healthy_and_reach_none_that_is_down(state):
    supervisor = engine_in(state)
    if state in (State.DEAD, State.RESTARTING, State.RETIRED):
        with pytest.raises(IllegalTransition, match=f"{state.value}, cannot have received weights"):
            supervisor.updated(1, ["rollout-0"])
    else:
        supervisor.updated(1, ["rollout-0"])
        assert supervisor.state("rollout-0") is (State.SUSPECT if state is State.SUSPECT else State.HEALTHY)


def test_who_misses_an_update_is_stale_and_versions_never_fall():
    supervisor = Supervisor(["a", "b"], version=3)
    supervisor.updated(3, ["a"])  # the same again: b has them already
    assert supervisor.names(State.HEALTHY) == ["a", "b"]
    supervisor.updated(4, ["a"])
    assert (supervisor.names(State.HEALTHY), supervisor.names(State.STALE)) == (["a"], ["b"])
    with pytest.raises(IllegalTransition, match="version 3 after those of version 4"):
        supervisor.updated(3, ["a", "b"])


def test_shares_of_a_lost_engine_are_given_out_first_and_only_to_healthy_ones():
    supervisor = Supervisor(["a", "b"])
    dispatch = Dispatch(supervisor, ["p0", "p1", "p2", "p3"], lambda _: 1, 1)
    first, second = dispatch.assign(), dispatch.assign()
    assert [(one.number, one.engine) for one in (first, second)] == [(0, "a"), (1, "b")] and dispatch.assign() is None
    supervisor.died("a")
    assert dispatch.lose("a") == 1 and not dispatch.finish(first)
    assert dispatch.assign() is None  # b is full
    assert dispatch.finish(second)
    again = dispatch.assign()
    assert (again.number, again.share, again.engine) == (0, "p0", "b")
