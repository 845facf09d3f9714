"""The reward actor, called as a plain object: judging a batch, what goes to the learner, and the table it leaves."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.reward import RewardActor
from rlsys.algorithms.grpo import LossInputs, group_advantages, grpo_loss
from rlsys.data.chain import LEARNER_ROWS, PROMPTS, SAMPLES
from rlsys.data.trajectories import REWARD_COLUMNS, REWARDS, TRAJECTORIES
from rlsys.evaluation import heldout
from rlsys.models.packing import plan_micro_batches
from rlsys.rewards.extraction import ScoreFormat, extract, score_range
from rlsys.rewards.rules import is_correct, unshuffle


def groups(*rows):
    """rows: (group, order, rewards)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "group": g,
                "prompt_id": f"p{g}",
                "family": "f",
                "order": order,
                "rewards": rewards,
                "prompt": "Q",
                "prompt_token_ids": [1, 2, g],
            }
            for g, order, rewards in rows
        ],
        schema=PROMPTS,
    )


def samples(*rows):
    """rows: (group, sample, text)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "group": g,
                "sample": s,
                "token_ids": [5, 6, 7],
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
    actor = RewardActor("reward")
    counts = actor.judge("k", 3, *BATCH)
    rows, learner = actor.pop_learner_batch("k")
    assert counts["reward_sum"] == pytest.approx(1 - 1 - 1 - 1)
    assert counts["parse_failures"] == {"no_box": 1}
    assert (counts["groups"], counts["groups_unequal"], counts["oldest_version"]) == (2, 1, 4)
    assert learner.rows.schema == LEARNER_ROWS and rows == 2
    assert learner.rows["group"].to_pylist() == [0, 0]  # group 1 is all wrong: it carries no advantage
    assert np.sign(learner.rows["advantage"].to_numpy()).tolist() == [1, -1]
    assert learner.prompts.to_pylist() == [{"group": 0, "prompt_token_ids": [1, 2, 0]}]


def test_a_released_judges_decimals_are_paid_and_kept_and_integers_stay_integers(tmp_path):
    asked, answered = groups((0, [1, 0], [1.0, 0.0])), samples((0, 0, r"\boxed{[8.25, 8.5]}"), (0, 1, r"\boxed{9, 8}"))
    for score_format, scores, kind in (
        (ScoreFormat("decimal"), [[8.5, 8.25], [8.0, 9.0]], pa.float64()),
        (ScoreFormat(), [None, [8, 9]], pa.int32()),
    ):
        actor = RewardActor("reward", score_format)
        actor.judge("k", 0, asked, answered)
        actor.write("k", str(tmp_path / "t.parquet"))
        table = pq.read_table(tmp_path / "t.parquet")
        assert table["scores"].to_pylist() == scores and table["scores"].type.value_type == kind
        assert table["correct"].to_pylist() == [scores[0] is not None, False]
        assert heldout.read(tmp_path / "t.parquet").samples == 2


def test_a_thought_that_the_prompt_began_and_a_text_that_was_cut_off_are_not_paid():
    asked, answered = groups((0, [0, 1], [1.0, 0.0])), samples((0, 0, r"\boxed{9, 3}"), (0, 1, r"no.</think> \boxed{9, 3}"))
    actor = RewardActor("reward", ScoreFormat(thought="<think>"))
    assert actor.judge("k", 0, asked, answered)["parse_failures"] == {"unfinished_thought": 1}
    cut = answered.set_column(answered.schema.get_field_index("finish_reason"), "finish_reason", pa.array(["length", "length"]))
    assert RewardActor("reward").judge("k", 0, asked, cut)["parse_failures"] == {"truncated": 2}


def test_no_more_groups_than_wanted_reach_the_learner():
    rewards = groups(*((g, [0, 1], [1.0, 0.0]) for g in range(3)))
    answers = samples(*((g, s, r"\boxed{9, 1}" if s else r"\boxed{1, 9}") for g in range(3) for s in range(2)))
    actor = RewardActor("reward")
    counts = actor.judge("k", 0, rewards, answers, want=2)
    _, learner = actor.pop_learner_batch("k")
    assert (counts["groups_unequal"], counts["groups_trained"]) == (3, 2)
    assert sorted(set(learner.rows["group"].to_pylist())) == [0, 1]


RIGHT, WRONG = r"\boxed{9, 1}", r"\boxed{1, 9}"


def published_gradient(rewards, beta, logprob, reference):
    """DeepSeekMath, Eq. 3 and 4, read off: a mean over all groups, of a mean over their samples, of a mean over their tokens."""
    logprob = logprob.clone().requires_grad_()
    objective = 0.0
    for group, paid in enumerate(rewards):
        std = paid.std()
        for sample, reward in enumerate(paid):
            advantage = 0.0 if std == 0 else (reward - paid.mean()) / std
            for token in range(logprob.shape[-1]):
                new, old = logprob[group, sample, token], logprob[group, sample, token].detach()
                ratio, d = torch.exp(new - old), reference[group, sample, token] - new
                term = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) - beta * (torch.exp(d) - d - 1)
                objective = objective + term / (len(rewards) * len(paid) * logprob.shape[-1])
    (-objective).backward()
    return logprob.grad


@pytest.mark.parametrize(
    ("equal_groups", "beta", "scale"),
    [("train", 0.08, 1.0), ("train", 0.0, 1.0), ("count", 0.0, 1.0), ("drop", 0.0, 5 / 2)],  # 2 of 5 groups carry an advantage
)
def test_the_gradient_beside_the_published_objectives(equal_groups, beta, scale):
    texts = [[RIGHT, WRONG, RIGHT], [RIGHT] * 3, [WRONG] * 3, [WRONG, WRONG, RIGHT], [RIGHT] * 3]
    actor = RewardActor("reward")
    asked = groups(*((g, [0, 1], [1.0, 0.0]) for g in range(5)))
    answers = samples(*((g, s, texts[g][s]) for g in range(5) for s in range(3)))
    counts = actor.judge("k", 0, asked, answers, want=5, equal=equal_groups == "train")
    _, learner = actor.pop_learner_batch("k")
    generator = torch.Generator().manual_seed(0)
    logprob, reference = -torch.rand(2, 5, 3, 3, dtype=torch.float64, generator=generator) - 0.1

    ours = torch.zeros_like(logprob)
    rows = list(zip(learner.rows["group"].to_pylist(), learner.rows["sample"].to_pylist()))
    total_samples = None if equal_groups == "drop" else counts["samples"]
    for part in (part for rank in plan_micro_batches(learner, world_size=2, token_budget=16, total_samples=total_samples) for part in rank):
        of = [rows[row] for row in part.sample.tolist()]
        chosen, frozen = (torch.cat([values[place] for place in dict.fromkeys(of)] or [torch.empty(0)]) for values in (logprob, reference))
        chosen.requires_grad_()
        loss, _ = grpo_loss(
            LossInputs(
                logprob=chosen,
                rollout_logprob=part.rollout_logprob,
                advantage=part.advantage,
                weight=part.weight,
                reference_logprob=frozen,
                beta=beta,
                importance_cap=None,  # the published objective knows one policy that samples
            )
        )
        loss.backward()
        for number, place in enumerate(dict.fromkeys(of)):
            ours[place] = chosen.grad[3 * number : 3 * number + 3]

    paid = [torch.tensor([1.0 if text == RIGHT else -1.0 for text in row], dtype=torch.float64) for row in texts]
    expected = scale * published_gradient(paid, beta, logprob, reference)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert counts["groups_unequal"] == 2 and counts["groups_trained"] == (5 if equal_groups == "train" else 2)


def test_the_table_of_a_step_holds_every_sample_and_what_training_added(tmp_path):
    actor = RewardActor("reward")
    actor.judge("step 3", 3, *BATCH)
    actor.judge("heldout", 0, *BATCH)  # another batch in between stays apart
    actor.pop_learner_batch("step 3")
    trained = pa.table({"group": [0, 0], "sample": [1, 0], "trainer_logprob": [-2.2, -2.1], "reference_logprob": [-2.3, -2.4]})
    actor.write("step 3", str(tmp_path / "t.parquet"), trained)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == TRAJECTORIES.names and table.num_rows == 4
    assert table["trainer_logprob"].to_pylist() == pytest.approx([-2.1, -2.2, None, None], nan_ok=True)
    assert table["scores"].to_pylist() == [[9, 2], [2, 9], None, [8, 8]]  # in the record's own order
    assert table["rollout_logprob"].to_pylist() == [-2.0] * 4
    assert table["weight_version"].to_pylist() == [4] * 4


def a_random_batch(rng, first_group=0, size=3):
    """Seven groups of 1, 2 or 4 responses; texts right, wrong and malformed; lists of any length, empty ones included."""
    asked = []
    for group in range(first_group, first_group + 7):
        n = rng.choice((1, 2, 4))
        rewards = [float(rng.random() < 0.5)] if n == 1 else rng.sample([0.1, 0.2, 0.3, 0.9], n)
        tokens = [rng.randrange(99) for _ in range(rng.randrange(1, 5))]
        asked.append(
            {
                "group": group,
                "prompt_id": f"p{group}",
                "family": "f",
                "order": rng.sample(range(n), n),
                "rewards": rewards,
                "prompt": f"Q{group}",
                "prompt_token_ids": tokens,
            }
        )
    answered = []
    for row in asked:
        for sample in range(size):
            scores = ", ".join(str(rng.randrange(11)) for _ in row["order"])
            length = rng.randrange(4)
            answered.append(
                {
                    "group": row["group"],
                    "sample": sample,
                    "token_ids": [rng.randrange(99) for _ in range(length)],
                    "logprobs": [-rng.random() for _ in range(length)],
                    "text": rng.choice([f"\\boxed{{{scores}}}", f"\\boxed{{{scores}}}", "nothing", f"\\boxed{{{scores}, x}}"]),
                    "finish_reason": rng.choice(["stop", "length"]),
                    "weight_version": rng.randrange(3),
                }
            )
    return asked, answered


@pytest.mark.parametrize("seed", range(8))
def test_a_judged_batch_equals_what_one_gets_row_by_row(seed, tmp_path):
    rng, actor, size = random.Random(seed), RewardActor("reward"), 3
    expected, handed, totals = [], [], []
    for first_group in (0, 7):  # a step and its refill, in parts as engines give them
        asked, answered = a_random_batch(rng, first_group, size)
        schema = pa.RecordBatch.from_pylist(answered, schema=SAMPLES)
        parts = [schema.slice(0, 5), schema.slice(5, 9), schema.slice(14)]
        totals.append(actor.judge("k", 4, pa.RecordBatch.from_pylist(asked, schema=PROMPTS), *parts))
        of_group = {row["group"]: row for row in asked}
        rewards = []
        for row in answered:
            truth = of_group[row["group"]]
            shown, failure = extract(row["text"], len(truth["order"]), *score_range(len(truth["order"])))
            if shown is not None and row["finish_reason"] == "length":
                shown, failure = None, "truncated"
            scores = None if shown is None else list(unshuffle(shown, truth["order"]))
            correct = scores is not None and is_correct(scores, truth["rewards"])
            rewards.append(1.0 if correct else -1.0)
            mean = sum(row["logprobs"]) / len(row["logprobs"]) if row["logprobs"] else None
            expected.append(
                {
                    "step": 4,
                    **{name: row[name] for name in ("group", "sample", "text", "finish_reason", "weight_version")},
                    **{name: truth.get(name) for name in ("prompt_id", "source", "family", "order", "prompt")},
                    "ground_truth": truth["rewards"],
                    "scores": scores,
                    "parse_failure": failure,
                    "correct": correct,
                    "reward": rewards[-1],
                    "prompt_token_count": len(truth["prompt_token_ids"]),
                    "token_count": len(row["token_ids"]),
                    "rollout_logprob": mean,
                    "trainer_logprob": None,
                    "reference_logprob": None,
                }
            )
        advantages = group_advantages(torch.tensor(rewards).reshape(-1, size)).flatten().tolist()
        for row, wanted, advantage in zip(answered, expected[-len(answered) :], advantages, strict=True):
            wanted["advantage"] = advantage
            if advantage:
                wanted["trainer_logprob"] = -0.5 * len(handed)
                handed.append((row["group"], of_group[row["group"]]["prompt_token_ids"], row["token_ids"], advantage))
        assert totals[-1]["reward_sum"] == sum(rewards) and totals[-1]["samples"] == len(rewards)
        assert totals[-1]["truncated"] == sum(row["finish_reason"] == "length" for row in answered)
        assert totals[-1]["tokens"] == sum(len(row["token_ids"]) for row in answered)
        assert totals[-1]["oldest_version"] == min(row["weight_version"] for row in answered)
        found = [wanted["parse_failure"] for wanted in expected[-len(answered) :] if wanted["parse_failure"]]
        assert totals[-1]["parse_failures"] == {reason: found.count(reason) for reason in found}

    rows, learner = actor.pop_learner_batch("k")
    assert rows == len(handed)
    for (group, prompt, tokens, advantage), one in zip(handed, learner.to_pylist(), strict=True):
        assert (one["group"], one["prompt_token_ids"], one["token_ids"]) == (group, prompt, tokens)
        assert one["advantage"] == pytest.approx(advantage)
    assert learner.prompts["group"].to_pylist() == sorted({group for group, *_ in handed}), "each prompt once"
    keys = {name: learner.rows[name] for name in ("group", "sample")}
    trained = pa.table(keys | {"trainer_logprob": [-0.5 * i for i in range(rows)], "reference_logprob": pa.nulls(rows, pa.float32())})
    actor.write("k", str(tmp_path / "t.parquet"), trained.take(pa.array(rng.sample(range(rows), rows), pa.int64())))
    assert not actor.tables and not actor.popped
    for row, wanted in zip(pq.read_table(tmp_path / "t.parquet").to_pylist(), expected, strict=True):
        floats = {name: wanted.pop(name) for name in ("advantage", "rollout_logprob", "trainer_logprob")}
        assert {name: row.pop(name) for name in floats} == pytest.approx(floats)
        assert row == wanted


def test_samples_that_are_not_those_of_the_groups_are_an_error():
    asked, answered = BATCH
    for wrong in (answered.slice(0, 3), answered.take(pa.array([0, 1, 2, 2])), answered.slice(0, 0)):
        with pytest.raises(ValueError, match=r"reward: k: \d samples for 2 groups: expected the same number for every group"):
            RewardActor("reward").judge("k", 0, asked, wrong)


@pytest.mark.parametrize("keys", [[0], [0, 0], [0, 7], [0, 1, 2]])
def test_a_training_result_of_other_rows_is_an_error(keys, tmp_path):
    actor = RewardActor("reward")
    actor.judge("k", 0, *BATCH)
    actor.pop_learner_batch("k")
    count = len(keys)
    trained = pa.table({"group": [0] * count, "sample": keys, "trainer_logprob": [0.0] * count, "reference_logprob": [0.0] * count})
    with pytest.raises(ValueError, match=f"{count} trained rows, expected the 2 of the learner batch"):
        actor.write("k", str(tmp_path / "t.parquet"), trained)


def test_samples_in_any_order_are_judged_by_their_key():
    asked, answered = BATCH
    tables = []
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        actor = RewardActor("reward")
        actor.judge("k", 0, asked, answered.take(pa.array(order)))
        tables.append((actor.tables["k"][0], actor.pop_learner_batch("k")[1].rows))
    assert tables[0] == tables[1]


def given(*rewards):
    """REWARDS of BATCH's four samples, in reverse order."""
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    rows = [{"group": g, "sample": s, "reward": reward, "gold": reward == 3, "judge_score": 5.0} for (g, s), reward in zip(keys, rewards)]
    return pa.Table.from_pylist(rows[::-1], schema=REWARDS)


def test_rewards_found_elsewhere_take_the_place_of_the_rules(tmp_path):
    actor = RewardActor("reward")
    counts = actor.judge("k", 3, *BATCH, given=given(3.0, 1.5, 2.0, 2.0))
    assert (counts["reward_sum"], counts["rewarded"], counts["groups_unequal"], counts["groups_trained"]) == (8.5, 4, 1, 1)
    assert counts["parse_failures"] == {} and counts["sources"] == [(None, 2.25), (None, 2.0)]
    _, learner = actor.pop_learner_batch("k")
    assert learner.rows["group"].to_pylist() == [0, 0]
    assert np.allclose(learner.rows["advantage"], group_advantages(torch.tensor([3.0, 1.5])))
    actor.write("k", str(tmp_path / "t.parquet"))
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == [*TRAJECTORIES.names, *REWARD_COLUMNS.names]
    assert table["reward"].to_pylist() == [3.0, 1.5, 2.0, 2.0] and table["correct"].to_pylist() == [True, False, False, False]
    assert table["scores"].null_count == table["order"].null_count == 4


def test_a_group_without_rewards_is_never_trained_on(tmp_path):
    for equal in (False, True):
        actor = RewardActor("reward")
        counts = actor.judge("k", 3, *BATCH, given=given(None, None, 2.0, 3.0), equal=equal)
        assert (counts["groups"], counts["groups_trained"], counts["rewarded"], counts["reward_sum"]) == (2, 1, 2, 5.0)
        _, learner = actor.pop_learner_batch("k")
        assert learner.rows["group"].to_pylist() == [1, 1]
        actor.write("k", str(tmp_path / "t.parquet"))
        assert pq.read_table(tmp_path / "t.parquet")["reward"].to_pylist() == [None, None, 2.0, 3.0]


def test_rewards_of_other_samples_or_of_half_a_group_are_refused():
    with pytest.raises(ValueError, match="3 rewards for 4 samples"):
        RewardActor("reward").judge("k", 0, *BATCH, given=given(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="only some samples have a reward"):
        RewardActor("reward").judge("k", 0, *BATCH, given=given(1.0, None, 3.0, 1.0))
