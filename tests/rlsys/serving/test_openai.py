"""The OpenAI shape, through the `openai` package over a real port."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from scripted_judge import ScriptedJudge, served

from rlsys.serving.app import Settings, create_app

QUESTION = {"role": "user", "content": "Which word is a tool?"}
CANDIDATES = [{"role": "assistant", "content": f"{word} score={score}"} for word, score in (("judo", 2), ("saw", 9), ("beige", 3))]


@pytest.fixture(scope="module")
def judge() -> ScriptedJudge:
    return ScriptedJudge(meta_rewards=True)


@pytest.fixture(scope="module")
def address(judge: ScriptedJudge) -> Iterator[str]:
    with served(create_app(judge, Settings(token="secret"))) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=60)


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["scripted", "scripted:judge"]
    assert client.models.retrieve("scripted:judge").owned_by == "rlsys"
    with pytest.raises(openai.NotFoundError, match="scripted:judge"):
        client.models.retrieve("org/other")


def test_a_chat_has_its_choices_limits_and_usage(client, judge):
    answer = client.chat.completions.create(
        model="scripted", messages=[{"role": "developer", "content": "Be brief."}, QUESTION], n=2, seed=-1, temperature=0.5, max_tokens=1
    )
    asked = judge.chats[-1]
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert (asked.n, asked.seed, asked.temperature, asked.max_tokens, asked.top_p) == (2, 2**32 - 1, 0.5, 1, 1.0)
    assert [choice.message.content for choice in answer.choices] == ["Which word is a tool? 0", "Which word is a tool? 1"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert (answer.model, answer.system_fingerprint, answer.object) == ("scripted", "v1", "chat.completion")


def test_a_streamed_chat_has_the_same_texts(client):
    asked = {"model": "scripted", "messages": [QUESTION], "n": 2, "seed": 1}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usage = ["", ""], {}, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {0: "stop", 1: "stop"} and usage == whole.usage


def test_without_a_seed_each_answer_is_a_draw_of_its_own(client, judge):
    for _ in range(2):
        client.chat.completions.create(model="scripted", messages=[QUESTION])
    assert judge.chats[-1].seed != judge.chats[-2].seed


def judgement(client: openai.OpenAI, **more):
    return client.chat.completions.create(model="scripted:judge", messages=[QUESTION, *CANDIDATES], n=4, seed=3, **more)


def test_a_judgement_has_a_sample_per_choice_and_the_vote(client, judge):
    answer = judgement(client, max_tokens=100, temperature=0.7, extra_body={"principles": "Be exact.", "strategy": "mean"})
    asked = judge.requests[-1]
    assert (asked.responses, asked.k, asked.seed) == ([candidate["content"] for candidate in CANDIDATES], 4, 3)
    assert (asked.max_tokens, asked.temperature, asked.principles, asked.strategy) == (100, 0.7, "Be exact.", "mean")
    assert [message.content for message in asked.conversation] == [QUESTION["content"]]
    assert {tuple(choice.scores) for choice in answer.choices} == {(2, 9, 3)} and len(
        {tuple(choice.order) for choice in answer.choices}
    ) > 1
    assert all(isinstance(choice.meta_reward, float) and choice.parse_failure is None for choice in answer.choices)
    assert (answer.judgement["best"], answer.judgement["scores"], answer.judgement["strategy"]) == (1, [2, 9, 3], "mean")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 16)


def test_a_judgements_text_tells_its_scores_in_the_order_of_the_request(client):
    """The judge numbers the responses as it saw them, which the caller did not."""
    for choice in judgement(client).choices:
        text, order = choice.message.content, choice.order
        assert f"Response {order.index(1) + 1}: saw score=9" in text
        assert "\\boxed{" + ", ".join("293"[index] for index in order) + "}" in text
        assert "Scores in the order of the request: 2, 9, 3." in text
        shown = f"numbers the responses in the order {', '.join(str(index + 1) for index in order)}."
        assert text.endswith(shown) != (order == [0, 1, 2])


def test_a_streamed_judgement_is_the_same(client):
    whole, texts, last = judgement(client), [""] * 4, {}
    for chunk in judgement(client, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            last[choice.index] = choice
        found = getattr(chunk, "judgement", None)
    assert texts == [choice.message.content for choice in whole.choices]
    assert [last[index].scores for index in range(4)] == [[2, 9, 3]] * 4 and last[0].finish_reason == "stop"
    assert found == whole.judgement


def test_a_judgement_without_scores_says_so(client):
    messages = [{"role": "user", "content": "unparsed"}, *CANDIDATES]
    answer = client.chat.completions.create(model="scripted:judge", messages=messages)
    assert answer.choices[0].message.content.endswith("No scores: no_box.")
    assert answer.choices[0].scores is None and answer.judgement["scores"] is None


def test_text_in_parts_is_joined(client, judge):
    parts = [{"type": "text", "text": "Which "}, {"type": "text", "text": "one?"}]
    client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": parts}])
    assert judge.chats[-1].messages[-1].content == "Which one?"
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not score=4"}]}
    answer = client.chat.completions.create(model="scripted:judge", messages=[QUESTION, CANDIDATES[0], refusal])
    assert answer.judgement["scores"] == [2, 4]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"messages": [QUESTION, CANDIDATES[0]]}, ["scripted:judge"]),
        ({"model": "scripted:judge"}, ["candidate responses"]),
        ({"model": "scripted:judge", "messages": CANDIDATES}, ["conversation before"]),
        ({"model": "scripted:judge", "messages": [QUESTION, *CANDIDATES], "top_p": 0.5}, ["top_p"]),
        ({"messages": []}, ["messages", "at least 1"]),
        ({"extra_body": {"strategy": "mean"}}, ["strategy", "scripted:judge"]),
        ({"extra_body": {"min_p": 0.1}}, ["min_p", "not supported"]),
        ({"stop": ["x"]}, ["stop", "not supported"]),
        ({"logprobs": True}, ["logprobs", "not supported"]),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["tools", "not supported"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, ["messages.0.content"]),
        ({"messages": [{"role": "user", "content": "Hi", "name": "Bob"}]}, ["name", "not supported"]),
        ({"temperature": 3}, ["temperature"]),
        ({"n": 0}, ["n", "greater"]),
        ({"max_tokens": 5, "max_completion_tokens": 6}, ["max_completion_tokens"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(client, asked, words, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "scripted", "messages": [QUESTION], "stream": stream, **asked})
    assert all(word in refused.value.body["message"] for word in words), refused.value.body
    assert refused.value.body["type"] == "invalid_request_error"


def test_what_asks_for_nothing_is_accepted(client):
    message = {"role": "user", "content": "Hi", "tool_calls": None, "annotations": []}
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "logprobs": False,
        "response_format": {"type": "text"},
        "user": "u",
        "stop": [],
    }
    plain = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "Hi"}])
    answer = client.chat.completions.create(model="scripted", messages=[message], **neutral)
    assert answer.choices == plain.choices and answer.usage == plain.usage


def test_limits_tokens_and_models_have_errors_of_their_own(client, address):
    with pytest.raises(openai.UnprocessableEntityError, match="--max-responses"):
        client.chat.completions.create(model="scripted:judge", messages=[QUESTION, *CANDIDATES * 11])
    with pytest.raises(openai.NotFoundError, match="'scripted:judge'"):
        client.chat.completions.create(model="gpt-4o", messages=[QUESTION])
    with pytest.raises(openai.AuthenticationError, match="Authorization"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0).models.list()


def test_a_stream_that_breaks_off_ends_in_an_error(client):
    """After the first chunk the status is sent; the client still learns that the answer is not whole."""
    messages = [{"role": "user", "content": "lost"}, *CANDIDATES]
    with pytest.raises(openai.APIError, match="the engine was lost"):
        list(client.chat.completions.create(model="scripted:judge", messages=messages, stream=True))
