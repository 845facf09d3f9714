"""From requests to prompts, batches and results: every sample is assigned to its request, with scores in the order shown."""

from __future__ import annotations

import pyarrow as pa
import pytest
from chat_templates import STYLES, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.chain import PROMPTS, SAMPLES, prompt_batch
from rlsys.data.records import Record
from rlsys.judging.requests import (
    JudgeRequest,
    JudgeResult,
    RenderedRequest,
    collect_results,
    judge_request,
    render_requests,
)
from rlsys.prompts.rendering import Prompter, hint_for

PROMPTER = Prompter(tokenizer_of(STYLES["chatml"]), "compact")
SCORES = PROMPTER.score_format
ROOMY = 10_000


def record(n: int, name: str = "r1", query: str = "Which?") -> Record:
    rewards = (1.0,) if n == 1 else tuple(float(i == n - 1) for i in range(n))
    return Record(name, "s", ({"role": "user", "content": query},), tuple(f"response-{i}" for i in range(n)), rewards)


def samples_for(batch_of_requests: pa.RecordBatch, **more: object) -> pa.RecordBatch:
    """Return SAMPLES for a batch of requests; each text contains its seed, and scores 1, 2, ... in the order shown."""
    rows = []
    for row in batch_of_requests.to_pylist():
        shown = PROMPTER.tokenizer.decode(row["prompt_token_ids"])
        n = sum(f"\n<{i}>" in shown for i in range(1, 10))
        box = "1" if n == 1 else ", ".join(str(i) for i in range(1, n + 1))
        for number, seed in enumerate(row["seeds"]):
            one = {"group": row["group"], "sample": number, "token_ids": [1, 2, 3], "logprobs": [-1.0, -0.5, -0.25]}
            one |= {"text": f"seed {seed}: {box_of(box)}", "finish_reason": "stop", "weight_version": 0, "certainty": None}
            rows.append(one | more)
    return pa.RecordBatch.from_pylist(rows, schema=SAMPLES)


def sampled(batch: list[RenderedRequest]) -> pa.RecordBatch:
    return prompt_batch([prompt for rendered in batch for prompt in rendered.asked])


def box_of(scores: str) -> str:
    return f"\\boxed{{{scores}}}"


def test_every_sample_has_its_own_seed_and_an_order_of_its_own() -> None:
    one = judge_request(record(4), 40, 7, "x")
    assert len(one.orders) == len(one.seeds) == len(set(one.seeds)) == 40
    assert all(sorted(order) == [0, 1, 2, 3] for order in one.orders) and len(set(map(tuple, one.orders))) > 10
    assert judge_request(record(4), 40, 7, "x") == one
    for other in (judge_request(record(4), 40, 8, "x"), judge_request(record(4), 40, 7, "y"), judge_request(record(4, "r2"), 40, 7, "x")):
        assert other.seeds != one.seeds and other.orders != one.orders


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_two_rounds_request_the_same_samples_as_one(n: int, first: int, second: int) -> None:
    whole, one, two = (
        judge_request(record(n), first + second, "k"),
        judge_request(record(n), first, "k"),
        judge_request(record(n), second, "k", first=first),
    )
    assert [*one.orders, *two.orders] == whole.orders and [*one.seeds, *two.seeds] == whole.seeds


def test_a_given_order_is_kept_and_seeds_still_differ() -> None:
    one = judge_request(record(3), 5, "k", order=(2, 0, 1), hinted=True)
    assert one.orders == [(2, 0, 1)] * 5 and len(set(one.seeds)) == 5 and one.hinted
    assert one.seeds == judge_request(record(3), 5, "k").seeds


@given(st.lists(st.permutations(range(3)), min_size=1, max_size=8))
def test_one_prompt_for_each_order_and_every_sample_in_one(orders: list[list[int]]) -> None:
    (rendered,) = render_requests([JudgeRequest(record(3), orders, range(len(orders)))], PROMPTER, ROOMY)
    assert len(rendered.prompts) == len({tuple(order) for order in orders})
    assert sorted(seed for prompt in rendered.prompts for seed in prompt.seeds) == list(range(len(orders)))
    for prompt in rendered.prompts:
        assert all(tuple(orders[seed]) == tuple(prompt.order) for seed in prompt.seeds)
        assert prompt.text == PROMPTER.render(record(3), prompt.order) and prompt.token_ids == PROMPTER.encode(prompt.text)


def test_the_hint_and_then_other_judgements_end_the_prompt() -> None:
    row, order, others = record(2), (1, 0), ["The second one, \\boxed{1, 9}."]
    by_hand = {
        (False, False): "",
        (True, False): hint_for(row, order),
        (False, True): PROMPTER.other_judgements(others),
        (True, True): f"{hint_for(row, order)}\n\n{PROMPTER.other_judgements(others)}",
    }
    for (hinted, told), end in by_hand.items():
        (rendered,) = render_requests([JudgeRequest(row, [order], [0], hinted, others if told else ())], PROMPTER, ROOMY)
        turn = PROMPTER.user_turn(row, order) + (f"\n\n{end}" if end else "")
        assert rendered.prompts[0].text == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
        assert ("Response 1 is the best one" in rendered.prompts[0].text) == hinted


def test_a_prompt_at_the_token_limit_is_used_and_a_longer_one_is_skipped() -> None:
    short, long = record(2), record(2, query="Which of the two?")
    (rendered,) = render_requests([judge_request(long, 9, "k")], PROMPTER, ROOMY)
    (length,) = {len(prompt.token_ids) for prompt in rendered.prompts}
    requests = [judge_request(long, 4, "k"), judge_request(short, 4, "k")]
    assert [each.skipped for each in render_requests(requests, PROMPTER, length)] == [None, None]
    first, second = render_requests(requests, PROMPTER, length - 1)
    assert first.skipped == f"its prompt has {length} tokens, more than {length - 1}" and second.skipped is None


def test_the_longest_prompt_decides_whether_a_request_is_skipped() -> None:
    """A hint is longer for place 10 than for place 9, so that the prompts of one request differ in length."""
    row = Record("r1", "s", ({"role": "user", "content": "?"},), tuple("abcdefghij"), (1.0, *[0.0] * 9))
    first, last = (0, *range(1, 10)), (*range(1, 10), 0)
    (rendered,) = render_requests([JudgeRequest(row, [first, last, first], [1, 2, 3], hinted=True)], PROMPTER, ROOMY)
    lengths = [len(prompt.token_ids) for prompt in rendered.prompts]
    assert lengths[1] == lengths[0] + 1
    (tight,) = render_requests([JudgeRequest(row, [first, last, first], [1, 2, 3], hinted=True)], PROMPTER, lengths[0])
    assert tight.skipped is not None


orders_of = st.integers(1, 3).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=5))


@given(st.lists(st.tuples(orders_of, st.booleans()), min_size=1, max_size=4), st.booleans())
def test_samples_are_assigned_to_their_requests(rows: list[tuple[list[list[int]], bool]], with_meta: bool) -> None:
    requests, seed = [], 0
    for number, (orders, _) in enumerate(rows):
        requests.append(JudgeRequest(record(len(orders[0]), f"r{number}"), orders, range(seed, seed + len(orders))))
        seed += len(orders)
    batch = [
        RenderedRequest(each.request, each.prompts, "too long" if skip else None)
        for each, (_, skip) in zip(render_requests(requests, PROMPTER, ROOMY), rows)
    ]
    batch_of_requests = sampled(batch)
    assert batch_of_requests.schema.equals(PROMPTS) and batch_of_requests["group"].to_pylist() == list(range(batch_of_requests.num_rows))
    seeds = [seed for seeds in batch_of_requests["seeds"].to_pylist() for seed in seeds]
    assert sorted(seeds) == [seed for each, (_, skip) in zip(requests, rows) if not skip for seed in each.seeds]
    metas = [seed / 2 for seed in seeds] if with_meta else None
    found = collect_results(batch, samples_for(batch_of_requests), metas, SCORES)
    assert [result.rendered for result in found] == batch
    for result, (orders, skip) in zip(found, rows):
        assert (result.samples == []) == skip
        assert result.prompt_tokens == (0 if skip else sum(len(prompt.token_ids) for prompt in result.rendered.prompts))
        for sample, order, seed in zip(result.samples, orders, result.rendered.request.seeds, strict=False):
            assert sample["text"].startswith(f"seed {seed}: ") and sample["order"] == list(order)
            assert sample["scores"] == list(range(1, len(order) + 1)) and "failure" not in sample
            assert sample.get("meta_reward") == (seed / 2 if with_meta else None)
        assert len(result.samples) == (0 if skip else len(orders))


def test_all_fields_of_a_sample() -> None:
    batch = list(render_requests([JudgeRequest(record(2), [(1, 0)], [5])], PROMPTER, ROOMY))
    plain = {"order": [1, 0], "scores": [1, 2], "logprob": -1.75, "tokens": 3, "text": "seed 5: \\boxed{1, 2}"}
    ((one,),) = [result.samples for result in collect_results(batch, samples_for(sampled(batch)), None, SCORES)]
    assert one == plain
    ((one,),) = [result.samples for result in collect_results(batch, samples_for(sampled(batch), certainty=0.5), [2.0], SCORES)]
    assert one == plain | {"certainty": 0.5, "meta_reward": 2.0}
    ((cut,),) = [result.samples for result in collect_results(batch, samples_for(sampled(batch), finish_reason="length"), None, SCORES)]
    assert cut == plain | {"scores": None, "failure": "truncated", "truncated": True}
    ((none,),) = [result.samples for result in collect_results(batch, samples_for(sampled(batch), text="2 to 1"), None, SCORES)]
    assert none == plain | {"scores": None, "failure": "no_box", "text": "2 to 1"}
    nothing = samples_for(sampled(batch), token_ids=[], logprobs=[], text="")
    ((empty,),) = [result.samples for result in collect_results(batch, nothing, None, SCORES)]
    assert empty == {"order": [1, 0], "scores": None, "failure": "no_box", "logprob": 0, "tokens": 0, "text": ""}


def answered(one: JudgeRequest) -> JudgeResult:
    batch = list(render_requests([one], PROMPTER, ROOMY))
    (found,) = collect_results(batch, samples_for(sampled(batch)), None, SCORES)
    return found


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_an_extended_result_equals_the_result_of_one_request(n: int, first: int, second: int) -> None:
    one, two = answered(judge_request(record(n), first, "k")), answered(judge_request(record(n), second, "k", first=first))
    both, whole = one.extended(two), answered(judge_request(record(n), first + second, "k"))
    assert both.samples == whole.samples and list(both.rendered.request.orders) == list(whole.rendered.request.orders)
    assert list(both.rendered.request.seeds) == list(whole.rendered.request.seeds)
    assert sorted(seed for prompt in both.rendered.prompts for seed in prompt.seeds) == sorted(whole.rendered.request.seeds)
    assert both.prompt_tokens == one.prompt_tokens + two.prompt_tokens
    assert len(one.samples) == first and len(two.samples) == second  # neither of the two has changed


def test_the_row_of_a_result() -> None:
    result = answered(judge_request(record(2), 3, "k", order=(0, 1)))
    length = len(result.rendered.prompts[0].token_ids)
    row = result.row()
    assert row == {"id": "r1", "source": "s", "samples": result.samples, "tokens": 9, "prompt_tokens": length}
    assert [set(one) ^ set(two) for one, two in zip(result.row(text=False)["samples"], result.samples)] == [{"text"}] * 3
    (skipped,) = render_requests([judge_request(record(2), 3, "k")], PROMPTER, 1)
    row = JudgeResult(skipped).row()
    assert row == {"id": "r1", "source": "s", "samples": [], "tokens": 0, "prompt_tokens": 0, "skipped": skipped.skipped}


def test_too_few_samples_are_an_error() -> None:
    batch = list(render_requests([judge_request(record(2), 3, "k", order=(0, 1))], PROMPTER, ROOMY))
    with pytest.raises(KeyError):
        collect_results(batch, samples_for(sampled(batch)).slice(0, 2), None, SCORES)
