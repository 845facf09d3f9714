"""The shapes of trainers and rerankers: their bodies, their answers, and what is judged together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest
from scripted_judge import ScriptedJudge

from rlsys.serving.app import Settings, create_app
from rlsys.serving.limits import Limits
from rlsys.serving.markup import conversation_of, without_end
from rlsys.serving.rewards import split

CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhich?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA = "<bos><start_of_turn>user\nWhich?<end_of_turn>\n<start_of_turn>model\n"

Use = Callable[[httpx.AsyncClient, ScriptedJudge], Awaitable[Any]]


def run(use: Use, limits: Limits | None = None) -> Any:
    """Run `use(client, judge)` on an app of its own, for at most a minute."""

    async def main() -> Any:
        judge = ScriptedJudge()
        app = create_app(judge, Settings(limits or Limits()))
        async with asyncio.timeout(60), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge") as client:
            return await use(client, judge)

    return asyncio.run(main())


def post(route: str, body: object, limits: Limits | None = None) -> tuple[Any, list[list[str]]]:
    """Return the answer, or the error's text, and the responses of each judgement."""

    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> tuple[Any, list[list[str]]]:
        response = await client.post(route, json=body)
        assert response.status_code < 500, response.text
        found = response.json() if response.status_code == 200 else f"{response.status_code} {response.json()['error']['message']}"
        return found, [request.responses for request in judge.requests]

    return run(use, limits)


def texts(scores: Sequence[int]) -> list[str]:
    return [f"text {index} score={score}" for index, score in enumerate(scores)]


def places(scores: Sequence[int]) -> list[float]:
    return pytest.approx([(score - 1) / 9 for score in scores])


def test_parts_cover_everything_evenly_and_leave_no_response_alone():
    for n in range(1, 70):
        for most in range(1, 12):
            parts = split(n, most)
            assert {index for part in parts for index in part} == set(range(n)) and max(map(len, parts)) <= most
            assert len(parts) == -(-n // most) and max(map(len, parts)) - min(map(len, parts)) <= 1
            assert min(map(len, parts)) > 1 or most == 1 or n == 1
    assert split(3, 2) == [[0, 1], [1, 2]]


def test_prompts_in_chat_markup_become_messages():
    def pairs(prompt: str) -> list[tuple[str, str]]:
        return [(message.role, message.content) for message in conversation_of(prompt)]

    assert pairs(CHATML) == [("system", "Be brief."), ("user", "Which?")]
    assert pairs(LLAMA) == pairs(GEMMA) == [("user", "Which?")]
    turns = "<start_of_turn>model\nThis?<end_of_turn>\n<start_of_turn>user\nNo.<end_of_turn>\n"
    assert pairs(GEMMA.removesuffix("<start_of_turn>model\n") + turns) == [("user", "Which?"), ("assistant", "This?"), ("user", "No.")]


OUTSIDE = ["Before" + CHATML, CHATML.replace("user", "narrator"), CHATML + "x<|im_end|>y"]


@pytest.mark.parametrize("prompt", ["Which?", "", "<s>", "<s>[INST] Which? [/INST]", "<bos>Which?", "<|im_start|>", *OUTSIDE])
def test_other_prompts_stay_as_they_are(prompt):
    assert conversation_of(prompt) == prompt


def test_only_marks_at_the_end_of_a_response_are_cut():
    assert without_end("saw<|im_end|>\n<|endoftext|>") == "saw" and without_end("saw</s>") == "saw"
    assert without_end("<|im_end|> saw \n") == "<|im_end|> saw \n" and without_end("") == ""


# ---- vLLM's /score


def test_one_query_and_its_documents_are_judged_together():
    documents = texts([7, 2, 10])
    for one, two in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        answer, judged = post("/score", {"model": "scripted", one: "Which?", two: documents})
        assert judged == [documents] and answer["object"] == "list" and answer["model"] == "scripted"
        assert [one["index"] for one in answer["data"]] == [0, 1, 2]
        assert [one["score"] for one in answer["data"]] == places([7, 2, 10])
        assert answer["usage"]["prompt_tokens"] == 7


def test_pairs_of_equal_queries_are_judged_together():
    documents = texts([7, 2, 10, 4])
    answer, judged = post("/score?k=1", {"text_1": ["a", "b", "a", "b"], "text_2": documents, "instruction": "Be exact."})
    assert judged == [[documents[0], documents[2]], [documents[1], documents[3]]]
    assert [one["score"] for one in answer["data"]] == places([7, 2, 10, 4])


def test_a_single_text_has_the_single_scale():
    answer, _ = post("/score", {"text_1": "Which?", "text_2": {"text": "yes score=1"}})
    assert [one["score"] for one in answer["data"]] == [1.0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text_1": "a"}, ["400", "text_1 and text_2", "found text_1"]),
        ({"text_1": "a", "documents": ["b"]}, ["400", "found documents and text_1"]),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, ["400", "text_1", "found 2"]),
        ({"text_1": "a", "text_2": []}, ["400", "at least 1"]),
        ({"text_1": "a", "text_2": "b", "model": "other"}, ["404", "'scripted'"]),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 10}, ["400", "truncate_prompt_tokens", "not supported"]),
        ({"text_1": "a", "text_2": [{"content": []}]}, ["400", "text"]),
        ({"conversation": "a", "responses": ["b"]}, ["400", "conversation", "not supported"]),
    ],
)
def test_other_scores_are_refused_by_name(body, words):
    answer, judged = post("/score", body)
    assert not judged and all(word in answer for word in words), answer


def test_vllms_old_path_is_reported_apart_by_its_keys():
    answer, _ = post("/v1/score", {"text_1": "a", "text_2": "b"})
    assert answer.startswith("400") and "conversation" in answer and "text_1" in answer


# ---- reranking


@pytest.mark.parametrize("route", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_back_best_first(route):
    documents = texts([3, 9, 3, 5])
    answer, judged = post(route, {"model": "scripted", "query": "Which?", "documents": documents, "max_tokens_per_doc": 0})
    assert judged == [documents]
    assert [one["index"] for one in answer["results"]] == [1, 3, 0, 2]
    assert [one["relevance_score"] for one in answer["results"]] == places([9, 5, 3, 3])
    assert [one["document"]["text"] for one in answer["results"]] == [documents[index] for index in (1, 3, 0, 2)]
    assert answer["usage"]["total_tokens"] == 15


def test_the_best_few_without_their_texts():
    body = {"query": "Which?", "documents": [{"text": text} for text in texts([3, 9, 5])], "top_n": 2, "return_documents": False}
    answer, _ = post("/v2/rerank", body)
    assert [sorted(one) for one in answer["results"]] == [["index", "relevance_score"]] * 2
    assert [one["index"] for one in answer["results"]] == [1, 2]


def test_many_documents_are_judged_in_parts():
    scores = [random.Random(0).randint(1, 10) for _ in range(75)]
    answer, judged = post("/rerank", {"query": "Which?", "documents": texts(scores)})
    assert sorted(map(len, judged)) == [25, 25, 25] and sorted(text for part in judged for text in part) == sorted(texts(scores))
    assert [one["index"] for one in answer["results"]] == sorted(range(75), key=lambda index: -scores[index])


def test_a_document_without_a_partner_is_judged_beside_another():
    answer, judged = post("/rerank", {"query": "Which?", "documents": texts([3, 9, 5])}, Limits(max_responses=2))
    assert sorted(map(len, judged)) == [2, 2] and [one["relevance_score"] for one in answer["results"]] == places([9, 5, 3])


def test_more_judgements_than_one_request_may_have_are_refused():
    answer, judged = post("/rerank", {"query": "Which?", "documents": ["a"] * 10_000})
    assert not judged and answer.startswith("422 313 judgements") and "256" in answer and "--max-responses" in answer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": "a", "documents": []}, ["400", "documents"]),
        ({"query": "a", "documents": ["b"], "top_n": -1}, ["400", "top_n"]),
        ({"query": "a", "documents": [3]}, ["400", "documents.0"]),
        ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 9}, ["400", "max_tokens_per_doc"]),
        ({"query": "unparsed", "documents": ["b", "c"]}, ["422", "no_box", "?unparsed="]),
    ],
)
def test_other_reranks_are_refused_by_name(body, words):
    answer, _ = post("/rerank", body)
    assert all(word in answer for word in words), answer


# ---- options in the URL


def test_options_in_the_url_reach_the_judge():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        await client.post("/rerank?k=5&strategy=mean&seed=9", json={"query": "a", "documents": ["b", "c"], "instruction": "Be exact."})
        return judge.requests[0]

    asked = run(use)
    assert (asked.k, asked.strategy, asked.seed, asked.principles) == (5, "mean", 9, "Be exact.")


@pytest.mark.parametrize("url", ["?k=0", "?k=x", "?kk=1", "?unparsed=2", "?unparsed=nan", "?seed=-1", "?group=2", "?k=1000"])
def test_wrong_options_are_refused_by_name(url):
    answer, judged = post("/rerank" + url, {"query": "a", "documents": ["b", "c"]})
    assert answer[:3] in ("400", "422") and url[1:].partition("=")[0] in answer and not judged


# ---- requests with several judgements


def pairs_of(count: int, query: str) -> dict[str, list[str]]:
    return {"queries": [f"{query} {number}" for number in range(count)], "documents": ["score=5"] * count}


def test_requests_with_several_judgements_are_refused_instead_of_queueing_without_end():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        waiting = asyncio.ensure_future(client.post("/score", json=pairs_of(5, "wait")))
        await until(lambda: judge.running == 2)
        refused = await client.post("/score", json=pairs_of(2, "q"))
        alone = await client.post("/score", json=pairs_of(1, "q"))
        judge.release.set()
        later = (await waiting).status_code, (await client.post("/score", json=pairs_of(5, "q"))).status_code
        return refused, alone.status_code, later

    refused, *others = run(use, Limits(max_pending=4))
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1 and "--max-pending" in refused.text
    assert others == [200, (200, 200)]


def test_the_time_limit_holds_for_all_judgements_together():
    """Each of the five takes less than a second, one after the other."""

    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        judge.seconds = 0.6
        answer = await client.post("/score", json=pairs_of(5, "q"))
        await until(lambda: judge.running == 0)
        return answer, len(judge.requests)

    answer, started = run(use, Limits(max_pending=1, max_seconds=1))
    assert answer.status_code == 504 and "--max-seconds" in answer.text and started < 5


# ---- OpenRLHF


def test_queries_of_one_prompt_are_judged_together():
    prompts = [CHATML, "other ", CHATML, "other "]
    responses = texts([3, 9, 5, 10])
    queries = [prompt + response + "<|im_end|>" for prompt, response in zip(prompts, responses)]
    answer, judged = post("/get_reward", {"query": queries, "prompts": prompts, "labels": ["x", None, 3, {}]})
    assert judged == [[responses[0], responses[2]], [responses[1], responses[3]]]
    assert answer["rewards"] == answer["scores"] == places([3, 9, 5, 10])
    assert answer["extra_logs"] == {"judge_score": [3, 9, 5, 10], "judge_parsed": [1] * 4}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": ["ab"], "prompts": ["b"]}, ["422", "query.0", "starts with prompts.0"]),
        ({"query": ["ab"], "prompts": []}, ["400", "prompts", "found 0"]),
        ({"query": ["ab"], "prompts": ["a"], "labels": []}, ["400", "labels", "found 0"]),
        ({"query": [], "prompts": []}, ["400", "query"]),
        ({"query": "ab", "prompts": "a"}, ["400", "query"]),
        ({"query": ["unparsed answer"], "prompts": ["unparsed"]}, ["422", "?unparsed="]),
    ],
)
def test_other_reward_requests_are_refused_by_name(body, words):
    answer, _ = post("/get_reward", body)
    assert all(word in answer for word in words), answer


def test_the_caller_may_name_the_reward_of_what_does_not_parse():
    answer, _ = post("/get_reward?unparsed=0.25", {"query": ["unparsed a", "unparsed b"], "prompts": ["unparsed"] * 2})
    assert answer["rewards"] == [0.25, 0.25]
    assert answer["extra_logs"] == {"judge_parsed": [0, 0], "judge_score": [3.25, 3.25]}


# ---- groups that arrive one by one: slime, and OpenRLHF


def slime(
    client: httpx.AsyncClient, response: str, prompt: object = "Which?", url: str = "?group=3&wait_s=30"
) -> Awaitable[httpx.Response]:
    return client.post(f"/slime{url}", json={"prompt": prompt, "response": response, "label": "x"})


def test_slimes_samples_wait_for_their_group():
    responses, messages = texts([3, 9, 5]), [{"role": "user", "content": "Other?"}]

    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        asked = [slime(client, text, prompt) for prompt in ("Which?", messages) for text in reversed(responses)]
        return [one.json() for one in await asyncio.gather(*asked)], [request.responses for request in judge.requests]

    rewards, judged = run(use)
    assert rewards == places([5, 9, 3, 5, 9, 3]) and judged == [responses, responses]


def test_alone_a_sample_is_judged_at_once():
    answer, judged = post("/slime", {"prompt": CHATML, "response": "yes score=1<|im_end|>", "label": None})
    assert answer == 1.0 and judged == [["yes score=1"]]


def test_openrlhfs_requests_wait_for_their_group_too():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        bodies = [{"query": ["Which? " + text], "prompts": ["Which? "], "labels": ["x"]} for text in texts([3, 9])]
        answers = await asyncio.gather(*(client.post("/get_reward?group=2", json=body) for body in bodies))
        several = await client.post("/get_reward?group=2", json={"query": ["a", "b"], "prompts": ["", ""]})
        return [answer.json()["rewards"][0] for answer in answers], len(judge.requests), several.json()["error"]["message"]

    rewards, judgements, several = run(use)
    assert rewards == places([3, 9]) and judgements == 1 and "group=2" in several


def test_a_group_that_stays_incomplete_is_refused_whole():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        answers = await asyncio.gather(*(slime(client, text, url="?group=3&wait_s=0.2") for text in texts([3, 9])))
        again = await asyncio.gather(*(slime(client, text) for text in texts([3, 9, 5])))
        return answers, again, judge.requests

    answers, again, requests = run(use)
    assert [answer.status_code for answer in answers] == [503, 503] and answers[0].headers["Retry-After"] == "1"
    assert "of the group's 3 responses arrived" in answers[0].json()["error"]["message"]
    assert [one.json() for one in again] == places([3, 9, 5]) and len(requests) == 1


async def settled() -> None:
    """Let all requests in this process come as far as they get."""
    for _ in range(500):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_member_that_goes_away_takes_nobody_with_it():
    """Before its group is complete it gives up its place; afterwards the others keep their judgement."""

    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        gone = asyncio.ensure_future(slime(client, "gone score=8"))
        await settled()
        gone.cancel()
        await asyncio.wait([gone])
        members = [asyncio.ensure_future(slime(client, text, "wait")) for text in texts([3, 9, 5])]
        here = [asyncio.ensure_future(slime(client, text)) for text in texts([3, 9, 5])]
        await until(lambda: judge.running == 1 and all(one.done() for one in here))
        members[1].cancel()
        await asyncio.wait([members[1]])
        judge.release.set()
        return [(await one).json() for one in (*here, members[0], members[2])], judge

    rewards, judge = run(use)
    assert rewards == places([3, 9, 5, 3, 5]) and judge.cancelled == 0 and "gone" not in str(judge.requests)


def test_a_judgement_for_which_nobody_waits_is_stopped():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        members = [asyncio.ensure_future(slime(client, text, "wait")) for text in texts([3, 9, 5])]
        await until(lambda: judge.running == 1)
        for member in members:
            member.cancel()
        await until(lambda: judge.cancelled == 1)
        return judge.running

    assert run(use) == 0


def test_waiting_responses_and_groups_are_limited():
    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        large = await slime(client, "a", url="?group=5")
        waiting = [asyncio.ensure_future(slime(client, "a", f"q{number}")) for number in range(8)]
        await settled()
        refused = await slime(client, "a", "q9")
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        return large, refused

    large, refused = run(use, Limits(max_responses=4, max_pending=2))
    assert large.status_code == 422 and "--max-responses" in large.text
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"


# ---- NeMo Gym


def responded(*items: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "output": list(items)}


def said(*parts: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": part, "annotations": []} for part in parts]}


def test_nemo_gyms_responses_are_compared_without_their_reasoning():
    objects = [
        responded({"type": "reasoning", "summary": [{"text": "score=10"}]}, said("saw ", "score=9")),
        responded(said("judo score=2")),
        responded(),
    ]

    async def use(client: httpx.AsyncClient, judge: ScriptedJudge) -> Any:
        body = {"conversation_history": [{"role": "user", "content": "Which?"}], "response_objs": objects, "principle": "Be concise."}
        return (await client.post("/compare", json=body)).json(), judge.requests

    answer, (asked,) = run(use)
    assert (asked.responses, asked.principles) == (["saw score=9", "judo score=2", ""], "Be concise.")
    assert answer["rewards"] == places([9, 2, 1]) and answer["comparison_results"] is None
    assert answer["metrics"] == {"mean_judge_score": 4.0, "judge_parsed": 1.0, "judge_tokens": 8.0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_objs": [{}]}, ["422", "response_objs.0.output"]),
        ({"response_objs": [{"output": "text"}]}, ["422", "response_objs.0.output"]),
        ({"response_objs": []}, ["400", "response_objs"]),
        ({"response_objs": [responded()], "conversation_history": []}, ["400", "conversation_history"]),
    ],
)
def test_other_comparisons_are_refused_by_name(body, words):
    answer, judged = post("/compare", {"conversation_history": [{"role": "user", "content": "Which?"}]} | body)
    assert not judged and all(word in answer for word in words), answer
