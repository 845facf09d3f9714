"""The driver of a run is killed again and again; the same command goes on, and the run equals an undisturbed one to the bit."""

import os
import random
import signal

import pytest

from launch.faults.disturbed import disturb
from launch.faults.injection import Fault
from launch.faults.runs import ResumedRun
from launch.faults.soak import prepare

KILLS = int(os.environ.get("RLSYS_KILLS", "20"))


@pytest.mark.nightly
def test_kills_of_the_driver_change_nothing(tmp_path):
    reference, arguments = prepare(tmp_path, 3 * KILLS, print)
    kills = [Fault("driver", signal.SIGKILL)] * KILLS
    outcome = disturb(ResumedRun(tmp_path / "killed", arguments, tmp_path), kills, print, random.Random(0), reference)
    assert len(outcome.faults) == KILLS and outcome.starts == KILLS + 1
    assert outcome.good, outcome
