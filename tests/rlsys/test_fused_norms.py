"""Fused norms against the modules that they stand in for."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rlsys.fused_norms import fuse_norms


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("shape", [(1, 7, 48), (2, 5, 3, 48), (1, 0, 48)])
def test_output_and_gradients(kind, dtype, tolerance, shape) -> None:
    torch.manual_seed(0)
    plain = kind(48, eps=1e-5).to(dtype)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 1.5)
    fused = kind(48, eps=1e-5).to(dtype)
    fused.load_state_dict(plain.state_dict())
    assert fuse_norms(fused) == 1
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


def test_other_kinds_of_norm_stay_as_they_are() -> None:
    norm = GemmaRMSNorm(16)
    norm.variance_epsilon = 1e-6  # the usual name, yet another formula
    with torch.no_grad():
        norm.weight.fill_(0.5)
    assert fuse_norms(norm) == 0 and "forward" not in vars(norm)


def test_every_norm_of_a_model(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert fuse_norms(model) == 2 * model.config.num_hidden_layers + 1
