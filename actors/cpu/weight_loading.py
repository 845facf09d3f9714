"""Destinations of sent tensors in a live vLLM model, determined once, so that an update only has to copy them there.

vLLM's layerwise reload determines them again for every tensor of every update, and loads into newly allocated memory. A model whose
loaders only copy, and whose layers are not quantized, needs neither: the copies are recorded during a dry run of the model's
`load_weights` on tensors without storage (device "meta"), and replayed on real tensors afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

from actors.weights.buckets import Table, views

View = tuple[torch.Size, tuple[int, ...], int]
"""(shape, strides, offset of the first element) of a view into a full tensor."""


class NotCopyable(Exception):
    """The model's weights cannot be loaded by copies alone; the message says why."""


@dataclass
class Target:
    """One parameter of the live model."""

    module: nn.Module
    kind: str
    shape: torch.Size
    dtype: torch.dtype
    packed: bool
    """The layer emptied the parameter when it packed it for its kernel: values are collected separately and packed once complete."""
    expected: int = 0
    """Elements per update."""
    received: int = 0
    """Elements received in the current update."""
    collected: Tensor | None = None
    tied: list[nn.Module] = field(default_factory=list)
    """Other layers with a packed copy of this parameter: an output head that shares the embedding's tensor."""

    def values(self) -> Tensor:
        """Return the tensor to copy into."""
        if not self.packed:
            return _parameter(self.module, self.kind).data
        if self.collected is None:
            self.collected = torch.empty(self.shape, dtype=self.dtype)
        return self.collected

    def add_received(self, count: int) -> None:
        """Count `count` received elements; pack the layer once it is complete."""
        self.received += count
        if self.received < self.expected:
            return
        self.received = 0
        if self.packed:
            self.pack(self.values())
            self.collected = None
        for module in self.tied:
            pack_again(module)

    def pack(self, values: Tensor) -> None:
        """Make the layer pack `values`; it keeps no reference to them."""
        setattr(self.module, self.kind, nn.Parameter(values, requires_grad=False))
        pack_again(self.module)
        if _parameter(self.module, self.kind).numel():
            raise RuntimeError(f"{type(self.module).__name__} kept a weight that it packed before.")


@dataclass(frozen=True)
class Copy:
    """One copy of a loader: from `source` in the sent tensor to `destination` in the target."""

    target: Target
    destination: View
    source: View


class CopyPlan:
    """All copies of an update, and the layers that can be packed directly from a bucket."""

    def __init__(self, model: nn.Module, tables: list[Table]):
        """
        Raises:
            NotCopyable: the model has to be loaded through vLLM's layerwise reload.
        """
        self.tables = tables
        self.copies = _dry_run(model, tables)
        self.targets = list({id(copy.target): copy.target for copies in self.copies.values() for copy in copies}.values())
        self.whole = [self._take_whole(table) for table in tables]
        heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
        for module in model.modules():
            weight = module._parameters.get("weight")
            if not hasattr(module, "cpu_linear") or weight is None or weight.numel() == 0:
                continue
            if heads and isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
                # vLLM packs every embedding as an output head, too; if there is a separate head, that copy is unused.
                module.cpu_linear = nn.functional.linear
                continue
            for target in self.targets:
                if _parameter(target.module, target.kind) is weight:
                    target.tied.append(module)

    def _take_whole(self, table: Table) -> list[tuple[Target, int]]:
        """Return (layer, first byte) of the layers stored contiguously in the bucket as they are packed, and drop their copies."""
        parts: dict[int, list[tuple[int, Copy]]] = {}
        for name, dtype, _, start in table:
            for copy in self.copies[name]:
                if copy.target.packed and copy.target.dtype == getattr(torch, dtype):
                    parts.setdefault(id(copy.target), []).append((start, copy))
        whole = []
        for copies in parts.values():
            target = copies[0][1].target
            size = target.dtype.itemsize
            firsts = {start + size * (copy.source[2] - copy.destination[2]) for start, copy in copies}
            in_order = all(copy.source[1] == copy.destination[1] == (target.shape[1], 1) for _, copy in copies)
            complete = sum(copy.source[0].numel() for _, copy in copies) == target.shape.numel()
            if in_order and complete and len(firsts) == 1:
                whole.append((target, firsts.pop()))
        taken = {id(target) for target, _ in whole}
        for name, *_ in table:
            self.copies[name] = [copy for copy in self.copies[name] if id(copy.target) not in taken]
        return whole

    def load(self, number: int, bucket: Tensor) -> None:
        """Load the tensors of bucket `number` into the model; no reference to the bucket is kept."""
        for target, start in self.whole[number]:
            end = start + target.shape.numel() * target.dtype.itemsize
            target.pack(bucket[start:end].view(target.dtype).view(target.shape))
        for name, tensor in views(self.tables[number], bucket):
            for copy in self.copies[name]:
                _apply_view(copy.target.values(), copy.destination).copy_(_apply_view(tensor, copy.source))
                copy.target.add_received(copy.source[0].numel())

    def finish(self) -> None:
        """Check completeness after the last bucket. Raises RuntimeError if a layer received only part of its weights."""
        incomplete = sum(target.received > 0 for target in self.targets)
        if incomplete:
            raise RuntimeError(f"{incomplete} layers received only part of their weights in this update: a bucket is missing.")


def pack_again(module: nn.Module) -> None:
    """Pack a layer's weight for its kernel, as vLLM does on CPUs."""
    # Free the old copy first so that the new one reuses its memory: page faults would take longer than packing.
    module.cpu_linear = None
    module.quant_method.process_weights_after_loading(module)


class _Recorder(TorchDispatchMode):
    """Records (destination, source) of every copy instead of executing it, and any other mutating operation."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.others: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            self.copies.append((args[0], args[1]))
            return args[0]
        # Fills write padding, which the live model already has.
        if function._schema.is_mutable and function is not torch.ops.aten.fill_.Scalar:
            self.others.add(str(function))
        return function(*args, **(kwargs or {}))


def _dry_run(model: nn.Module, tables: list[Table]) -> dict[str, list[Copy]]:
    """Record the copies by which the model loads each sent tensor."""
    for module in model.modules():
        if hasattr(module, "process_weights_after_loading") and type(module) is not Attention:
            raise NotCopyable(f"{type(module).__name__} derives something from its weights")
    sent = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for table in tables for name, dtype, shape, _ in table}
    with _as_before_loading(model) as parameters, _Recorder() as recorder:
        try:
            model.load_weights(iter(sent.items()))
        except Exception as error:
            raise NotCopyable(f"a dry run of its loaders failed: {error}") from error
        if recorder.others:
            raise NotCopyable(f"its loaders use {', '.join(sorted(recorder.others))}")
        stand_ins = {_storage(parameter): (module, kind, parameter) for module, kind, parameter in parameters}
    names = {_storage(tensor): name for name, tensor in sent.items()}
    copies: dict[str, list[Copy]] = {name: [] for name in sent}
    targets: dict[int, Target] = {}
    loaded: dict[int, int] = {}
    for destination, source in recorder.copies:
        storage, name = _storage(destination), names.get(_storage(source))
        if storage not in stand_ins or name is None or destination.shape != source.shape:
            raise NotCopyable("a loader does more than copy the sent tensors")
        if storage not in targets:
            targets[storage] = _target(*stand_ins[storage])
        loaded[storage] = loaded.get(storage, 0) + source.numel()
        copies[name].append(Copy(targets[storage], _view_of(destination, stand_ins[storage][2]), _view_of(source, sent[name])))
    ignored = [name for name, found in copies.items() if not found]
    if ignored:
        raise NotCopyable(f"its loaders ignore {', '.join(ignored[:3])}")
    for storage, target in targets.items():
        target.expected = loaded[storage]
        if target.packed and target.expected != target.shape.numel():
            raise NotCopyable("a packed layer is loaded only in part")
    return copies


def _target(module: nn.Module, kind: str, stand_in: Tensor) -> Target:
    """Return the live parameter for a loader's stand-in, if only its values have to change."""
    method = getattr(module, "quant_method", None)
    if type(method) not in (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        raise NotCopyable(f"{type(module).__name__} has its weights processed by {type(method).__name__}")
    live = _parameter(module, kind)
    packed = live.numel() == 0 and hasattr(module, "cpu_linear") and kind == "weight"
    if stand_in.ndim > 2 or not (packed or (live.shape, live.stride()) == (stand_in.shape, stand_in.stride())):
        raise NotCopyable(f"{type(module).__name__}.{kind} has a different layout from its checkpoint")
    return Target(module, kind, stand_in.shape, stand_in.dtype, packed)


@contextmanager
def _as_before_loading(model: nn.Module) -> Iterator[list[tuple[nn.Module, str, Tensor]]]:
    """Temporarily give the model the parameters that it had before loading, mostly without storage; yields them."""
    modules = list(model.modules())
    before = [(dict(module._parameters), dict(module._buffers), set(module._non_persistent_buffers_set)) for module in modules]
    try:
        for module in modules:
            restore_layer_on_meta(module, get_layerwise_info(module))
        loadable = [(module, kind, tensor) for module in modules for kind, tensor in module._parameters.items() if tensor is not None]
        for _, _, tensor in loadable:
            if hasattr(tensor, "weight_loader"):
                # A layerwise reload leaves its own loaders behind, which have no effect outside of a reload.
                tensor.weight_loader = inspect.unwrap(tensor.weight_loader, stop=lambda loader: loader.__name__ != "online_process_loader")
        yield loadable
    finally:
        for module, (parameters, buffers, not_persistent) in zip(modules, before, strict=True):
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(not_persistent)


def _storage(tensor: Tensor) -> int:
    """Identify the storage of a tensor, including storage on "meta", which views share."""
    return tensor.untyped_storage()._cdata


def _view_of(view: Tensor, whole: Tensor) -> View:
    """Describe `view` relative to `whole`."""
    return view.shape, view.stride(), view.storage_offset() - whole.storage_offset()


def _parameter(module: nn.Module, kind: str) -> nn.Parameter:
    parameter = module._parameters[kind]
    assert parameter is not None
    return parameter


def _apply_view(whole: Tensor, view: View) -> Tensor:
    """Return the part of `whole` that `view` describes."""
    shape, strides, first = view
    return whole.as_strided(shape, strides, whole.storage_offset() + first)
