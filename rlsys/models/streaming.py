"""Run a model whose weights stay in host memory on a device that may be too small for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def streamed(model: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Within the block, compute on `device`: each decoder layer's weights are there while it runs, all other weights throughout.

    For passes without a gradient: the backward pass would find a layer's weights on the host. Afterwards every weight is the tensor that it
    was before, so that files mapped into memory stay mapped.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    held = _move([*outside, *model.buffers()], device)
    handles = []
    try:
        for layer in layers:
            on_host: list[tuple[Tensor, Tensor]] = []

            def fetch(layer: nn.Module, *_: Any, on_host: list[tuple[Tensor, Tensor]] = on_host) -> None:
                on_host += _move(list(layer.parameters()), device)

            def release(*_: Any, on_host: list[tuple[Tensor, Tensor]] = on_host) -> None:
                _restore(on_host)
                on_host.clear()

            handles.append(layer.register_forward_pre_hook(fetch))
            handles.append(layer.register_forward_hook(release, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _restore(held)


def _move(tensors: list[Tensor], device: torch.device | str) -> list[tuple[Tensor, Tensor]]:
    """Give each tensor a copy of its data on `device`; return (tensor, its former data)."""
    held = [(tensor, tensor.data) for tensor in tensors]
    for tensor, data in held:
        tensor.data = data.to(device, copy=True)
    return held


def _restore(held: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in held:
        tensor.data = data
