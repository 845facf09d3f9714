"""Sampling plans of the strategies, against the requirements in their papers."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from rlsys.data.records import Record
from rlsys.judging.requests import JudgeResult, render_requests
from rlsys.judging.sampling_plans import sampling_plan
from rlsys.judging.voting import Options, find_strategy
from rlsys.prompts.rendering import Prompter

PAIR = Record("a", "t", ({"role": "user", "content": "q"},), ("x", "y"), (1.0, 0.0))
SINGLE = Record("b", "t", ({"role": "user", "content": "q"},), ("x",), (1.0,))


@pytest.fixture(scope="module")
def prompter(tiny_model):
    return Prompter(AutoTokenizer.from_pretrained(tiny_model), "compact")


def answered(prompter, request, scores: list[list[int]], before: JudgeResult | None = None) -> JudgeResult:
    (rendered,) = render_requests([request], prompter, 10_000)
    samples = [
        {"order": list(order), "scores": given, "logprob": -1.0, "tokens": 9, "text": f"Scores: \\boxed{{{given[0]}}}"}
        for order, given in zip(request.orders, scores, strict=True)
    ]
    result = JudgeResult(rendered, samples)
    return before.extended(result) if before else result


def test_most_strategies_request_all_samples_at_once(prompter):
    plan = sampling_plan(find_strategy("vote"), 5, Options(), seed=3)
    first = plan(PAIR, None)
    assert len(first.orders) == len(set(first.seeds)) == 5
    assert plan(PAIR, answered(prompter, first, [[9, 1]] * 5)) is None


def test_adaptive_requests_the_same_samples_in_rounds_until_the_winner_is_clear(prompter):
    everything = sampling_plan(find_strategy("vote"), 9, Options(), seed=3)(PAIR, None)
    plan, result, rounds = sampling_plan(find_strategy("adaptive"), 9, Options(error_rate=0.05, round_size=2), seed=3), None, 0
    while (more := plan(PAIR, result)) is not None:
        best_first = [[9, 1] if list(order) == [0, 1] else [1, 9] for order in more.orders]
        result, rounds = answered(prompter, more, best_first, result), rounds + 1
    # With two responses and unanimous samples, docs/voting.md says, it stops after 6.
    assert (rounds, len(result.samples)) == (3, 6)
    assert result.rendered.request.orders == everything.orders[:6] and result.rendered.request.seeds == everything.seeds[:6]
    assert sorted(seed for prompt in result.rendered.prompts for seed in prompt.seeds) == sorted(result.rendered.request.seeds)

    result, rounds = None, 0
    while (more := plan(PAIR, result)) is not None:
        result, rounds = answered(prompter, more, [[5, 5]] * len(more.orders), result), rounds + 1
    assert (rounds, len(result.samples)) == (5, 9), "nothing but ties: all nine, the last round shorter"


def test_adaptive_requests_all_samples_of_a_single_response(prompter):
    plan, result = sampling_plan(find_strategy("adaptive"), 4, Options(), seed=3), None
    while (more := plan(SINGLE, result)) is not None:
        result = answered(prompter, more, [[1]] * len(more.orders), result)
    assert len(result.samples) == 4


def test_a_synthesis_prompt_contains_the_other_judgements_in_their_order(prompter):
    plan = sampling_plan(find_strategy("synthesis"), 3, Options(), seed=3)
    first = plan(PAIR, None)
    assert len(first.orders) == 2 and first.orders[0] == first.orders[1] and not first.others
    result = answered(prompter, first, [[9, 1], [2, 8]])
    last = plan(PAIR, result)
    assert list(last.orders) == [first.orders[0]] and list(last.others) == [sample["text"] for sample in result.samples]
    assert last.seeds[0] not in first.seeds
    (rendered,) = render_requests([last], prompter, 10_000)
    text = rendered.prompts[0].text
    assert text.index("Judgement 1:") < text.index("Judgement 2:") and text.startswith(result.rendered.prompts[0].text[:80])
    assert "boxed{9}" in text and "\\boxed{9}" not in text, "what others wrote is no score of one's own"
    assert plan(PAIR, answered(prompter, last, [[9, 1]], result)) is None
