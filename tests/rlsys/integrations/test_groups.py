"""Rewards for groups, from a real service over a judge whose scores stand in the responses: "score=7" has the reward (7 - 1) / 9."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from scripted_judge import ScriptedJudge, served

from rlsys import GRM, ServingError
from rlsys.integrations.groups import GroupCollector, GroupJudge, as_conversation, as_response
from rlsys.serving.app import Settings, create_app


@pytest.fixture(scope="module")
def judge():
    return ScriptedJudge()


@pytest.fixture(scope="module")
def url(judge):
    with served(create_app(judge)) as url:
        yield url


@pytest.fixture
def asked(judge):
    judge.requests.clear()
    return judge.requests


def says(score: int) -> str:
    return f"an answer, score={score}"


def reward(score: int) -> float:
    return pytest.approx((score - 1) / 9)


def test_responses_to_equal_prompts_are_judged_together_in_whatever_order_they_come(url, asked):
    messages = [{"role": "user", "content": "b"}]
    prompts = ["a", "c", messages, "a", "a", [dict(messages[0])], "c"]
    scores = [1, 10, 4, 7, 2, 5, 6]
    found = GroupJudge(url, k=3, options={"seed": 5}).rewards(prompts, [says(score) for score in scores])
    assert found == [reward(score) for score in scores]
    assert sorted(len(request.responses) for request in asked) == [2, 2, 3]
    assert {(request.k, request.strategy, request.seed) for request in asked} == {(3, "vote", 5)}


@pytest.mark.parametrize(("n", "sizes"), [(3, [3]), (4, [2, 2]), (7, [2, 2, 3]), (64, [2, 2] + [3] * 20), (1, [1])])
def test_large_groups_are_judged_in_parts_of_nearly_equal_size(url, asked, n, sizes):
    scores = [2 + number % 9 for number in range(n)]
    found = GroupJudge(url, max_responses=3).rewards(["a"] * n, [says(score) for score in scores])
    assert sorted(len(request.responses) for request in asked) == sizes
    assert found == [reward(score) for score in scores] if n > 1 else [0.0]  # alone, only score=1 is correct
    with pytest.raises(ValueError, match="max_responses=2"):
        GroupJudge(url, max_responses=2)


def test_what_does_not_parse_has_no_reward_and_is_counted(url):
    judge = GroupJudge(url)
    found = judge.rewards(["unparsed", "unparsed", "a", "a"], [says(3), says(9), says(3), says(9)])
    assert found == [None, None, reward(3), reward(9)]
    assert (judge.counts.judged, judge.counts.unparsed, judge.counts.unjudged) == (2, 2, 0.5)


def test_a_judgement_over_a_limit_is_left_out_and_said(url, caplog):
    judge = GroupJudge(url, max_responses=40)
    prompts, responses = ["a"] * 2 + ["b"] * 33, [says(2), says(5)] + [says(7)] * 33
    assert judge.rewards(prompts, responses) == [reward(2), reward(5), *[None] * 33]
    assert judge.counts.refused == 33 and "33 responses have no reward: row 1: " in caplog.text and "the limit is 32" in caplog.text


def test_a_judge_that_refuses_everything_is_an_error(url):
    judge = GroupJudge(url, max_responses=40)
    for name in "abcdefg":
        assert judge.rewards([name] * 33, ["x"] * 33) == [None] * 33, "it may be an unusual prompt"
    with pytest.raises(ServingError, match="responses: 33: the limit is 32"):
        judge.rewards(["h"] * 33, ["x"] * 33)
    assert judge.rewards(["h"], [says(2)]) and judge.rewards(["a"] * 33, ["x"] * 33) == [None] * 33, "not once it has judged"


def test_errors_that_concern_every_request_are_raised(judge):
    with served(create_app(judge, Settings(token="right"))) as url:
        with pytest.raises(ServingError, match="RLSYS_TOKEN"):
            GroupJudge(url, token="wrong").rewards(["a", "a"], [says(2), says(3)])
        group = GroupJudge(GRM.connect(url, token="right", timeout_s=3))
        assert group.rewards(["a", "a"], [says(2), says(3)]) == [reward(2), reward(3)]
    with pytest.raises(ServingError, match="not answered within timeout_s=3"):  # the service is gone
        group.rewards(["a", "a"], [says(2), says(3)])


def test_prompts_and_responses_must_be_as_many(url):
    with pytest.raises(ValueError, match="2 prompts for 1 responses"):
        GroupJudge(url).rewards(["a", "a"], ["x"])


def collect(collector: GroupCollector, prompts: list[str], scores: list[int]) -> list[float | None]:
    """Send the responses one at a time, each from its own thread and event loop."""
    found: list[float | None] = [None] * len(prompts)

    def ask(i: int) -> None:
        found[i] = asyncio.run(collector.reward(prompts[i], says(scores[i])))

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return found


def test_responses_that_arrive_one_at_a_time_are_judged_together(url, asked):
    prompts, scores = ["a", "b", "c"] * 4, [2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3]
    collector = GroupCollector(GroupJudge(url), group_size=4)
    assert collect(collector, prompts, scores) == [reward(score) for score in scores]
    assert [len(request.responses) for request in asked] == [4, 4, 4]
    assert collect(collector, ["a"] * 4, scores[:4]) == [reward(score) for score in scores[:4]], "a later group of the same prompt"
    assert len(asked) == 4


def test_a_group_that_stays_incomplete_has_no_reward_nor_have_its_late_members(url, asked, caplog):
    collector = GroupCollector(GroupJudge(url), group_size=4, wait_s=0.3)
    assert collect(collector, ["a"] * 3, [2, 3, 4]) == [None] * 3
    assert "3 of 4 responses to a prompt arrived, which have no reward" in caplog.text
    assert collect(collector, ["a"], [5]) == [None]
    assert asked == [] and (collector.judge.counts.incomplete, collector.judge.counts.unjudged) == (4, 1)


def test_a_group_may_have_a_size_of_its_own(url, asked):
    collector = GroupCollector(GroupJudge(url), group_size=4)

    async def ask() -> list[float | None]:
        return await asyncio.gather(*[collector.reward("a", says(score), 2) for score in (3, 8)])

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == [reward(3), reward(8)]
    with pytest.raises(ValueError, match="group_size=0"):
        asyncio.run(collector.reward("a", "x", 0))


def test_a_failure_reaches_every_caller(url):
    collector = GroupCollector(GroupJudge(url), group_size=2)

    async def ask() -> list:
        return await asyncio.gather(*[collector.reward("fail", "x") for _ in range(2)], return_exceptions=True)

    collector.judge.grm.close()
    found = asyncio.run(asyncio.wait_for(ask(), 30))
    assert [type(one) for one in found] == [RuntimeError, RuntimeError]


def test_a_caller_that_goes_away_does_not_stop_the_others(url):
    collector = GroupCollector(GroupJudge(url), group_size=2)

    async def ask() -> float | None:
        first = asyncio.ensure_future(collector.reward("a", says(3)))
        deadline = time.monotonic() + 30
        while not collector._open:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        first.cancel()
        return await collector.reward("a", says(8))

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == reward(8)


def test_messages_become_text():
    parts = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]
    assert as_conversation(parts) == [{"role": "user", "content": "one two"}] and as_conversation("q") == "q"
    assert as_response([{"role": "assistant", "content": "yes"}]) == "yes" == as_response("yes")
    turns = [{"role": "assistant", "content": None}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "three"}]
    assert as_response(turns) == "assistant: \n\ntool: 3\n\nassistant: three"
    with pytest.raises(ValueError, match="part without text"):
        as_response([{"role": "user", "content": [{"type": "image"}]}])
