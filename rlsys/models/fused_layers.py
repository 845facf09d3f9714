"""RMS norms and linear layers as single autograd nodes, with less activation memory and faster weight gradients on CPUs.

transformers' norms save three float32 copies of their input; over all layers that was a sixth of the activation memory of a packed
micro-batch (docs/performance.md). These save the input itself, which other nodes save anyway, and one number per token. On a CPU, norms
process a few rows at a time, so that intermediate results stay in the core's cache. No compilation or warm-up is needed.
`torch.nn.functional.rms_norm` is no substitute: in bfloat16 it rounds later than transformers does, so that a quarter of the outputs differ
in the last place, and on a CPU it also saves float32 copies of its input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

CHUNK = 2**17
"""Elements that a CPU processes at a time: half a megabyte of float32."""


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype for computations that need more than 16 bits: float32, or the tensor's own dtype if it is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _in_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield corresponding rows of tensors [N, ...], about CHUNK elements of the first at a time; all at once on a GPU."""
    first = tensors[0]
    rows = len(first) if first.is_cuda else CHUNK // max(first.shape[-1], 1)
    return zip(*(tensor.split(max(rows, 1)) for tensor in tensors))


class _RmsNorm(torch.autograd.Function):
    """weight * (x / sqrt(mean(x ** 2) + eps)) (Zhang and Sennrich, arXiv 1910.07467), rounded in the same places as transformers."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.new_empty(len(rows), 1, dtype=wide_dtype(x))
        out = torch.empty_like(rows)
        for values, scales, answer in _in_chunks(rows, scale, out):
            wide = values.to(scale.dtype, copy=True)
            # vector_norm is faster, but its sums are off by several units in float32's last place.
            torch.rsqrt(torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[-1]).add_(eps), out=scales)
            torch.mul(weight, wide.mul_(scales).to(x.dtype), out=answer)
        ctx.save_for_backward(rows, weight, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, scale = ctx.saved_tensors
        wide_weight = weight.to(scale.dtype)
        d_x, d_weight = torch.empty_like(rows), torch.zeros_like(wide_weight)
        for values, scales, upstream, answer in _in_chunks(rows, scale, gradient.reshape(rows.shape), d_x):
            unit = values.to(scale.dtype, copy=True).mul_(scales)
            upstream = upstream.to(scale.dtype, copy=True)
            both = upstream * unit
            d_weight += both.sum(dim=0)
            # The component along the normalised input does not change the output.
            along = torch.mv(both, wide_weight)[:, None].div_(-rows.shape[-1])
            answer.copy_(upstream.mul_(wide_weight).addcmul_(unit, along).mul_(scales))
        return d_x.view(gradient.shape), d_weight.to(weight.dtype), None


class _Linear(torch.autograd.Function):
    """x @ weight.T (+ bias), with the weight gradient computed from two row-major matrices.

    AMX tiles are loaded by rows. In gradient.T @ x, oneDNN would read the left operand by columns, which is slower than transposing the
    narrower operand first.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
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
    """Replace the forward of standard RMS norms and linear layers by the nodes above, in place; return how many of each.

    A norm is standard if it has a weight and an epsilon under the usual names and both implementations agree on a random input; others,
    such as Gemma's, which add one to their weight, are left unchanged. Linear layers are replaced only where this is faster: bfloat16
    weights on machines with AMX.
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
    """Restore transformers' own implementation of all layers."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
        module._compiled_call_impl = None


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: _RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: _Linear.apply(x, module.weight, module.bias)


def _has_amx(device: torch.device) -> bool:
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@torch.no_grad()
def _is_standard_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, "variance_epsilon") or len(inspect.signature(module.forward).parameters) != 1:
        return False
    probe = torch.randn(2, 3, len(weight), device=weight.device, generator=torch.Generator(weight.device).manual_seed(0)).to(weight.dtype)
    return bool(torch.allclose(module(probe), _norm(module)(probe), rtol=2 * torch.finfo(weight.dtype).eps, atol=1e-6))
