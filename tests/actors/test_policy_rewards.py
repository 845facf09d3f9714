"""A policy's rewards on their way through the judge's thread, with stand-ins for Ray and the engines."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
from policy_groups import judgement

from actors import policy_rewards
from actors.cluster.reward_client import RewardClient
from actors.policy_rewards import PolicyRewards
from rlsys.config.files import load_config
from rlsys.data.chain import SAMPLES, PromptItem, prompt_batch
from rlsys.data.records import Record
from rlsys.judging.voting import find_strategy

CONFIG = load_config(None, ["judge.model=j", "judge.k=2", "judge.max_responses=2"])


class Judge:
    """Scores a response by its length; every judgement of a record in `mute` does not parse."""

    config, strategy = CONFIG, find_strategy("vote")

    def __init__(self, mute=(), error=None):
        self.mute, self.error = mute, error

    def answer(self, requests):
        for request in requests:
            if self.error:
                raise self.error
            muted = request.record.id.split("/")[0] in self.mute
            scores = None if muted else {text: len(text) for text in request.record.responses}
            yield judgement(request, *[scores] * len(request.orders))


@pytest.fixture
def rewards(monkeypatch, tmp_path):
    """`rewards(judge)`: the client, whose reward actor returns what it was given."""
    monkeypatch.setattr(policy_rewards, "fetch", lambda pending, timeout_s: pending.ref)
    monkeypatch.setattr(RewardClient, "judge", lambda self, key, step, prompts, samples, given, **options: {"given": given.to_pylist()})
    monkeypatch.setattr(RewardClient, "begin_writing", lambda self, key, path, trained=None: path)
    return lambda judge: PolicyRewards(RewardClient(None, CONFIG.run), CONFIG, judge)


def batch(*names):
    items = [PromptItem(Record(name, "s", ({"role": "user", "content": "Q?"},), (), ()), [], "Q?", [1]) for name in names]
    return items, prompt_batch(items)


def part(group, *texts):
    rows = [
        {"group": group, "sample": i, "token_ids": [5], "logprobs": [-1.0], "text": text, "finish_reason": "stop", "weight_version": 0}
        for i, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SAMPLES)


PARTS = [part(1, "a", "bbb", "a"), part(0, "cc", "d", "eeee")]


def test_parts_are_judged_as_they_come_and_rewarded_by_key(rewards, tmp_path):
    client = rewards(Judge())
    watch = client.begin("step 1", 1, *batch("r0", "r1"))
    for one in PARTS:
        watch(one)
    counts = client.judge("step 1", 1, batch("r0", "r1")[1], PARTS)
    found = {(row["group"], row["sample"]): row["reward"] for row in counts["given"]}
    assert found == {(1, 0): 1, (1, 1): 3, (1, 2): 1, (0, 0): 2, (0, 1): 1, (0, 2): 4}
    # Two texts in one part; three in two parts, of two judgements each.
    assert (counts["judgements"], counts["judgements_failed"], counts["groups_unjudged"]) == (6, 0, 0)
    client.begin_writing("step 1", tmp_path / "trajectories" / "step_000001.parquet")
    lines = [json.loads(line) for line in (tmp_path / "judgements" / "step_000001.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == [1, 0, 0] and all(len(line["samples"]) == 2 for line in lines)
    client.close()


def test_a_group_that_nothing_parsed_for_is_left_out(rewards):
    client = rewards(Judge(mute=("r0",)))
    watch = client.begin("k", 1, *batch("r0", "r1"))
    for one in PARTS:
        watch(one)
    counts = client.judge("k", 1, batch("r0", "r1")[1], PARTS)
    assert [row["reward"] for row in counts["given"] if row["group"] == 0] == [None] * 3
    assert (counts["judgements_failed"], counts["groups_unjudged"]) == (4, 1)
    client.close()


def test_an_error_of_the_judge_is_the_steps_error(rewards):
    client = rewards(Judge(error=ValueError("dead")))
    watch = client.begin("k", 1, *batch("r0", "r1"))
    watch(PARTS[0])
    with pytest.raises(ValueError, match="dead"):
        client.judge("k", 1, batch("r0", "r1")[1], PARTS)
    client.close()


def test_heldout_rows_are_not_judged_and_an_unfinished_batch_ends_with_the_client(rewards):
    client = rewards(Judge())
    assert client.begin("base", 0, *batch("r0"), heldout=True) is None
    watch = client.begin("k", 1, *batch("r0", "r1"))
    watch(PARTS[0])
    running = client._batches["k"].judging._running
    client.close()
    assert running.result(timeout=60) is None
    assert SimpleNamespace(**client.judge("base", 0, batch("r0")[1], [PARTS[1]])).given[0]["reward"] == -1
