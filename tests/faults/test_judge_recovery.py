"""Processes of a running judge are killed; the judgements are those of an undisturbed one."""

import os
import signal

import psutil
import pytest
import ray
from random_scorer import build_random_scorer

from actors.loops.judge import running_judge
from rlsys.data.tasks import generate
from rlsys.judging.requests import judge_request

WAIT_S = 600


def process_of(actor):
    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=WAIT_S))


@pytest.fixture(scope="module")
def judging(straight_run, ray_session, tmp_path_factory):
    """`judging(console, faults)`: the rows of 12 judgements; faults: what is called with the running `Judges` after so many of them."""
    straight, _ = straight_run
    model = straight.run.dir / "checkpoints/cold_start/model"
    scorer = build_random_scorer(model, tmp_path_factory.mktemp("scorer"))
    # One request at a time: how others are batched with it would round its probabilities otherwise.
    rollout = straight.rollout.model_copy(update={"max_num_seqs": 1})
    config = straight.model_copy(update={"model": straight.model.model_copy(update={"path": str(model)}), "rollout": rollout})
    records = list(generate("heldout", 12, 0, responses=[2]))

    def judged(console, faults):
        rows = []
        with running_judge(config, console, str(scorer)) as judge:
            for number, result in enumerate(judge.answer((judge_request(record, 2, "test") for record in records), 1.0)):
                rows.append((result.record.id, result.row(text=True)))
                if number in faults:
                    faults[number](judge.judges)
        return rows

    return judged


def test_a_killed_engine_and_scorer_are_replaced_and_every_row_is_judged_once(judging, quiet, loud):
    def kill_engine(judges):
        process_of(judges.rollouts.actors[0]).children()[0].send_signal(signal.SIGKILL)

    def kill_scorer(judges):
        process_of(judges.scorer).send_signal(signal.SIGKILL)

    rows = judging(loud, {1: kill_engine, 6: kill_scorer})
    assert rows == judging(quiet, {})
    told = loud.file.getvalue()
    assert "rollout-0 failed in generate" in told and "samples wait for the new one that starts" in told and "rollout-0 is back" in told
    assert "scorer-0 died during score" in told and "a new one starts, and gets its samples again" in told and "scorer-0 is back" in told
