"""Signals that ask a run to stop."""

import os
import signal
import time

import pytest

from rlsys.system.stopping import Stopped, StopSignals


@pytest.fixture
def lines():
    return []


@pytest.fixture
def stop(lines):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    with StopSignals(grace_s=0.2, say=lines.append) as stop:
        yield stop
    assert {number: signal.getsignal(number) for number in before} == before


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python runs the handler before its next instruction


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_step_ends_and_is_saved(stop, lines, number, status):
    with stop.steps():
        stop.raise_if_requested("step 1")
        send(number)
        assert stop.requested is number and lines[0].startswith(f"{number.name}: the current step ends and is saved")
        with pytest.raises(Stopped, match=rf"stopped by {number.name}; saved step 1\. The same command resumes") as stopped:
            stop.raise_if_requested("step 1")
    assert stopped.value.status == status


def test_a_step_that_outlasts_the_grace_period_is_not_saved(stop):
    with stop.steps():
        send(signal.SIGTERM)
        with pytest.raises(Stopped, match=r"did not end within 0\.2 s .* not saved") as stopped:
            time.sleep(60)
    assert stopped.value.status == 75


def test_the_grace_period_ends_with_the_step(stop):
    with pytest.raises(Stopped, match="saved step 1"), stop.steps():
        send(signal.SIGTERM)
        try:
            stop.raise_if_requested("step 1")
        finally:
            time.sleep(0.4)  # the actors end


def test_a_second_signal_stops_at_once(stop):
    with stop.steps():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    with pytest.raises(Stopped, match="nothing new was saved"):
        send(signal.SIGTERM)


def test_outside_of_steps_there_is_nothing_to_save(stop, lines):
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGTERM; nothing new was saved"):
        send(signal.SIGTERM)
    assert lines == [] and stop.requested is None
