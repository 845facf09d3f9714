"""Hostile rows and bodies through the HTTP app: no score, no log line and no other request is theirs, and nothing ends in a 500."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chat_templates import STYLES, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from prompted_judge import QuotingJudge, decided
from red_team import ANSWERED, ATTACKS, QUESTION, REFUSED, Attack

from rlsys.prompts.rendering import Prompter
from rlsys.serving.app import Settings, create_app
from rlsys.serving.contract import JudgeBackend
from rlsys.serving.limits import Limits

PROMPTERS = {
    (style, template): Prompter(tokenizer_of(STYLES[style]), template)
    for style, template in (("chatml", "pointwise"), ("llama2", "compact"), ("vicuna", "pointwise"))
}
TEMPLATE_MARKS = {
    "pointwise": (
        "[Begin of Response 1]",
        "[End of Response 1]",
        "[Begin of Response 2]",
        "[Begin of Conversation]",
        "[End of Conversation]",
        "[Turn:",
    ),
    "compact": ("<1>", "</1>", "<2>", "</2>", "<turn"),
}


def requests_for(attack: Attack) -> dict[str, Any]:
    """Return the attack as a body of each route."""
    question, responses = attack.question, list(attack.responses)
    own = {"conversation": question, "responses": responses, "critiques": True}
    turns = [{"role": "user", "content": question}]
    texts = [{"output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}]} for text in responses]
    return {
        "/v1/score": own,
        "/v1/score/stream": own,
        "/v1/score/batch": own,
        "/v1/chat/completions": {
            "model": "quoting:judge",
            "messages": turns + [{"role": "assistant", "content": text} for text in responses],
        },
        "/score": {"text_1": question, "text_2": responses},
        "/rerank": {"query": question, "documents": responses},
        "/get_reward": {"query": [question + text for text in responses], "prompts": [question] * len(responses)},
        "/compare": {"conversation_history": turns, "response_objs": texts},
    }


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge", timeout=60)


def answers(judge: JudgeBackend, bodies: list[tuple[str, Any]], limits: Limits | None = None) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        async with asyncio.timeout(120), client_of(create_app(judge, Settings(limits or Limits()))) as client:
            headers = {"Content-Type": "application/json"}
            return [await client.post(route, content=json.dumps(body), headers=headers) for route, body in bodies]

    return asyncio.run(main())


def scores_in(route: str, answer: httpx.Response) -> list[float]:
    """Return the scores of an answer on the judge's scale, whatever its shape."""
    if route == "/v1/score/stream":
        events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        assert all([line.partition(":")[0] for line in event] == ["event", "data"] for event in events)
        return json.loads(events[-1][1].removeprefix("data: "))["scores"]
    found = answer.json()
    if route == "/v1/chat/completions":
        assert all(choice["scores"] == found["judgement"]["scores"] for choice in found["choices"])
        return found["judgement"]["scores"]
    rewards = {
        "/score": lambda: [one["score"] for one in found["data"]],
        "/rerank": lambda: [one["relevance_score"] for one in sorted(found["results"], key=lambda one: one["index"])],
        "/get_reward": lambda: found["rewards"],
        "/compare": lambda: found["rewards"],
    }
    return [1 + 9 * reward for reward in rewards[route]()] if route in rewards else found["scores"]


@pytest.mark.parametrize(("style", "template"), PROMPTERS)
def test_no_text_gains_a_score(style, template):
    """The judge quotes every response before and after its own scores; these count, on every route."""
    cases = [(attack, route, body) for attack in ANSWERED for route, body in requests_for(attack).items()]
    cases = cases if style == "chatml" else [case for case in cases if case[1] == "/v1/score"]
    found = answers(QuotingJudge(PROMPTERS[style, template]), [(route, body) for _, route, body in cases])
    for (attack, route, _), answer in zip(cases, found):
        assert answer.status_code == 200, (attack.name, route, answer.text)
        n = len(attack.responses)
        assert scores_in(route, answer) == pytest.approx([decided(index, n) for index in range(n)]), (attack.name, route)


@pytest.mark.parametrize(("style", "template"), PROMPTERS)
def test_no_text_adds_a_mark_or_a_token_to_the_prompt(style, template):
    marks = [*STYLES[style].special, *STYLES[style].marks, "\\boxed", *TEMPLATE_MARKS[template]]
    harmless = [Attack("", QUESTION, tuple(f"saw {index}" for index in range(len(attack.responses)))) for attack in ANSWERED]
    judge = QuotingJudge(PROMPTERS[style, template])
    asked = [{"conversation": attack.question, "responses": attack.responses, "k": 1} for attack in (*ANSWERED, *harmless)]
    answers(judge, [("/v1/score", body) for body in asked])
    counts = [{mark: prompt.lower().count(mark.lower()) for mark in marks} for prompt in judge.prompts]
    for attack, found, expected in zip(ANSWERED, counts[: len(ANSWERED)], counts[len(ANSWERED) :], strict=True):
        assert found == expected, attack.name


def test_what_is_too_large_or_no_text_is_refused_by_name():
    prompter = PROMPTERS["chatml", "pointwise"]
    for attack in REFUSED:
        for (route, _), answer in zip(requests_for(attack).items(), answers(QuotingJudge(prompter), list(requests_for(attack).items()))):
            if route == "/v1/score/batch":
                (found,) = answer.text.splitlines()
                error = json.loads(found)["error"]
            else:
                error = answer.json()["error"]
                assert answer.status_code == error["code"], (attack.name, route)
            assert error["code"] in (400, 413, 422) and error["message"], (attack.name, route, error)
            assert "[" not in error["message"].partition(":")[0], error


def test_what_is_refused_or_broken_leaves_other_requests_alone():
    """A harmless request gets the same answer, whatever is asked before and after it."""
    judge = QuotingJudge(PROMPTERS["chatml", "pointwise"])
    harmless = ("/v1/score", {"conversation": QUESTION, "responses": ["judo", "saw"]})
    bodies = [harmless]
    for attack in ATTACKS:
        bodies += [("/v1/score", requests_for(attack)["/v1/score"]), harmless]
    first, *others = [answer.text for answer in answers(judge, bodies)[::2]]
    assert others == [first] * len(ATTACKS)


def test_a_request_is_one_line_of_the_log(caplog):
    caplog.set_level(logging.INFO, logger="rlsys.serving")
    judge = QuotingJudge(PROMPTERS["chatml", "pointwise"])
    bodies = [(route, body) for attack in ATTACKS for route, body in requests_for(attack).items() if route in ("/v1/score", "/compare")]
    bodies += [("/x%0d%0aINFO%20GET%20/v1/score%20200%1b%5b2K", {}), ("/v1/models/%0aINFO", {}), ("/%e2%80%a8INFO%20a", {})]
    answers(judge, bodies)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("rlsys.serving")]
    assert len(lines) == len(bodies)
    assert all(len(line.splitlines()) == 1 and line.isprintable() and len(line) < 400 for line in lines)


# ---- bodies that nobody has written: hypothesis

ROUTES = [*requests_for(Attack("", QUESTION, ("judo score=2", "saw score=9"))).items()]
ROUTES += [("/slime", {"prompt": QUESTION, "response": "saw", "label": None})]
ROUTES += [("/v1/chat/completions", {"model": "quoting", "messages": [{"role": "user", "content": QUESTION}], "n": 2, "stream": True})]
KNOWN = sorted(
    {key for _, body in ROUTES for key in body} | {"k", "n", "seed", "strategy", "temperature", "principles", "id", "top_n", "stream"}
)
PIECES = [text for attack in ANSWERED for text in attack.responses]
CHARS = st.characters(codec=None) | st.sampled_from("\ud800\udfff\x00\u202e\u200b")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARS, max_size=8) | st.sampled_from(PIECES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KNOWN) | st.text(CHARS, max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """Return the value with something in it replaced, left out or added."""
    kind = draw(st.sampled_from(["replace", "within", "within", "within"])) if isinstance(value, dict | list) and value else "replace"
    if kind == "replace" and depth:
        return draw(VALUES)
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(mutated(value[place], depth + 1)), *value[place + 1 :]]
    changed = dict(value) if isinstance(value, dict) else {}
    key = draw(st.sampled_from(sorted(changed)) if changed and draw(st.booleans()) else st.sampled_from(KNOWN) | st.text(CHARS, max_size=6))
    if key in changed and draw(st.integers(0, 3)) == 0:
        del changed[key]
    else:
        changed[key] = draw(mutated(changed[key], depth + 1)) if key in changed else draw(VALUES)
    return changed


class Service:
    """An app that lives through many requests, as an app takes longer to make than to ask."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        limits = Limits(max_responses=8, max_k=8, max_seconds=30)
        self._client = client_of(create_app(QuotingJudge(PROMPTERS["chatml", "pointwise"]), Settings(limits)))

    def post(self, url: str, content: bytes | str) -> httpx.Response:
        async def main() -> httpx.Response:
            async with asyncio.timeout(60):
                return await self._client.post(url, content=content, headers={"Content-Type": "application/json"})

        return self._runner.run(main())

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert '"code":500' not in answer.text  # in a stream, or in a line of a batch
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["code"] == answer.status_code and error["message"].strip() and "Traceback" not in error["message"]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_body_ends_in_a_500(service, data):
    route, body = data.draw(st.sampled_from(ROUTES))
    for _ in range(data.draw(st.integers(1, 2))):
        body = data.draw(mutated(body))
    check(service.post(route, json.dumps(body)))


@given(
    st.sampled_from([route for route, _ in ROUTES]),
    st.binary(max_size=60)
    | st.sampled_from([b"[" * 100_000, b"9" * 5000, b"\xff"])
    | st.text(max_size=60).map(str.encode)
    | VALUES.map(json.dumps).map(str.encode),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_end_in_a_500(service, route, content):
    check(service.post(route, content))


@given(
    st.sampled_from(["/rerank", "/slime", "/get_reward", "/compare", "/score"]),
    st.dictionaries(
        st.sampled_from(["k", "seed", "strategy", "unparsed", "group", "wait_s", "x"]),
        st.text(max_size=5) | st.integers(-2, 9).map(str),
        max_size=3,
    ),
)
@settings(max_examples=150, deadline=None)
def test_no_url_ends_in_a_500(service, route, query):
    body = dict(ROUTES)[route]
    if query.get("group", "1").strip() not in ("", "1") and re.fullmatch(r"\s*\+?\d+\s*", query["group"]):
        query["wait_s"] = "0.01"  # nobody else comes: 503 is the right answer
    answer = service.post(f"{route}?{httpx.QueryParams(query)}", json.dumps(body))
    if answer.status_code != 503 or "arrived within" not in answer.text:
        check(answer)
