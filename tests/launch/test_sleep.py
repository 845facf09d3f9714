"""A run whose engines sleep during training samples the same as one without: cold start, steps, evaluations, a resumed start."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq

from actors.cluster.calls import LearnerGroup
from actors.cluster.waiting import Pending
from actors.loops.rl import train
from rlsys.io.metrics import MetricsLog

NAMES = ["heldout_base", "heldout_cold_start", *(f"step_{step:06d}" for step in (1, 2, 3)), "heldout_rl"]
COLUMNS = ["prompt_id", "order", "prompt", "group", "sample", "weight_version"]


def test_engines_sleep_once_for_every_training_and_change_no_trajectory(straight_run, tiny, quiet, tiny_model, tmp_path, monkeypatch):
    """An engine's rounding depends on which requests happen to share a batch, so a sampled token may differ now and then."""
    awake, log = straight_run[0].run.dir, tmp_path / "logs/rollout-0.log"
    sleeps_before_join: list[int] = []
    join = LearnerGroup.join

    def joined(learners: LearnerGroup) -> list[Pending]:
        sleeps_before_join.append(log.read_text().count("seconds to fall asleep"))
        return join(learners)

    monkeypatch.setattr(LearnerGroup, "join", joined)
    for steps in (1, 3):
        train(tiny(tmp_path, tiny_model, "checkpoint.every=1", "rollout.sleep=true", f"rl.steps={steps}", "rl.eval_every=1"), quiet)
    # The engine's own log. On a GPU the memory comes and goes with these; on a CPU the states alone do.
    told = re.findall(r"seconds to (fall asleep|wake up tags \['\w+'\])", log.read_text())
    trained = sum(row["groups_trained"] > 0 for row in MetricsLog.read(tmp_path))
    assert trained > 0
    # At each start, the learners build their states where the engine's memory was; before the second one it had slept once per training.
    assert sleeps_before_join[0] == 1 and len(sleeps_before_join) == 2
    # Both starts sleep once, to compare answers, and the second one once more, to resume.
    assert told == (2 + 1 + 1 + trained) * ["fall asleep", "wake up tags ['weights']", "wake up tags ['kv_cache']"]
    same_text: list[bool] = []
    for name in NAMES:
        if not all(same_text):
            break  # What was sampled since then follows from the token that differs.
        one, other = (pq.read_table(folder / "trajectories" / f"{name}.parquet") for folder in (awake, tmp_path))
        assert one.select(COLUMNS) == other.select(COLUMNS)
        same_text += [mine == theirs for mine, theirs in zip(one["text"].to_pylist(), other["text"].to_pylist())]
    assert np.mean(same_text) > 0.8
