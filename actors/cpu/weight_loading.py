"""Where sent tensors go in a live vLLM model, found once, so that an update only has to copy them there.

vLLM's layerwise reload finds this out again at every update, for every tensor, and loads into new memory each time. A model
whose loaders do nothing but copy, and whose layers are not quantized, needs neither: the copies are recorded while the
model's own `load_weights` runs dry on tensors without storage (device "meta"), and repeated on real ones afterwards.
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

Place = tuple[torch.Size, tuple[int, ...], int]
"""(shape, strides, first element) of a view into a whole tensor."""


class NotPlain(Exception):
    """A model that wants more than copies; the message says what."""


@dataclass
class Target:
    """One parameter of the live model."""

    module: nn.Module
    kind: str
    shape: torch.Size
    dtype: torch.dtype
    packed: bool
    """The parameter was emptied when its layer packed it for its kernel: values are gathered apart, and packed when all are there."""
    expected: int = 0
    """Elements that an update brings."""
    came: int = 0
    """Of this update."""
    gathered: Tensor | None = None
    beside: list[nn.Module] = field(default_factory=list)
    """Layers with a packed copy of this parameter, which stays: an output head that shares the embedding's tensor."""

    def values(self) -> Tensor:
        """What to copy into."""
        if not self.packed:
            return self.module._parameters[self.kind].data
        if self.gathered is None:
            self.gathered = torch.empty(self.shape, dtype=self.dtype)
        return self.gathered

    def took(self, count: int) -> None:
        """`count` elements have come."""
        self.came += count
        if self.came < self.expected:
            return
        self.came = 0
        if self.packed:
            self.pack(self.gathered)
            self.gathered = None
        for module in self.beside:
            pack_again(module)

    def pack(self, values: Tensor) -> None:
        """Have the layer pack `values`, of which it keeps nothing."""
        setattr(self.module, self.kind, nn.Parameter(values, requires_grad=False))
        pack_again(self.module)
        if self.module._parameters[self.kind].numel():
            raise RuntimeError(f"{type(self.module).__name__} kept a weight that it packed before.")


@dataclass(frozen=True)
class Copy:
    """One copy of a loader: `source` in the sent tensor goes to `destination` in the target."""

    target: Target
    destination: Place
    source: Place


class Plan:
    """All copies of an update, and which layers can be packed straight out of a bucket."""

    def __init__(self, model: nn.Module, tables: list[Table]):
        """
        Raises:
            NotPlain: this model has to be loaded through vLLM's layerwise reload.
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
                # vLLM packs every embedding as if it were an output head, too; where there is a head, nobody multiplies by this one.
                module.cpu_linear = nn.functional.linear
                continue
            for target in self.targets:
                if target.module._parameters[target.kind] is weight:
                    target.beside.append(module)

    def _take_whole(self, table: Table) -> list[tuple[Target, int]]:
        """(layer, first byte) of those that lie in the bucket as they are packed, fused ones part behind part. They are copied no more."""
        parts: dict[int, list[tuple[int, Copy]]] = {}
        for name, dtype, _, start in table:
            for copy in self.copies[name]:
                if copy.target.packed and copy.target.dtype == getattr(torch, dtype):
                    parts.setdefault(id(copy.target), []).append((start, copy))
        whole = []
        for of_one in parts.values():
            target = of_one[0][1].target
            size = target.dtype.itemsize
            firsts = {start + size * (copy.source[2] - copy.destination[2]) for start, copy in of_one}
            in_order = all(copy.source[1] == copy.destination[1] == (target.shape[1], 1) for _, copy in of_one)
            complete = sum(copy.source[0].numel() for _, copy in of_one) == target.shape.numel()
            if in_order and complete and len(firsts) == 1:
                whole.append((target, firsts.pop()))
        taken = {id(target) for target, _ in whole}
        for name, *_ in table:
            self.copies[name] = [copy for copy in self.copies[name] if id(copy.target) not in taken]
        return whole

    def load(self, number: int, bucket: Tensor) -> None:
        """Put the tensors of bucket `number` into the model; of the bucket nothing is kept."""
        for target, start in self.whole[number]:
            end = start + target.shape.numel() * target.dtype.itemsize
            target.pack(bucket[start:end].view(target.dtype).view(target.shape))
        for name, tensor in views(self.tables[number], bucket):
            for copy in self.copies[name]:
                _view(copy.target.values(), copy.destination).copy_(_view(tensor, copy.source))
                copy.target.took(copy.source[0].numel())

    def finish(self) -> None:
        """After the last bucket. Raises RuntimeError where some of a layer's weights never came."""
        short = sum(target.came > 0 for target in self.targets)
        if short:
            raise RuntimeError(f"{short} layers got only a part of their weights in this update: a bucket is missing.")


def pack_again(module: nn.Module) -> None:
    """Pack a layer's weight for its kernel, as vLLM does on CPUs."""
    # The old copy goes first, so that the new one gets its memory: fresh pages would take longer than the packing.
    module.cpu_linear = None
    module.quant_method.process_weights_after_loading(module)


class _Recorder(TorchDispatchMode):
    """Notes (destination, source) of every copy instead of doing it, and what else would change a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.others: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            self.copies.append((args[0], args[1]))
            return args[0]
        # Filling is for padding, which is there already.
        if function._schema.is_mutable and function is not torch.ops.aten.fill_.Scalar:
            self.others.add(str(function))
        return function(*args, **(kwargs or {}))


def _dry_run(model: nn.Module, tables: list[Table]) -> dict[str, list[Copy]]:
    """The copies by which the model loads each sent tensor."""
    for module in model.modules():
        if hasattr(module, "process_weights_after_loading") and type(module) is not Attention:
            raise NotPlain(f"{type(module).__name__} derives something from its weights")
    sent = {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for table in tables for name, dtype, shape, _ in table}
    with _as_before_loading(model) as parameters, _Recorder() as recorder:
        try:
            model.load_weights(iter(sent.items()))
        except Exception as error:
            raise NotPlain(f"its loaders do not run dry: {error}") from error
        if recorder.others:
            raise NotPlain(f"its loaders use {', '.join(sorted(recorder.others))}")
        stand_ins = {_storage(parameter): (module, kind, parameter) for module, kind, parameter in parameters}
    names = {_storage(tensor): name for name, tensor in sent.items()}
    copies: dict[str, list[Copy]] = {name: [] for name in sent}
    targets: dict[int, Target] = {}
    loaded: dict[int, int] = {}
    for destination, source in recorder.copies:
        to, of = _storage(destination), names.get(_storage(source))
        if to not in stand_ins or of is None or destination.shape != source.shape:
            raise NotPlain("a loader does more than copy what was sent")
        if to not in targets:
            targets[to] = _target(*stand_ins[to])
        loaded[to] = loaded.get(to, 0) + source.numel()
        copies[of].append(Copy(targets[to], _place(destination, stand_ins[to][2]), _place(source, sent[of])))
    lost = [name for name, found in copies.items() if not found]
    if lost:
        raise NotPlain(f"its loaders leave {', '.join(lost[:3])} out")
    for to, target in targets.items():
        target.expected = loaded[to]
        if target.packed and target.expected != target.shape.numel():
            raise NotPlain("a packed layer is not loaded in full")
    return copies


def _target(module: nn.Module, kind: str, stand_in: Tensor) -> Target:
    """The live parameter behind the one that a loader saw, if nothing but its values has to change."""
    method = getattr(module, "quant_method", None)
    if type(method) not in (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
        raise NotPlain(f"{type(module).__name__} has its weights processed by {type(method).__name__}")
    live = module._parameters[kind]
    packed = live.numel() == 0 and hasattr(module, "cpu_linear") and kind == "weight"
    if stand_in.ndim > 2 or not (packed or (live.shape, live.stride()) == (stand_in.shape, stand_in.stride())):
        raise NotPlain(f"{type(module).__name__}.{kind} has another form than its checkpoint's")
    return Target(module, kind, stand_in.shape, stand_in.dtype, packed)


@contextmanager
def _as_before_loading(model: nn.Module) -> Iterator[list[tuple[nn.Module, str, Tensor]]]:
    """Give the model, for a while, the parameters that it had before anything was loaded, mostly without storage; yields them."""
    modules = list(model.modules())
    before = [(dict(module._parameters), dict(module._buffers), set(module._non_persistent_buffers_set)) for module in modules]
    try:
        for module in modules:
            restore_layer_on_meta(module, get_layerwise_info(module))
        loadable = [(module, kind, tensor) for module in modules for kind, tensor in module._parameters.items() if tensor is not None]
        for _, _, tensor in loadable:
            if hasattr(tensor, "weight_loader"):
                # A layerwise reload leaves loaders of its own behind, which do nothing outside of one.
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
    """What views of the same memory, or of the same absence of it, have in common."""
    return tensor.untyped_storage()._cdata


def _place(view: Tensor, whole: Tensor) -> Place:
    return view.shape, view.stride(), view.storage_offset() - whole.storage_offset()


def _view(whole: Tensor, place: Place) -> Tensor:
    shape, strides, first = place
    return whole.as_strided(shape, strides, whole.storage_offset() + first)
