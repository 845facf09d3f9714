"""The formulas for activations and logits, against the tensors that autograd saves and against allocations of real passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from launch.bench.allocations import Allocations
from rlsys.config.schema import Config, Learner
from rlsys.data.chain import LearnerBatch, LearnerRow
from rlsys.models import policy
from rlsys.models.packing import MicroBatch, plan_micro_batches
from rlsys.models.policy import Policy
from rlsys.planning.activations import activation_bytes, logits_bytes, recomputed_bytes, softmax_entries
from rlsys.planning.batch import step_of
from rlsys.planning.shape import shape_of

PROMPT, SAMPLES, COMPLETION = 560, 3, 40
SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}


def build(kind: str, layers: int, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**SIZES, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": layers, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def one_group(packing: bool = True) -> MicroBatch:
    random = np.random.default_rng(0)
    prompt = random.integers(3, 500, size=PROMPT)
    rows = [LearnerRow(0, sample, random.integers(3, 500, size=COMPLETION), [-6.0] * COMPLETION, 1.0) for sample in range(SAMPLES)]
    ((part, *rest),) = plan_micro_batches(LearnerBatch.of([prompt], rows), 1, 100_000, packing)
    assert not rest
    return part


def saved_bytes(model: PreTrainedModel, part: MicroBatch, learner: Learner) -> int:
    """Return the bytes that autograd saves in a forward pass, weights excluded."""
    ours = Policy(model, learner.packing, learner.layers).train()
    if learner.activation_checkpointing:
        ours.enable_activation_checkpointing()
    weights = {parameter.untyped_storage().data_ptr() for parameter in ours.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = ours(part, with_entropy=True)
    total = sum(storage.nbytes() for storage in kept.values())
    del answer
    return total


def settings(**learner: Any) -> Config:
    return Config.model_validate(
        {
            "prompt": {"max_tokens": PROMPT},
            "rollout": {"max_tokens": COMPLETION},
            "rl": {"group_size": SAMPLES, "prompts_per_step": 1},
            "learner": {"token_budget": 100_000, "attention": "blocks", **learner},
        }
    )


def one_layer(kind: str, config: Config, width: int = 2) -> float:
    """Return the plan's bytes of one more layer."""
    step, pairs = step_of(config, 1), softmax_entries(PROMPT, SAMPLES, COMPLETION)
    one, two = (activation_bytes(shape_of(build(kind, n), ""), config.learner, "blocks", width, step, pairs) for n in (1, 2))
    return two - one


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        *((kind, layers) for kind in ("llama", "qwen3", "gemma2") for layers in ("fused", "plain")),
        ("gemma3_text", "fused"),
        ("olmo2", "fused"),
    ],
)
def test_what_a_layer_keeps(kind: str, layers: str) -> None:
    config = settings(layers=layers)
    step, part = step_of(config, 1), one_group()
    assert step.micro_batch_tokens == part.tokens and step.scored_tokens == len(part.target)
    measured = (saved_bytes(build(kind, 4), part, config.learner) - saved_bytes(build(kind, 2), part, config.learner)) / 2
    assert measured == pytest.approx(one_layer(kind, config), rel=0.005)


def test_in_float32() -> None:
    config, part = settings(), one_group()
    models = [build("llama", layers, torch.float32) for layers in (4, 2)]
    measured = (saved_bytes(models[0], part, config.learner) - saved_bytes(models[1], part, config.learner)) / 2
    assert measured == pytest.approx(one_layer("llama", config, 4), rel=0.005)


def test_with_checkpointing_a_layer_keeps_its_input() -> None:
    config, part = settings(activation_checkpointing=True), one_group()
    measured = (saved_bytes(build("llama", 4), part, config.learner) - saved_bytes(build("llama", 2), part, config.learner)) / 2
    assert measured == pytest.approx(one_layer("llama", config), rel=0.005)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_allocates_that_much(checkpointing: bool) -> None:
    """Peak of a forward and backward pass, weights' gradients apart, which the ledger counts on their own."""
    config, part = settings(activation_checkpointing=checkpointing), one_group()
    ours = Policy(build("llama", 6)).train()
    if checkpointing:
        ours.enable_activation_checkpointing()
    with Allocations() as allocations:
        ours(part, with_entropy=True).logprob.sum().backward()
    gradients = sum(parameter.grad.nbytes for parameter in ours.parameters())
    step, shape = step_of(config, 1), shape_of(ours.model, "")
    expected = activation_bytes(shape, config.learner, "blocks", 2, step, softmax_entries(PROMPT, SAMPLES, COMPLETION))
    pairs = softmax_entries(PROMPT, SAMPLES, COMPLETION)
    expected += max(logits_bytes(shape, policy.CPU_CHUNK, 2, step), recomputed_bytes(shape, config.learner, "blocks", 2, step, pairs))
    assert expected * 0.85 < allocations.peak < expected * 1.15 + gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_output_layer(dtype: torch.dtype) -> None:
    config = settings()
    model = build("llama", 1, dtype, vocab_size=65_536)
    head, tokens = Policy(model).model.get_output_embeddings(), step_of(config, 1).scored_tokens
    hidden = torch.randn(tokens, 128, dtype=dtype)
    with Allocations() as allocations:
        head(hidden, torch.arange(tokens), 1.0, True)
    expected = logits_bytes(shape_of(model, ""), policy.CPU_CHUNK, dtype.itemsize, step_of(config, 1))
    assert allocations.peak == pytest.approx(expected, rel=0.15)


def test_padded_rows_are_counted_as_rows() -> None:
    config = settings(packing=False)
    step, part = step_of(config, 1), one_group(packing=False)
    assert (step.micro_batch_tokens, step.scored_tokens) == (part.tokens, len(part.target))
    assert part.tokens == SAMPLES * (PROMPT + COMPLETION - 1)
