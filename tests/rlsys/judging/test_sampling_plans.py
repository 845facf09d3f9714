"""What each strategy asks for next, row by row, against what its paper says it needs."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from rlsys.data.records import Record
from rlsys.judging.requests import Answer, questions
from rlsys.judging.sampling_plans import plan_for
from rlsys.judging.voting import Options, find
from rlsys.prompts.rendering import Prompter

PAIR = Record("a", "t", ({"role": "user", "content": "q"},), ("x", "y"), (1.0, 0.0))
SINGLE = Record("b", "t", ({"role": "user", "content": "q"},), ("x",), (1.0,))


@pytest.fixture(scope="module")
def prompter(tiny_model):
    return Prompter(AutoTokenizer.from_pretrained(tiny_model), "compact")


def answered(prompter, ask, scores: list[list[int]], before: Answer | None = None) -> Answer:
    (question,) = questions([ask], prompter, 10_000)
    samples = [
        {"order": list(order), "scores": given, "logprob": -1.0, "tokens": 9, "text": f"Scores: \\boxed{{{given[0]}}}"}
        for order, given in zip(ask.orders, scores, strict=True)
    ]
    answer = Answer(question, samples)
    return before.extended(answer) if before else answer


def test_most_strategies_ask_once_for_everything(prompter):
    plan = plan_for(find("vote"), 5, Options(), seed=3)
    first = plan(PAIR, None)
    assert len(first.orders) == len(set(first.seeds)) == 5
    assert plan(PAIR, answered(prompter, first, [[9, 1]] * 5)) is None


def test_adaptive_asks_for_the_same_samples_in_rounds_and_stops_when_the_winner_is_clear(prompter):
    everything = plan_for(find("vote"), 9, Options(), seed=3)(PAIR, None)
    plan, answer, rounds = plan_for(find("adaptive"), 9, Options(error_rate=0.05, round_size=2), seed=3), None, 0
    while (more := plan(PAIR, answer)) is not None:
        best_first = [[9, 1] if list(order) == [0, 1] else [1, 9] for order in more.orders]
        answer, rounds = answered(prompter, more, best_first, answer), rounds + 1
    # With two responses and unanimous samples, docs/voting.md says, it stops after 6.
    assert (rounds, len(answer.samples)) == (3, 6)
    assert answer.question.ask.orders == everything.orders[:6] and answer.question.ask.seeds == everything.seeds[:6]
    assert sorted(sample for prompt in answer.question.prompts for sample in prompt.samples) == list(range(6))

    answer, rounds = None, 0
    while (more := plan(PAIR, answer)) is not None:
        answer, rounds = answered(prompter, more, [[5, 5]] * len(more.orders), answer), rounds + 1
    assert (rounds, len(answer.samples)) == (5, 9), "nothing but ties: all nine, the last round shorter"


def test_adaptive_draws_everything_of_a_single_response(prompter):
    plan, answer = plan_for(find("adaptive"), 4, Options(), seed=3), None
    while (more := plan(SINGLE, answer)) is not None:
        answer = answered(prompter, more, [[1]] * len(more.orders), answer)
    assert len(answer.samples) == 4


def test_a_synthesis_reads_the_others_in_the_order_in_which_they_were_shown(prompter):
    plan = plan_for(find("synthesis"), 3, Options(), seed=3)
    first = plan(PAIR, None)
    assert len(first.orders) == 2 and first.orders[0] == first.orders[1] and not first.others
    answer = answered(prompter, first, [[9, 1], [2, 8]])
    last = plan(PAIR, answer)
    assert list(last.orders) == [first.orders[0]] and list(last.others) == [sample["text"] for sample in answer.samples]
    assert last.seeds[0] not in first.seeds
    (question,) = questions([last], prompter, 10_000)
    text = question.prompts[0].text
    assert text.index("Judgement 1:") < text.index("Judgement 2:") and text.startswith(answer.question.prompts[0].text[:80])
    assert "boxed{9}" in text and "\\boxed{9}" not in text, "what others wrote is no score of one's own"
    assert plan(PAIR, answered(prompter, last, [[9, 1]], answer)) is None
