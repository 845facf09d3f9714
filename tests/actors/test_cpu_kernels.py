"""Fused kernels against the formulas, in float64; that engines with them answer as transformers does is in test_rollout.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("vllm", reason="wants vLLM")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

from actors.cpu.kernels import use_fused_kernels
from actors.rollout import vllm_compat

pytestmark = pytest.mark.skipif(vllm_compat.device() != "cpu", reason="kernels of a vLLM for CPUs")
WIDTH, EPSILON = 96, 1e-5
SHAPES = [(1, WIDTH), (7, WIDTH), (3, 5, WIDTH)]


@pytest.fixture
def layers():
    with set_current_vllm_config(VllmConfig()):
        model = nn.ModuleDict({"norm": RMSNorm(WIDTH, EPSILON), "act": SiluAndMul(), "gemma": GemmaRMSNorm(WIDTH, EPSILON)})
    with torch.no_grad():
        model["norm"].weight.uniform_(0.5, 1.5)
    assert use_fused_kernels(model) == 2, "Gemma's norm has another formula"
    return model


def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight.double() * x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(layers, dtype, tolerance, shape):
    norm = layers["norm"].to(dtype)
    x, residual = (3 * torch.randn(shape).to(dtype) for _ in range(2))
    torch.testing.assert_close(norm(x).double(), normalised(x.double(), norm.weight), rtol=tolerance, atol=tolerance)
    total = (x.double() + residual.double()).to(dtype)
    found, kept = norm(x.clone(), residual.clone())
    torch.testing.assert_close(kept, total)
    torch.testing.assert_close(found.double(), normalised(total.double(), norm.weight), rtol=tolerance, atol=tolerance)


def test_norms_of_parts_that_do_not_lie_together(layers):
    x = torch.randn(5, 2 * WIDTH)[:, :WIDTH]
    torch.testing.assert_close(layers["norm"](x).double(), normalised(x.double(), layers["norm"].weight), rtol=1e-5, atol=1e-5)


def test_a_norm_uses_the_weight_that_an_update_brought(layers):
    layers["norm"].weight = nn.Parameter(torch.full((WIDTH,), 2.0))
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(layers["norm"](x).double(), normalised(x.double(), torch.tensor(2.0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_activation(layers, dtype, tolerance, shape):
    x = 3 * torch.randn(*shape[:-1], 2 * WIDTH).to(dtype)
    gate, up = x.double().chunk(2, dim=-1)
    torch.testing.assert_close(layers["act"](x).double(), gate * torch.sigmoid(gate) * up, rtol=tolerance, atol=tolerance)
