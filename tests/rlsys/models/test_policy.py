"""Packed and plain policies against a slow independent reference: each row alone, full logits, full softmax.

Both compute in float64, where rounding is about 1e-12: larger differences are errors.
"""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_batches import learner_batch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SeedOssConfig,
)

import rlsys.models.policy
import rlsys.models.tree_layout
from rlsys.algorithms.grpo import LossInputs, grpo_loss
from rlsys.data.chain import LearnerBatch
from rlsys.models import zoo
from rlsys.models.loading import ModelError
from rlsys.models.packing import plan_micro_batches
from rlsys.models.policy import LogprobHead, OutputTransform, Policy, load_policy

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # far from uniform, so that attention matters
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, pad_token_id=None)),
    "llama_untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False, pad_token_id=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False)),
}
TEMPERATURE = 0.7
EXACT = 1e-10
"""Absolute and relative tolerance in float64: a hundred times the rounding observed here."""


class ExactRMSNorm(nn.Module):
    """The models' norm in the precision of its input; transformers rounds to float32 inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt())


def build(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().train().to(dtype)
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            module.__class__ = ExactRMSNorm
    return model


def make_batch(opening: int, shape: list[tuple[int, list[int]]], seed: int = 0) -> LearnerBatch:
    """Build rows of random tokens; `shape` has, per group, the prompt's length beyond the common prefix and its completions' lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(0, SIZES["vocab_size"], (count,), generator=generator).tolist()

    start, rows = draw(opening), []
    for group, (rest, lengths) in enumerate(shape):
        prompt = start + draw(rest)
        for length in lengths:
            row = {"group": group, "prompt_token_ids": prompt, "token_ids": draw(length)}
            row["rollout_logprobs"] = (-3 - torch.rand(length, generator=generator)).tolist()
            row["advantage"] = torch.randn((), generator=generator).item()
            rows.append(row)
    return learner_batch(rows)


def objective(logprob: torch.Tensor, rollout: torch.Tensor, advantage: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute a GRPO loss whose reference is a fixed function of the rollout, so that every term has a gradient."""
    return grpo_loss(LossInputs(logprob, rollout, advantage, weight, reference_logprob=rollout - 0.3, beta=0.1))[0]


def slow(model: PreTrainedModel, batch: LearnerBatch) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    """Return log-probabilities and entropies per row, and the loss; gradients are left on the model."""
    logprobs, entropies, total = [], [], 0.0
    for row in batch.to_pylist():
        prompt, tokens = row["prompt_token_ids"], torch.tensor(row["token_ids"])
        logits = model(input_ids=torch.tensor([prompt + row["token_ids"]])).logits[0, len(prompt) - 1 : -1]
        full = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        logprob = full[torch.arange(len(tokens)), tokens]
        loss = objective(
            logprob, torch.tensor(row["rollout_logprobs"]), torch.tensor(row["advantage"]), torch.tensor(1 / (batch.num_rows * len(tokens)))
        )
        loss.backward()
        total += loss.item()
        logprobs.append(logprob.detach())
        entropies.append(-(full.exp() * full).sum(-1).detach())
    return logprobs, entropies, total


def fast(policy: Policy, batch: LearnerBatch, ranks: int = 1, budget: int = 10_000) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    """Compute the same from micro-batches; the ranks take turns on one model, so their gradients add up as in an all-reduce."""
    logprobs = [torch.empty(0)] * batch.num_rows
    entropies = list(logprobs)
    total = 0.0
    for share in plan_micro_batches(batch, ranks, budget, policy.packing):
        for micro in share:
            out = policy(micro, TEMPERATURE, with_entropy=True)
            loss = objective(out.logprob, micro.rollout_logprob, micro.advantage, micro.weight)
            loss.backward()
            total += loss.item()
            for row in micro.sample.unique().tolist():
                logprobs[row] = out.logprob[micro.sample == row].detach()
                entropies[row] = out.entropy[micro.sample == row]
    return logprobs, entropies, total


def assert_equal_to_slow(
    name: str,
    batch: LearnerBatch,
    packing: bool,
    checkpointing: bool = False,
    ranks: int = 1,
    budget: int = 10_000,
    layers: str = "fused",
) -> None:
    model = build(name)
    policy = Policy(copy.deepcopy(model), packing, layers)
    if checkpointing:
        policy.enable_activation_checkpointing()
    policy.train()
    expected, found = slow(model, batch), fast(policy, batch, ranks, budget)
    torch.testing.assert_close(torch.cat(found[0]), torch.cat(expected[0]), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(torch.cat(found[1]), torch.cat(expected[1]), rtol=EXACT, atol=EXACT)
    assert found[2] == pytest.approx(expected[2], rel=EXACT, abs=EXACT)
    ours = dict(policy.model.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(ours[key].grad, parameter.grad, rtol=EXACT, atol=EXACT, msg=lambda text, key=key: f"{key}: {text}")


TREE = make_batch(7, [(5, [3, 9, 1, 8]), (0, [4, 4]), (11, [6]), (2, [1, 1, 2])])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logprobs_and_gradients_equal_the_reference(name: str, packing: bool, checkpointing: bool) -> None:
    assert_equal_to_slow(name, TREE, packing, checkpointing)


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_without_gradients_returns_the_same(name: str) -> None:
    # It attends by PyTorch's fused kernel.
    policy = Policy(build(name))
    ((micro,),) = plan_micro_batches(TREE, 1, 10_000)
    with torch.no_grad():
        found = policy(micro).logprob
    torch.testing.assert_close(found, policy(micro).logprob, rtol=EXACT, atol=EXACT)


def test_compiled_layers_compute_the_same() -> None:
    assert_equal_to_slow("llama", TREE, packing=True, budget=40, layers="compiled")


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("ranks", "budget"), [(1, 30), (2, 10_000), (2, 40), (3, 1), (3, 64)])
def test_loss_and_gradient_do_not_depend_on_the_split(packing: bool, ranks: int, budget: int) -> None:
    assert_equal_to_slow("llama", TREE, packing, ranks=ranks, budget=budget)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_other_implementations(name: str, ranks: int) -> None:
    # Forward only: PyTorch's backward pass of it is for cards. What is compared is the mask that it is given.
    model = build(name)
    blocks, flex = (Policy(copy.deepcopy(model), attention=attention) for attention in ("blocks", "flex"))
    for share in plan_micro_batches(TREE, ranks, 10_000):
        for micro in share:
            with torch.no_grad():
                torch.testing.assert_close(flex(micro).logprob, blocks(micro).logprob, rtol=EXACT, atol=EXACT)
    with pytest.raises(ValueError, match="learner.attention=blocks"):
        flex(micro)


group_shapes = st.tuples(st.integers(0, 12), st.lists(st.integers(1, 14), min_size=1, max_size=5))


@given(st.integers(1, 10), st.lists(group_shapes, min_size=1, max_size=4), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_random_trees_equal_the_reference(opening: int, shape: list[tuple[int, list[int]]], seed: int) -> None:
    assert_equal_to_slow("llama", make_batch(opening, shape, seed), packing=True)


def test_prompts_without_a_common_prefix() -> None:
    assert_equal_to_slow("llama", make_batch(0, [(5, [3, 2]), (6, [1, 8])]), packing=True)


def test_long_nodes_cut_into_chains_and_many_chunks_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.tree_layout, "MAX_NODE", 3)
    monkeypatch.setattr(rlsys.models.policy, "CPU_CHUNK", 500)
    assert_equal_to_slow("llama", TREE, packing=True)


@pytest.mark.parametrize("packing", [True, False])
def test_a_dummy_gives_every_parameter_a_gradient_of_zero(packing: bool) -> None:
    policy = Policy(build("llama"), packing)
    _, (dummy,) = plan_micro_batches(make_batch(2, [(1, [2])]), 2, 100, packing)
    out = policy(dummy, with_entropy=True)
    loss, metrics = grpo_loss(LossInputs(out.logprob, dummy.rollout_logprob, dummy.advantage, dummy.weight, beta=0, entropy=out.entropy))
    loss.backward()
    assert metrics["tokens"] == 0
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_full_logits_are_never_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.policy, "CPU_CHUNK", 8_000)
    torch.manual_seed(0)
    vocab = 5_000
    policy = Policy(LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": vocab}, pad_token_id=None)))
    ((micro,),) = plan_micro_batches(make_batch(4, [(4, [25] * 4)]), 1, 1000)
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and SIZES["hidden_size"] not in out.shape:
                biggest = max(biggest, out.numel())
            return out

    with Watch():
        policy(micro).logprob.sum().backward()
    assert biggest <= 20_000  # of 500,000


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e-7), (torch.bfloat16, 1e-3)])
def test_rounding_is_no_worse_than_in_the_plain_loop(dtype: torch.dtype, unit: float) -> None:
    def errors(logprobs: list[torch.Tensor], model: PreTrainedModel) -> list[float]:
        """Return the mean error against float64 of log-probabilities, and of gradients relative to their parameters' largest."""
        of_gradients = [
            (found.grad - wanted.grad).abs().mean() / wanted.grad.abs().max()
            for found, wanted in zip(model.parameters(), exact.parameters(), strict=True)
        ]
        return [(torch.cat(logprobs) - torch.cat(wanted)).abs().mean().item(), torch.stack(of_gradients).mean().item()]

    exact, plain, policy = build("llama"), build("llama", dtype), Policy(build("llama", dtype))
    wanted, _, _ = slow(exact, TREE)
    expected, found = errors(slow(plain, TREE)[0], plain), errors(fast(policy, TREE)[0], policy.model)
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < ours < 1.5 * theirs + unit


def test_the_wrapped_model_still_returns_logits_and_saves_unchanged(tmp_path) -> None:
    model = build("llama").eval()
    ids = torch.arange(12)[None]
    before, keys = model(ids).logits.detach(), list(model.state_dict())
    policy = Policy(model, packing=False)
    torch.testing.assert_close(policy.model(ids).logits, before)
    assert list(policy.model.state_dict()) == keys
    policy.model.save_pretrained(tmp_path)
    again = load_policy(tmp_path, torch.float64)
    assert again.training
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    torch.testing.assert_close(torch.cat(fast(again, TREE)[0]), torch.cat(fast(policy, TREE)[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packing", [True, False])
def test_nothing_is_random_in_training(packing: bool) -> None:
    # Seed-OSS drops out by a function in its layers, OPT leaves whole layers out, too.
    sizes = SIZES | {"max_position_embeddings": 256}
    seed_oss = AutoModelForCausalLM.from_config(SeedOssConfig(**sizes, residual_dropout=0.5, attention_dropout=0.5, pad_token_id=None))
    opt = AutoModelForCausalLM.from_config(
        OPTConfig(vocab_size=61, hidden_size=48, ffn_dim=80, num_hidden_layers=4, num_attention_heads=6, dropout=0.5, layerdrop=0.5)
    )
    for model in (seed_oss, opt):
        policy = Policy(model, packing)
        policy.enable_activation_checkpointing()
        policy.train()
        ((micro,),) = plan_micro_batches(TREE, 1, 10_000, packing)
        first, second = policy(micro).logprob, policy.eval()(micro).logprob
        assert first.requires_grad
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_activation_checkpointing_recomputes_layers(name: str) -> None:
    policy = Policy(build(name)).train()
    ((micro,),) = plan_micro_batches(TREE, 1, 10_000)
    calls = []
    policy.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    policy(micro).logprob.sum().backward()
    assert len(calls) == 1
    policy.enable_activation_checkpointing()
    policy.train()
    policy(micro).logprob.sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "output", [OutputTransform(), OutputTransform(scale=0.3), OutputTransform(cap=1.5), OutputTransform(inward=0.7, scale=2.5, cap=4.0)]
)
def test_scaled_capped_biased_logits_equal_the_formula(bias: bool, output: OutputTransform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.policy, "CPU_CHUNK", 60)
    torch.manual_seed(0)
    head = nn.Linear(8, 37, bias=bias, dtype=torch.float64)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    target, upstream = torch.randint(37, (11,)), torch.randn(11, dtype=torch.float64)
    logits = output.scale * head(output.inward * hidden)
    logits = logits if output.cap is None else output.cap * torch.tanh(logits / output.cap)
    full = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    found, entropy = LogprobHead(head, output)(hidden, target, TEMPERATURE, with_entropy=True)
    expected = full[torch.arange(11), target]
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1), rtol=EXACT, atol=EXACT)
    asked = [hidden, *head.parameters()]
    for ours, theirs in zip(torch.autograd.grad(found, asked, upstream), torch.autograd.grad(expected, asked, upstream), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["Gemma 2", "Granite", "Cohere 2"])
def test_the_output_layers_scale_and_cap_are_inferred_from_the_model(name: str) -> None:
    (family,) = (family for family in zoo.FAMILIES if family.name == name)
    model = zoo.build(family)
    config = model.config
    found = Policy(model).model.get_output_embeddings().output
    cap = getattr(config, "final_logit_softcapping", None)
    scale = 1 / getattr(config, "logits_scaling", 1) * getattr(config, "logit_scale", 1)
    assert (cap, scale) != (None, 1)
    assert found.cap == (None if cap is None else pytest.approx(cap, rel=1e-6))
    assert found.scale == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "packing", "reason"),
    [
        ("GPT-Neo", True, "does not use transformers' attention interface"),
        ("Falcon 7B", True, "does not use transformers' attention interface"),
        ("Mamba", True, "does not use transformers' attention interface"),
        ("LFM2", True, "mixes tokens other than by attention"),
        ("Inkling", True, "position_bias"),
        ("Llama, dynamic rope", True, "rope_type dynamic"),
        ("Llama, dynamic rope", False, "rope_type dynamic"),
    ],
)
def test_unsupported_models_are_refused(name: str, packing: bool, reason: str) -> None:
    (family,) = (family for family in zoo.FAMILIES if family.name == name)
    with pytest.raises(ModelError, match=reason):
        Policy(zoo.build(family), packing)


def test_a_micro_batch_of_the_other_kind_is_refused() -> None:
    ((plain,),) = plan_micro_batches(TREE, 1, 10_000, packing=False)
    with pytest.raises(ValueError, match="pass the same packing"):
        Policy(build("llama"))(plain)


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_missing_weights_are_refused(tmp_path, kind: type[PreTrainedModel]) -> None:
    """A folder without an output layer would load with a random one, shared by the policy and the reference."""
    kind(LlamaConfig(**SIZES, tie_word_embeddings=False)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"its files lack lm_head\.weight, which would be initialised randomly"):
        load_policy(tmp_path, torch.float32)


@pytest.mark.parametrize("named", [-1, SIZES["vocab_size"], None, 3])
def test_the_padding_token_is_within_the_vocabulary(named: int | None) -> None:
    """Some configs have -1."""
    model = build("llama")
    model.config.pad_token_id = named
    batch = make_batch(3, [(2, [5, 1, 3])])
    policy = Policy(model, packing=False)
    found = [policy(part).logprob for part in plan_micro_batches(batch, 1, 100, False, policy.pad_token_id)[0]]
    assert sum(len(part) for part in found) == 9 and policy.pad_token_id == (3 if named == 3 else 0)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model.layers.0.self_attn.q_proj.bias", True),  # a config without attention_bias
        ("model.layers.0.self_attn.q_norm.weight", True),
        ("model.layers.4.input_layernorm.weight", True),  # a layer more than num_hidden_layers
        ("lm_head.bias", True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),  # what transformers itself ignores
        ("v_head.summary.weight", False),
        ("model.visual.proj.weight", False),
    ],
)
def test_unused_weights_inside_the_model_are_refused(tmp_path, name: str, inside: bool) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(8)}, file, metadata={"format": "pt"})
    refused = pytest.raises(ModelError, match=rf"its files have {re.escape(name)}, for which the LlamaForCausalLM")
    with refused if inside else nullcontext():
        load_policy(tmp_path, torch.float32)
