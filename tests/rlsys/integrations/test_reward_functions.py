"""The functions that verl and OpenRLHF call, called as they do; launch/test_plugs.sh runs them through the packages themselves."""

from __future__ import annotations

import asyncio

import pytest
from scripted_judge import ScriptedJudge, served

from rlsys.integrations import openrlhf, verl
from rlsys.serving.app import create_app


@pytest.fixture(scope="module")
def judge():
    return ScriptedJudge()


@pytest.fixture
def url(judge):
    judge.requests.clear()
    with served(create_app(judge)) as url:
        yield url


def test_verl_groups_samples_that_it_scores_one_at_a_time(judge, url):
    async def step() -> list[dict[str, float]]:
        return await asyncio.gather(
            *[
                verl.compute_score("src", f"score={score}", None, {"question": question, "index": 1}, judge=url, group_size=3, extra=1)
                for question, scores in (("a", (4, 10, 1)), ("unparsed", (2, 3, 4)))
                for score in scores
            ]
        )

    found = asyncio.run(asyncio.wait_for(step(), 60))
    assert [one["score"] for one in found] == pytest.approx([1 / 3, 1, 0, 0, 0, 0])
    assert [one["judged"] for one in found] == [1, 1, 1, 0, 0, 0]
    assert len(judge.requests) == 2


def test_verl_rows_for_validation_may_have_another_group_size(judge, url):
    async def step(extra: dict) -> list[dict[str, float]]:
        samples = [verl.compute_score("s", f"score={score}", None, extra, judge=url, group_size=3, wait_s=0.3) for score in (10, 1)]
        return await asyncio.wait_for(asyncio.gather(*samples), 60)

    found = asyncio.run(step({"question": "a", "group_size": 2}))
    assert found == [{"score": 1, "judged": 1}, {"score": 0, "judged": 1}]
    assert asyncio.run(step({"question": "a", "group_size": None})) == [{"score": 0, "judged": 0}] * 2
    assert len(judge.requests) == 1


def test_verl_scores_a_batch_in_any_order(judge, url):
    first, second = {"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "unparsed"}
    extras, texts = [first, second, first, second], ["score=10", "x", "score=1", "y"]
    found = verl.compute_scores(["s"] * 4, texts, [None] * 4, extras, judge=url, missing=0.5)
    missing = {"score": 0.5, "judged": 0}
    assert found == [{"score": 1, "judged": 1}, missing, {"score": 0, "judged": 1}, missing]
    assert [len(request.responses) for request in judge.requests] == [2, 2]
    assert judge.requests[0].conversation[0].content == "a" or judge.requests[1].conversation[0].content == "a"


@pytest.mark.parametrize(("extra", "key"), [(None, None), ({"index": 3}, None), ({"question": "q"}, "prompt")])
def test_verl_rows_without_a_prompt_are_named(extra, key):
    with pytest.raises(ValueError, match=r"extra_info: expected .*prompt.*found .*Add it to the rows, or set prompt_key"):
        asyncio.run(verl.compute_score("s", "x", None, extra, judge="http://127.0.0.1:9", group_size=1, prompt_key=key))


def test_openrlhf_calls_with_queries_prompts_and_labels(judge, url):
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    queries = [f"{prompt}score=10<|im_end|>\n", f"{prompt}score=4</s>"]
    reward_func = openrlhf.reward_function(url, k=2)
    found = reward_func(queries, [prompt, prompt], ["", ""])
    assert found["rewards"] == found["scores"] == pytest.approx([1, 1 / 3]) and found["extra_logs"] == {"judged": [1, 1]}
    (request,) = judge.requests
    assert [(turn.role, turn.content) for turn in request.conversation] == [("system", "Be brief."), ("user", "hi")]
    assert request.responses == ["score=10", "score=4"] and request.k == 2
    own = openrlhf.reward_function(url, conversation=lambda prompt, label: label, missing=0.25)
    assert own(["p: x"], ["p: "], ["unparsed"])["rewards"] == [0.25]


def test_openrlhf_queries_start_with_their_prompt(url):
    with pytest.raises(ValueError, match="the query starts with 'other'"):
        openrlhf.reward_function(url)(["other"], ["prompt"], [""])
