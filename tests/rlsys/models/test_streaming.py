"""Weights that stay in host memory while their model computes on a device. Here the device is the CPU, and moving is copying."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from rlsys.models.streaming import streamed

IDS = torch.arange(3, 40)[None]


@torch.no_grad()
def test_a_layer_is_on_the_device_only_while_it_runs(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    expected = model(IDS).logits
    before = {name: tensor.data_ptr() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {name for name, p in model.named_parameters() for layer in layers if any(p is own for own in layer.parameters())}
    seen: list[set[str]] = []

    def moved() -> set[str]:
        return {name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.data_ptr() != before[name]}

    assert layers and inside
    for layer in layers:
        layer.self_attn.register_forward_hook(lambda *_: seen.append(moved()))
    with streamed(model, "cpu"):
        outside = moved()
        assert outside == set(before) - inside
        assert torch.equal(model(IDS).logits, expected)
        assert moved() == outside
    own = [{name for name, p in model.named_parameters() if any(p is each for each in layer.parameters())} for layer in layers]
    assert seen == [outside | names for names in own]
    assert not moved()


@torch.no_grad()
def test_weights_return_to_the_host_after_an_error(tiny_model) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    before = [p.data_ptr() for p in model.parameters()]
    model.model.layers[1].mlp.forward = None
    with pytest.raises(TypeError), streamed(model, "cpu"):
        model(IDS)
    assert [p.data_ptr() for p in model.parameters()] == before and not model.model.layers[0]._forward_hooks
