"""Fused norms and linear layers against the modules that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlsys.models import fused_layers
from rlsys.models.fused_layers import fuse_layers


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("shape", [(1, 7, 48), (2, 5, 3, 48), (1, 0, 48)])
@pytest.mark.parametrize("chunk", [2**17, 100])
def test_norms(monkeypatch: pytest.MonkeyPatch, kind, dtype, tolerance, shape, chunk) -> None:
    monkeypatch.setattr(fused_layers, "CHUNK", chunk)
    torch.manual_seed(0)
    plain = kind(48, eps=1e-5).to(dtype)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 1.5)
    fused = kind(48, eps=1e-5).to(dtype)
    fused.load_state_dict(plain.state_dict())
    assert fuse_layers(fused)["norms"] == 1
    upstream = torch.randn(shape, dtype=dtype)
    values = 3 * torch.randn(shape, dtype=dtype)
    results = []
    for module in (plain, fused):
        x = values.clone().requires_grad_()
        y = module(x)
        y.backward(upstream)
        assert y.dtype == x.grad.dtype == dtype and torch.equal(x.detach(), values)
        results.append((y, x.grad, module.weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_other_norms_are_left_unchanged() -> None:
    norm = GemmaRMSNorm(16)
    norm.variance_epsilon = 1e-6  # the usual name, yet another formula
    with torch.no_grad():
        norm.weight.fill_(0.5)
    assert fuse_layers(norm)["norms"] == 0 and "forward" not in vars(norm)


def test_every_norm_of_a_model(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert fuse_layers(model)["norms"] == 2 * model.config.num_hidden_layers + 1


@pytest.mark.parametrize(("wide", "narrow"), [(48, 20), (20, 48), (32, 32)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 70), (2, 5, 3), (1, 0)])
def test_linear_layers(monkeypatch: pytest.MonkeyPatch, wide: int, narrow: int, bias: bool, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(fused_layers, "_has_amx", lambda device: True)  # what is computed does not depend on it
    torch.manual_seed(0)
    plain = nn.Linear(wide, narrow, bias=bias).to(torch.bfloat16)
    fused = nn.Linear(wide, narrow, bias=bias).to(torch.bfloat16)
    fused.load_state_dict(plain.state_dict())
    assert fuse_layers(fused)["linears"] == 1
    values, upstream = torch.randn(*shape, wide, dtype=torch.bfloat16), torch.randn(*shape, narrow, dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).double()
    results = []
    for module in (exact, fused):
        x = values.to(module.weight.dtype).requires_grad_()
        y = module(x)
        y.backward(upstream.to(y.dtype))
        results.append([y, x.grad, module.weight.grad, *([module.bias.grad] if bias else [])])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == torch.bfloat16 and found.is_contiguous()
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


def test_linear_layers_in_other_dtypes_are_left_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "_has_amx", lambda device: True)
    assert fuse_layers(nn.Linear(4, 3))["linears"] == 0
