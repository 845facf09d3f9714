"""The self-check passes correct models in every precision, and refuses incorrect ones, naming a setting that works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import rlsys.models.backbone
import rlsys.models.policy
import rlsys.models.tree_attention
from rlsys.models import fused_layers
from rlsys.models.backbone import Backbone
from rlsys.models.loading import ModelError
from rlsys.models.policy import OutputTransform
from rlsys.models.self_check import checked_policy, checked_scalar_model
from rlsys.models.tree_layout import TreeMask
from rlsys.models.zoo import FAMILIES, Family, build


def zoo(name: str, **settings: object) -> PreTrainedModel:
    (family,) = (family for family in FAMILIES if family.name == name)
    return build(family, **settings)


RIGHT = ["Llama 2", "Gemma 2, short window", "DeepSeek-V2", "DeepSeek-V3", "GPT-OSS", "Mixtral", "Phi-3"]


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_false_alarms(name: str, dtype: torch.dtype) -> None:
    model = zoo(name).to(dtype)
    bits = {key: value.clone() for key, value in model.state_dict().items()}
    policy, result = checked_policy(model, temperature=0.8, checkpointing=True)
    assert policy.packing
    assert policy.training
    assert 0 < result.logprob_error < 1e-4 < result.tolerance < 1e-3
    assert 0 < result.gradient_error < result.gradient_tolerance < 1e-2
    assert all(torch.equal(value, bits[key]) and value.dtype == bits[key].dtype for key, value in policy.model.state_dict().items())


def break_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.policy, "_fit_output", lambda *_: OutputTransform(scale=1.02))


def break_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeMask, "rows", lambda mask, *key: mask.layout.rows(*key))


def break_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rlsys.models.tree_attention.Scoring
    monkeypatch.setattr(rlsys.models.tree_attention, "Scoring", lambda scale, cap, sinks: plain(scale, None, sinks))


def break_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "_is_standard_norm", lambda module: hasattr(module, "variance_epsilon"))
    monkeypatch.setattr(fused_layers, "_norm", lambda module: lambda x: fused_layers._RmsNorm.apply(x, module.weight * 1.01, 1e-6))


def break_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlsys.models.backbone, "SIBLING_TOLERANCE", 1e9)


def break_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = rlsys.models.policy._ChosenLogprobs.backward

    def shorter(ctx: object, *gradients: torch.Tensor) -> tuple:
        hidden, weight, bias, *rest = backward(ctx, *gradients)
        return hidden, weight * 0.9, bias, *rest

    monkeypatch.setattr(rlsys.models.policy._ChosenLogprobs, "backward", staticmethod(shorter))


def break_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "train", nn.Module.train)


WRONG: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "a scale of the logits": ("Llama 2", break_scale, "No other setting"),
    "a window": ("Gemma 2, short window", break_window, "Set learner.packing=false, which passes"),
    "a cap on scores": ("Gemma 2", break_cap, "Set learner.packing=false, which passes"),
    "a norm": ("Llama 2", break_norms, "Set learner.layers=plain, which passes"),
    "samples that see each other": ("LFM2", break_siblings, "Set learner.packing=false, which passes"),
    "a gradient": ("Llama 2", break_gradient, "No other setting"),
    "dropout": ("Seed-OSS", break_eval, "No other setting"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_are_refused(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    name, break_it, advice = WRONG[kind]
    model = zoo(name, **({"attention_dropout": 0.0} if kind == "dropout" else {})).to(dtype)
    break_it(monkeypatch)
    with pytest.raises(ModelError, match=f"{type(model).__name__} with learner.packing=true.*differ.*{advice}"):
        checked_policy(model, temperature=0.8)


def test_rows_beyond_the_models_position_limit_are_refused() -> None:
    assert checked_policy(zoo("Phi-3, longrope"), longest=32)[1].passed
    with pytest.raises(ModelError, match="rows of 33 tokens.*up to 32.*prompt.max_tokens"):
        checked_policy(zoo("Phi-3, longrope"), longest=33)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scalar_model_is_checked_in_the_same_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> PreTrainedModel:
        sizes = {"vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = AutoConfig.for_model("mistral", **sizes, num_key_value_heads=2, sliding_window=4, num_labels=1, pad_token_id=0)
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).to(dtype)

    assert checked_scalar_model(model())[1].passed
    break_window(monkeypatch)
    with pytest.raises(ModelError, match="scores differ.*Set learner.packing=false"):
        checked_scalar_model(model())


def test_a_model_that_cannot_run_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo("Llama 2")
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", lambda *_, **__: (_ for _ in ()).throw(AssertionError("give it an image")))
        with pytest.raises(ModelError, match="LlamaForCausalLM: transformers itself cannot compute rows of text with it .give it"):
            checked_policy(model)
    monkeypatch.setattr(Backbone, "call", lambda *_: (_ for _ in ()).throw(AssertionError("no image")))
    with pytest.raises(ModelError, match="no image.*cannot be trained here"):
        checked_policy(model)


def test_rows_beyond_an_attention_selection_are_refused() -> None:
    """The selected tokens depend on the padded width; short rows pass either way."""
    model = zoo("Doge", keep_window_size=24)
    assert checked_policy(model, packing=False, longest=24)[1].passed
    with pytest.raises(ModelError, match=r"rows of 25 tokens; its attention .*\(keep_window_size\) .* up to 24. .* at most.$"):
        checked_policy(model, packing=False, longest=25)


def test_a_model_that_pools_tokens_is_checked_on_rows_long_enough() -> None:
    model = build(Family("DeepSeek-V4", "deepseek_v4", {"layer_types": ["sliding_attention", "heavily_compressed_attention"]}))
    with pytest.raises(ModelError, match="cannot compute|queries.*Set learner.packing=false, which passes the same check"):
        checked_policy(model)
