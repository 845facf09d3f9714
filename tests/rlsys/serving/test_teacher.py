"""A teacher behind an endpoint: its judgements become samples of the student."""

from __future__ import annotations

import re

import pytest
from endpoint_peer import Peer, running
from transformers import AutoTokenizer

from rlsys.config.checks import require_consistent_settings
from rlsys.config.endpoint import Endpoint
from rlsys.config.files import load_config
from rlsys.config.schema import ConfigError, Prompt
from rlsys.data.batches import completion
from rlsys.data.records import Record
from rlsys.judging.requests import Sampling, judge_request
from rlsys.prompts.rendering import Prompter, UserTurns, hint_for
from rlsys.serving.endpoint import EndpointJudge
from rlsys.serving.teacher import Teacher


@pytest.fixture(scope="module")
def prompter(tiny_model) -> Prompter:
    return Prompter.from_config(AutoTokenizer.from_pretrained(tiny_model), Prompt(template="compact"))


def record(name: str, query: str = "The capital of Norway?") -> Record:
    return Record(name, "t", ({"role": "user", "content": query},), ("Oslo", "Bergen"), (1.0, 0.0))


def hinted_answer(body: dict, attempt: int) -> str:
    found = re.search(r"Hint: Response (\d)", body["messages"][0]["content"])
    scores = "5, 5" if found is None else "9, 2" if found[1] == "1" else "2, 9"
    return f"<think>Drafts: \\boxed{{1, 1}}</think>\n\nA short analysis. \\boxed{{{scores}}}\n"


def taught(prompter: Prompter, peer: Peer, asks: list, max_tokens: int = 64, max_prompt: int = 200) -> list:
    with EndpointJudge(Endpoint(url=peer.url)) as endpoint:
        teacher = Teacher(endpoint, UserTurns.for_endpoint(Prompt(template="compact")))
        return list(teacher.answer(asks, prompter, Sampling(1.0, 1.0, max_tokens), max_prompt))


def test_answers_belong_to_the_students_prompts_without_the_teachers_thought(prompter):
    asks = [judge_request(record("a"), 2, "t"), judge_request(record("b"), 1, "h", hinted=True)]
    with running(Peer(hinted_answer)) as peer:
        plain, hinted = taught(prompter, peer, asks)
    assert hinted.samples[0]["text"] == f"A short analysis. \\boxed{{{'9, 2' if hinted.samples[0]['order'] == [0, 1] else '2, 9'}}}"
    assert [sample["scores"] for sample in plain.samples] == [[5, 5], [5, 5]]
    for result in (plain, hinted):
        for prompt in result.rendered.prompts:
            hint = hint_for(result.record, prompt.order) if result.rendered.request.hinted else ""
            assert prompt.text == prompter.render(result.record, prompt.order, hint)
            assert prompt.token_ids == prompter.encode(prompt.text), "encoded by the student's tokenizer"
    assert hinted.prompt_tokens > 0 and hinted.samples[0]["tokens"] > 0


def test_rows_that_the_student_cannot_read_are_not_asked(prompter):
    long = record("long", "word " * 300)
    asks = [judge_request(one, 1, "t") for one in (long, record("a"), long, record("b"), long)]
    with running(Peer(hinted_answer)) as peer:
        results = taught(prompter, peer, asks)
    assert [bool(result.rendered.skipped) for result in results] == [True, False, True, False, True]
    assert [result.record.id for result in results] == ["long", "a", "long", "b", "long"] and len(peer.bodies) == 2


def test_an_answer_too_long_for_the_student_counts_as_cut_off(prompter):
    with running(Peer(hinted_answer)) as peer:
        (result,) = taught(prompter, peer, [judge_request(record("a"), 1, "t")])
        needed = len(completion(prompter.chat, result.samples[0]["text"]))
        (fits,), (cut,) = (taught(prompter, peer, [judge_request(record("a"), 1, "t")], tokens) for tokens in (needed, needed - 1))
    assert fits.samples[0]["scores"] == [5, 5] and "truncated" not in fits.samples[0]
    assert cut.samples[0]["scores"] is None and cut.samples[0]["failure"] == "truncated"


@pytest.mark.parametrize(
    "command, settings, expected",
    [
        ("rft", ["rft.teacher.url=http://h/v1"], "name its model, rft.teacher.model"),
        ("ladder", ["rft.teacher.url=http://h/v1", "rft.teacher.model=m"], "Use `rlsys rft`"),
    ],
)
def test_settings_that_contradict_each_other(command, settings, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        require_consistent_settings(load_config(None, settings), command)
