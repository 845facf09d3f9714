"""FLOPs against torch's counter of an executed forward pass."""

from __future__ import annotations

import pytest
import torch
from learner_batches import learner_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from rlsys.data.chain import LearnerBatch
from rlsys.models.flops import forward_flops, shape_of
from rlsys.models.packing import plan_micro_batches

PROMPT, OUTPUT = 24, 9


def batch(samples: int) -> LearnerBatch:
    rows = [
        {
            "group": 0,
            "prompt_token_ids": list(range(1, PROMPT + 1)),
            "token_ids": [(7 * i + 3 * sample) % 50 + 1 for i in range(OUTPUT)],
            "rollout_logprobs": [-1.0] * OUTPUT,
            "advantage": 1.0,
        }
        for sample in range(samples)
    ]
    return learner_batch(rows)


def test_one_row_equals_torchs_count(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    (part,) = plan_micro_batches(batch(1), 1, 1000, packing=False)[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.get_decoder()(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False)
    shape = shape_of(model)
    length = PROMPT + OUTPUT - 1
    # torch counts scores above the diagonal as well, as eager attention computes them; it was given no output layer.
    never_looked_at = 4 * shape.width * shape.layers * (length**2 - length * (length + 1) / 2)
    counted = forward_flops(shape, [part]) + never_looked_at - 2 * shape.output * OUTPUT
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)


def test_a_shared_prompt_counts_once(tiny_model) -> None:
    shape = shape_of(AutoModelForCausalLM.from_pretrained(tiny_model))
    alone, shared, apart = (
        forward_flops(shape, plan_micro_batches(batch(samples), 1, 10_000, packing)[0])
        for samples, packing in ((1, True), (4, True), (4, False))
    )
    prompt = 2 * shape.linear * PROMPT + 4 * shape.width * shape.layers * PROMPT * (PROMPT + 1) / 2
    assert apart == pytest.approx(4 * alone)
    assert shared == pytest.approx(4 * alone - 3 * prompt)
