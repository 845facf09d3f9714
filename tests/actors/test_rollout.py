"""The rollout actor samples from the model's distribution: a real vLLM engine in a real Ray actor, against transformers."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.rollout.rollout import RolloutActor
from rlsys.config.schema import Rollout
from rlsys.data.chain import PROMPTS, SAMPLES

WAIT_S = 600
TEXTS = ["Which response is better?", "user: count the birds\nassistant: " * 5, "7"]


@pytest.fixture(scope="module")
def reference(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def sample(engines, tokenizer):
    """sample(seeds of every prompt, temperature, ...) -> rows; all TEXTS in one batch unless some are given."""

    def call(seeds, temperature, top_p=1.0, max_tokens=24, prompts=TEXTS, engine=0):
        rows = [{"group": i, "prompt_token_ids": tokenizer.encode(text), "seeds": seeds} for i, text in enumerate(prompts)]
        batch = pa.RecordBatch.from_pylist(rows, schema=PROMPTS)
        answer = ray.get(engines.actors[engine].generate.remote(batch, temperature, top_p, max_tokens), timeout=WAIT_S)
        assert answer.schema == SAMPLES
        return answer.to_pylist()

    return call


def logits_of(model, prompt, tokens):
    """Logits that predict each of `tokens` after `prompt`."""
    with torch.no_grad():
        return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]


def test_an_engine_describes_itself(engines):
    for name, found in zip(engines.names, engines.descriptions, strict=True):
        assert found["name"] == name and found["device"] in ("cpu", "cuda") and found["kv_blocks"] > 0
    assert len({tuple(found["cores"]) for found in engines.descriptions}) == 2, "two engines of one machine hold different cores"


def test_an_engine_computes_with_as_many_threads_as_it_was_given(engines):
    """Two threads on one core would wait for each other at every step."""
    assert [found["threads"] for found in engines.descriptions] == [[1], [1]]


def test_the_engine_writes_to_its_log(engines):
    assert "Initializing a V1 LLM engine" in (engines.logs / "rollout-0.log").read_text()


def test_greedy_equals_transformers_token_by_token(sample, reference, tokenizer):
    for text, row in zip(TEXTS, sample([0], 0.0), strict=True):
        prompt = tokenizer.encode(text)
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        assert row["token_ids"] == expected
        assert row["weight_version"] == 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_those_at_the_sampling_temperature(sample, reference, tokenizer, temperature):
    for row in sample([11, 12], temperature):
        logits = logits_of(reference, tokenizer.encode(TEXTS[row["group"]]), row["token_ids"])
        expected = torch.log_softmax(logits / temperature, -1)[range(len(row["token_ids"])), row["token_ids"]]
        torch.testing.assert_close(torch.tensor(row["logprobs"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_self_certainty_is_the_model_s_own_whatever_the_temperature(sample, reference, tokenizer, temperature):
    assert all(row["certainty"] is None for row in sample([1], temperature, max_tokens=2))
    for row in sample([11, 12], temperature, engine=1):
        logprobs = logits_of(reference, tokenizer.encode(TEXTS[row["group"]]), row["token_ids"]).log_softmax(-1)
        vocabulary = logprobs.shape[1]
        assert row["certainty"] == pytest.approx(-(logprobs + math.log(vocabulary)).mean().item(), rel=1e-4, abs=1e-5)


def test_a_seed_fixes_its_sample_whatever_runs_beside_it(sample):
    together = sample([5, 6, 7], 1.0)
    again = sample([7, 5], 1.0)
    other_engine = sample([5], 1.0, engine=1, prompts=TEXTS[:1])
    tokens = {(row["group"], seed): row["token_ids"] for row, seed in zip(together, [5, 6, 7] * 3, strict=True)}
    assert [row["token_ids"] for row in again] == [tokens[group, seed] for group in range(3) for seed in (7, 5)]
    assert other_engine[0]["token_ids"] == tokens[0, 5]
    assert len({tuple(each) for each in tokens.values()}) == 9


def test_samples_follow_the_model_s_distribution(sample, reference, tokenizer):
    """First tokens of 256 samples: their mean log-probability is the negative entropy, within 5 standard errors."""
    rows = sample(list(range(256)), 1.0, max_tokens=1, prompts=TEXTS[:1])
    logprobs = torch.log_softmax(logits_of(reference, tokenizer.encode(TEXTS[0]), [0])[0], -1)
    probabilities = logprobs.exp()
    mean = (probabilities * logprobs).sum()
    spread = ((probabilities * logprobs**2).sum() - mean**2).sqrt()
    found = torch.tensor([row["logprobs"][0] for row in rows]).mean()
    assert abs(found - mean) < 5 * spread / 256**0.5


def test_rows_come_ordered_by_group_and_sample(sample):
    assert [(row["group"], row["sample"]) for row in sample([1, 2], 1.0)] == [(group, i) for group in range(3) for i in range(2)]


def test_a_finished_sample_ends_with_the_end_token_and_its_text_leaves_it_out(sample, tokenizer):
    rows = sample(list(range(40)), 1.0, max_tokens=96)
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert stopped and len(stopped) < len(rows)
    for row in rows:
        assert (row["token_ids"][-1] == tokenizer.eos_token_id) == (row["finish_reason"] == "stop")
        assert tokenizer.eos_token_id not in row["token_ids"][:-1]
        assert len(row["logprobs"]) == len(row["token_ids"]) and (row["finish_reason"] == "stop" or len(row["token_ids"]) == 96)
        assert row["text"] == tokenizer.decode(row["token_ids"], skip_special_tokens=True) and tokenizer.eos_token not in row["text"]


def test_top_p_keeps_to_the_nucleus(sample, reference, tokenizer):
    for row in sample([3], 1.0, top_p=0.2):
        probabilities = logits_of(reference, tokenizer.encode(TEXTS[row["group"]]), row["token_ids"]).softmax(-1)
        for token, at in zip(row["token_ids"], probabilities, strict=True):
            assert at[at > at[token]].sum() < 0.2 + 1e-4


def test_a_prompt_too_long_is_named_with_the_limit(sample):
    with pytest.raises(ray.exceptions.RayTaskError, match=r"rollout-0: group 1: a prompt of \d+ tokens .* max_model_len=256"):
        sample([0], 1.0, prompts=["short", "word " * 300])


def test_aborting_ends_what_is_in_flight(engines, tokenizer):
    engine = engines.actors[0]
    rows = [{"group": 0, "prompt_token_ids": tokenizer.encode("go on"), "seeds": list(range(200))}]
    pending = engine.generate.remote(pa.RecordBatch.from_pylist(rows, schema=PROMPTS), 1.0, 1.0, 200)
    while not ray.get(engine.in_flight.remote(), timeout=WAIT_S):
        pass
    ray.get(engine.abort.remote(), timeout=WAIT_S)
    with pytest.raises(ray.exceptions.RayTaskError, match="rollout-0: samples were aborted"):
        ray.get(pending, timeout=WAIT_S)
    assert ray.get(engine.in_flight.remote(), timeout=WAIT_S) == 0


def test_an_engine_that_cannot_start_is_named_with_the_end_of_its_log(ray_session, tmp_path):
    actor = ray.remote(RolloutActor).options(num_cpus=0)
    broken = actor.remote("rollout-broken", str(tmp_path / "nothing-here"), Rollout(), "float32", 256, 0, "cpu", str(tmp_path), 1)
    complaint = r"rollout-broken: the engine did not start(.|\n)*Last lines of .*rollout-broken.log"
    with pytest.raises(ray.exceptions.RayTaskError, match=complaint):
        ray.get(broken.ready.remote(), timeout=WAIT_S)
    ray.kill(broken)


def test_calls_that_overlap_each_get_their_own_log_probabilities(engines, sample, reference, tokenizer):
    prompt = tokenizer.encode(TEXTS[0])
    actor = engines.actors[0]
    lengths = [40, 3, 20, 1, 33, 8, 2, 40, 5, 17, 29, 4]
    batches = [
        pa.RecordBatch.from_pylist([{"group": 0, "prompt_token_ids": prompt, "seeds": [i]}], schema=PROMPTS) for i in range(len(lengths))
    ]
    calls = [actor.generate.remote(batch, 0.8, 1.0, length) for batch, length in zip(batches, lengths, strict=True)]
    for answer, length in zip(ray.get(calls, timeout=WAIT_S), lengths, strict=True):
        (row,) = answer.to_pylist()
        logprobs = torch.log_softmax(logits_of(reference, prompt, row["token_ids"]) / 0.8, -1)
        wanted = logprobs.gather(1, torch.tensor(row["token_ids"])[:, None])[:, 0]
        assert len(row["logprobs"]) == len(row["token_ids"]) <= length
        torch.testing.assert_close(torch.tensor(row["logprobs"]), wanted, atol=2e-3, rtol=2e-3)
