"""Overlap by admission: what may run beside what, and how old a batch can get. Real threads; the order of events, not the clock."""

from __future__ import annotations

import threading
from contextlib import closing
from types import SimpleNamespace

import pytest

from actors.loops.admission import admit
from actors.loops.rl import Job
from rlsys.config.files import load_config

PATIENCE_S = 30
"""Longest wait for another thread: only a broken loop ever waits that long."""


class Course:
    """A course of `steps` steps; collecting a batch notes the weight version that it begins with."""

    def __init__(self, steps: int):
        self.began = [threading.Event() for _ in range(steps + 1)]
        self.trained = 0
        self.version_at = {}
        self.open = []

    def collect(self, step: int) -> int:
        self.version_at[step] = self.trained
        self.open.append(step - self.trained)
        self.began[step].set()
        return step


STEPS = 6


@pytest.mark.parametrize("staleness", [0, 1, 2, 3, 9])
def test_batches_come_in_order_and_none_is_older_than_allowed(staleness):
    course, order = Course(STEPS), []
    with closing(admit(course.collect, 1, STEPS, staleness)) as batches:
        for step in batches:
            # While this one is being trained on, the ones ahead of it are collected, as far as staleness allows and no further.
            furthest = min(step + staleness, STEPS)
            assert course.began[furthest].wait(PATIENCE_S)
            assert not any(event.is_set() for event in course.began[furthest + 1 :])
            assert (step - 1) - course.version_at[step] <= staleness
            order.append(step)
            course.trained += 1
    assert order == list(range(1, STEPS + 1))
    # Admitted and not trained on: one more than staleness at most, and as many as that where there is time.
    assert max(course.open) == min(staleness + 1, STEPS)
    assert max(step - 1 - course.version_at[step] for step in order) == min(staleness, STEPS - 1)


def test_a_resumed_course_begins_at_its_first_step():
    course = Course(STEPS)
    course.trained = 3
    assert list(admit(course.collect, 4, STEPS, 1)) == [4, 5, 6]
    assert sorted(course.version_at) == [4, 5, 6]
    assert list(admit(course.collect, STEPS + 1, STEPS, 1)) == []


def test_a_batch_that_failed_fails_in_its_place():
    def collect(step: int) -> int:
        if step == 3:
            raise OSError("no data")
        return step

    done = []
    with pytest.raises(OSError, match="no data"), closing(admit(collect, 1, STEPS, 2)) as batches:
        for step in batches:
            done.append(step)
    assert done == [1, 2]


def test_when_training_fails_what_runs_is_left_alone_and_nothing_more_begins():
    """A signal may end the job in the middle of a long generation, which ends with its actors."""
    course, released, ended, done = Course(STEPS), threading.Event(), [], threading.Event()

    def collect(step: int) -> int:
        course.began[step].set()
        if step == 2:
            assert released.wait(PATIENCE_S)
        ended.append(step)
        if step == 2:
            done.set()
        return step

    with pytest.raises(RuntimeError, match="training failed"), closing(admit(collect, 1, STEPS, 2)) as batches:
        next(batches)
        assert course.began[2].wait(PATIENCE_S)
        raise RuntimeError("training failed")
    assert ended == [1]
    released.set()
    assert done.wait(PATIENCE_S) and ended == [1, 2]


def job(*overrides: str) -> tuple[Job, list[int]]:
    """Return a job without actors, and the weight versions that it sends."""
    sent: list[int] = []

    def send_weights(version: int) -> dict[str, int]:
        sent.append(version)
        return {"bytes": 0}

    actors = SimpleNamespace(learners=None, send_weights=send_weights)
    return Job(load_config(None, list(overrides)), None, None, None, actors), sent


def test_weights_wait_for_the_batch_in_generation_unless_in_flight_updates_are_on():
    drained, sent = job("rl.staleness=1")
    with drained.engines:  # as while a batch is being generated
        sending = threading.Thread(target=drained._send_weights)
        sending.start()
        assert sent == []
    sending.join(PATIENCE_S)
    assert sent == [1]

    in_flight, sent = job("rl.staleness=1", "rollout.in_flight_updates=true")
    with in_flight.engines:
        in_flight._send_weights()
        assert sent == [1]
