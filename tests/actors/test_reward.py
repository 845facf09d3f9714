"""The reward actor, called as a plain object: judging a batch, what goes to the learner, and the table it leaves."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.reward import RewardActor
from rlsys.trajectories import GROUPS, LEARNER, SAMPLES, TRAJECTORIES


def groups(*rows):
    """rows: (group, order, rewards)."""
    return pa.RecordBatch.from_pylist(
        [
            {"group": g, "prompt_id": f"p{g}", "family": "f", "order": order, "rewards": rewards, "prompt": "Q", "prompt_tokens": [1, 2, g]}
            for g, order, rewards in rows
        ],
        schema=GROUPS,
    )


def samples(*rows):
    """rows: (group, sample, text)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "group": g,
                "sample": s,
                "tokens": [5, 6, 7],
                "logprobs": [-1.0, -2.0, -3.0],
                "text": text,
                "finish_reason": "stop",
                "weight_version": 4,
            }
            for g, s, text in rows
        ],
        schema=SAMPLES,
    )


BATCH = (
    groups((0, [1, 0], [1.0, 0.0]), (1, [0, 1], [0.0, 1.0])),
    samples(
        (0, 0, r"Scores: \boxed{2, 9}"),  # shown reversed: the first response gets 9, which is right
        (0, 1, r"Scores: \boxed{9, 2}"),
        (1, 0, "no verdict"),
        (1, 1, r"Scores: \boxed{8, 8}"),  # a tie at the top is wrong
    ),
)


def test_rewards_advantages_and_counts():
    counts, learner = RewardActor("reward").judge("k", 3, *BATCH)
    assert counts["reward_sum"] == pytest.approx(1 - 1 - 1 - 1)
    assert counts["parse_failures"] == {"no_box": 1}
    assert (counts["groups"], counts["groups_unequal"], counts["oldest_version"]) == (2, 1, 4)
    assert learner.schema == LEARNER
    assert learner["group"].to_pylist() == [0, 0]  # group 1 is all wrong: it carries no advantage
    assert np.sign(learner["advantage"].to_numpy()).tolist() == [1, -1]
    assert learner["prompt_tokens"].to_pylist() == [[1, 2, 0]] * 2


def test_no_more_groups_than_wanted_reach_the_learner():
    rewards = groups(*((g, [0, 1], [1.0, 0.0]) for g in range(3)))
    answers = samples(*((g, s, r"\boxed{9, 1}" if s else r"\boxed{1, 9}") for g in range(3) for s in range(2)))
    counts, learner = RewardActor("reward").judge("k", 0, rewards, answers, 2)
    assert (counts["groups_unequal"], counts["groups_trained"]) == (3, 2)
    assert sorted(set(learner["group"].to_pylist())) == [0, 1]


def test_the_table_of_a_step_holds_every_sample_and_what_training_added(tmp_path):
    actor = RewardActor("reward")
    actor.judge("step 3", 3, *BATCH)
    actor.judge("heldout", 0, *BATCH)  # another batch in between stays apart
    trained = pa.table({"trainer_logprob": [-2.1, -2.2], "reference_logprob": [-2.3, -2.4]})
    actor.write("step 3", str(tmp_path / "t.parquet"), trained)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == TRAJECTORIES.names and table.num_rows == 4
    assert table["trainer_logprob"].to_pylist() == pytest.approx([-2.1, -2.2, None, None], nan_ok=True)
    assert table["scores"].to_pylist() == [[9, 2], [2, 9], None, [8, 8]]  # in the record's own order
    assert table["rollout_logprob"].to_pylist() == [-2.0] * 4
    assert table["weight_version"].to_pylist() == [4] * 4
