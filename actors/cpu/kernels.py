"""Fused vLLM kernels for the norms and gated activations of a model on a CPU, instead of individual PyTorch operations.

Each layer has two norms and an activation per decoding step. In eager mode each is several small operations whose call overhead exceeds
their computation (`rlsys bench rollout`). In compiled models (`rollout.enforce_eager=false`) they are fused already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm


def use_fused_kernels(model: nn.Module) -> int:
    """Make `model` use the fused kernels, in place, where they compute the same; returns the number of modules changed."""
    count = 0
    for module in model.modules():
        if type(module) is RMSNorm and module.has_weight and module.variance_size_override is None:
            module._forward_method = _norm(module)
        elif type(module) is SiluAndMul:
            module._forward_method = _silu_and_mul
        else:
            continue
        count += 1
    return count


def _norm(module: RMSNorm) -> Any:
    plain = module.forward_native

    def forward(x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        # The weight is looked up each time: an update may have replaced it.
        if x.dtype != module.weight.dtype or not x.is_contiguous():
            return plain(x, residual)
        if residual is not None:
            torch.ops._C.fused_add_rms_norm(x, residual, module.weight, module.variance_epsilon)  # in place
            return x, residual
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, module.weight, module.variance_epsilon)
        return out

    return forward


def _silu_and_mul(x: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    torch.ops._C.silu_and_mul(out, x)
    return out
