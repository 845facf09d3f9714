"""Parts of a model in one autograd node each: RMS norms, and linear layers whose weight gradients suit the machine.

transformers' norms keep three float32 copies of their tokens; over all layers that was a sixth of what a packed micro-batch keeps
(docs/performance.md). Here the input itself, which others keep anyway, and one number per token are enough. On a CPU a norm goes through
its tokens a few rows at a time, so that what lies between its steps stays in the core's cache. No compiler is needed and nothing warms up.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 2**17
"""Elements that a CPU works on at a time: half a megabyte of float32."""


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """In what to compute where the tensor's own precision would not do: float32, or its own if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _in_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Corresponding rows of tensors [N, ...], about CHUNK elements of the first at a time; all at once on a card."""
    first = tensors[0]
    rows = len(first) if first.is_cuda else CHUNK // max(first.shape[-1], 1)
    return zip(*(tensor.split(max(rows, 1)) for tensor in tensors))


class _RmsNorm(torch.autograd.Function):
    """weight * (x / sqrt(mean(x ** 2) + eps)) of Zhang and Sennrich (arXiv 1910.07467), rounded where transformers rounds."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.new_empty(len(rows), 1, dtype=wide_dtype(x))
        out = torch.empty_like(rows)
        for values, scales, answer in _in_chunks(rows, scale, out):
            wide = values.to(scale.dtype, copy=True)
            # Not vector_norm, which is quicker: its sums are off by several units in float32's last place.
            torch.rsqrt(torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[-1]).add_(eps), out=scales)
            torch.mul(weight, wide.mul_(scales).to(x.dtype), out=answer)
        ctx.save_for_backward(rows, weight, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        rows, weight, scale = ctx.saved_tensors
        wide_weight = weight.to(scale.dtype)
        d_x, d_weight = torch.empty_like(rows), torch.zeros_like(wide_weight)
        for values, scales, upstream, answer in _in_chunks(rows, scale, gradient.reshape(rows.shape), d_x):
            unit = values.to(scale.dtype, copy=True).mul_(scales)
            upstream = upstream.to(scale.dtype, copy=True)
            both = upstream * unit
            d_weight += both.sum(dim=0)
            # The part along the normalised input does not change the output.
            along = torch.mv(both, wide_weight)[:, None].div_(-rows.shape[-1])
            answer.copy_(upstream.mul_(wide_weight).addcmul_(unit, along).mul_(scales))
        return d_x.view(gradient.shape), d_weight.to(weight.dtype), None


class _Linear(torch.autograd.Function):
    """x @ weight.T (+ bias), with the gradient of the weight as a product of two matrices that lie row by row.

    Tiles of AMX are loaded by rows. Of gradient.T @ x, oneDNN would read the left side by columns, which is slower than turning the
    narrower of the two round first.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, upstream = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        d_x = (gradient @ weight) if needs_x else None
        d_weight = None
        if needs_weight and upstream.shape[-1] > rows.shape[-1]:
            d_weight = (rows.t().contiguous() @ upstream).t().contiguous()
        elif needs_weight:
            d_weight = upstream.t().contiguous() @ rows
        return d_x, d_weight, upstream.sum(dim=0) if needs_bias else None


def fuse_layers(model: nn.Module) -> dict[str, int]:
    """Let RMS norms and linear layers of the usual kind compute by the nodes above, in place; returns how many of each.

    A norm counts as usual when it has a weight and an epsilon under the usual names and both ways give the same for a random input; others
    (Gemma's, which add one to their weight, say) stay as they are. Linear layers are left alone where they would gain nothing: on
    machines without AMX, and where weights are not bfloat16.
    """
    counts = {"norms": 0, "linears": 0}
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and _is_standard_norm(module):
            module.forward = _norm(module)
            counts["norms"] += 1
        elif type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and _has_amx(module.weight.device):
            module.forward = _linear(module)
            counts["linears"] += 1
    return counts


def unfuse_layers(model: nn.Module) -> None:
    """Let everything compute as transformers has it again."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
        module._compiled_call_impl = None


def _norm(module: nn.Module):
    return lambda x: _RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _linear(module: nn.Linear):
    return lambda x: _Linear.apply(x, module.weight, module.bias)


def _has_amx(device: torch.device) -> bool:
    return device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)


@torch.no_grad()
def _is_standard_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, "variance_epsilon") or len(inspect.signature(module.forward).parameters) != 1:
        return False
    probe = torch.randn(2, 3, len(weight), device=weight.device, generator=torch.Generator(weight.device).manual_seed(0)).to(weight.dtype)
    return torch.allclose(module(probe), _norm(module)(probe), rtol=2 * torch.finfo(weight.dtype).eps, atol=1e-6)
