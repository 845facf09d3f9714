"""The engine's side of weight transfer and sampling: runs inside vLLM's processes.

`CpuWeightTransferEngine` loads buckets; `WorkerExtension` reports the live model's weights and replaces its sampling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.cpu.kernels import use_fused_kernels
from actors.cpu.sampler import CpuSampler, SampledTokens
from actors.weights.buckets import Table, attach, one_thread, table_bytes, views
from actors.weights.checks import Digest, checksum
from rlsys.system.processes import keep_freed_memory, return_freed_memory


@dataclass
class CpuInitInfo(WeightTransferInitInfo):
    """Location and layout of the buckets."""

    path: str
    """Path of the `actors.weights.buckets.Segment` that holds the slots."""
    slots: int
    slot_bytes: int
    tables: list[Table]
    """One per bucket of every update; bucket i uses slot i % `slots`."""


@dataclass
class CpuUpdateInfo(WeightTransferUpdateInfo):
    """One bucket is ready."""

    bucket: int


class LoadClock:
    """Accumulates the time spent inside `with`: seconds, and CPU seconds of all threads."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


class CpuWeightTransferEngine(WeightTransferEngine[CpuInitInfo, CpuUpdateInfo]):
    """Loads buckets from memory shared with the learner, through vLLM's layerwise reload."""

    init_info_cls = CpuInitInfo
    update_info_cls = CpuUpdateInfo

    def init_transfer_engine(self, init_info: CpuInitInfo) -> None:
        self.slots = attach(init_info.path, init_info.slots * init_info.slot_bytes).split(init_info.slot_bytes)
        self.tables = init_info.tables
        self.clock = LoadClock()
        # Every update frees and allocates every packed layer: page faults would take longer than packing.
        keep_freed_memory()

    def start_weight_update(self) -> None:
        self.clock = LoadClock()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class calls torch.accelerator.synchronize(), which fails on a machine without an accelerator.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: CpuUpdateInfo) -> None:
        table = self.tables[update_info.bucket]
        bucket = self.slots[update_info.bucket % len(self.slots)][: table_bytes(table)]
        with self.clock, one_thread():
            # A copy, because a partially filled layer keeps views until the rest of it arrives.
            self.model.load_weights(views(table, bucket.clone()))

    def finish_weight_update(self) -> None:
        with self.clock:
            finalize_layerwise_reload(self.model, self.model_config)
            _repack_tied(self.model)

    def shutdown(self) -> None:
        pass


def _repack_tied(model: nn.Module) -> None:
    """Repack the copies that tied layers keep of a weight that arrived under another layer's name.

    On CPUs vLLM packs each linear layer's weight for its kernel. A tied output head shares the embedding's tensor, is not reloaded
    itself, and would otherwise keep computing with its old packed copy.
    """
    owners: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not hasattr(module, "cpu_linear") or weight is None or weight.numel() == 0:
            continue
        if weight.data_ptr() in owners:
            # Free the old copy first so that the new one reuses its memory: page faults would take longer than packing.
            module.cpu_linear = None
            module.quant_method.process_weights_after_loading(module)
        owners.add(weight.data_ptr())


class WorkerExtension:
    """Mixed into vLLM's workers (engine argument `worker_extension_cls`)."""

    model_runner: Any
    model_config: Any
    weight_transfer_engine: Any

    def rlsys_threads(self) -> int:
        """Return the number of compute threads of this process."""
        return torch.get_num_threads()

    def rlsys_use_fused_kernels(self) -> None:
        """Call `actors.cpu.kernels.use_fused_kernels` on the model."""
        use_fused_kernels(self.model_runner.get_model())

    def rlsys_return_freed_memory(self) -> None:
        """Call `rlsys.system.processes.return_freed_memory`."""
        return_freed_memory()

    def rlsys_take_over_sampling(self, keep: bool, certainty: bool) -> None:
        """Sample tokens by `actors.cpu.sampler.CpuSampler` from now on."""
        self.rlsys_sampler = CpuSampler(self.model_runner, keep, certainty)

    def rlsys_take_sampled(self, numbers: list[int], keep: list[int]) -> list[SampledTokens]:
        """Call `CpuSampler.take`."""
        return self.rlsys_sampler.take(numbers, keep)

    def rlsys_last_load(self) -> dict[str, Any]:
        """Return seconds and cpu_seconds of the last update's loading; 0 unless by backend "cpu"."""
        engine = self.weight_transfer_engine
        if not isinstance(engine, CpuWeightTransferEngine):
            return {"seconds": 0.0, "cpu_seconds": 0.0}
        return {"seconds": engine.clock.seconds, "cpu_seconds": engine.clock.cpu_seconds}

    def rlsys_checksums(self) -> list[Digest]:
        """Return checksums of the weights that this process computes with, under Hugging Face names, with fused layers split.

        Each entry identifies the part of the full tensor that this process holds: (name, dimension, start, length, checksum, where),
        where `where` is vLLM's name of the parameter. vLLM's `compute_weight_checksums` is not usable: on CPUs a linear layer's
        parameter is emptied once its packed copy exists, so all such layers would have the checksum of an empty tensor.
        """
        # Some kernels keep a bias in fp32; its values are still those of the model's dtype.
        dtype = self.model_config.dtype
        return [
            (name, dimension, start, tensor.shape[dimension], checksum(name, tensor.to(dtype)), where)
            for name, dimension, start, tensor, where in live_weights(self.model_runner.get_model())
        ]


def live_weights(model: nn.Module) -> Iterator[tuple[str, int, int, Tensor, str]]:
    """Yield (Hugging Face name, sharded dimension, start in it, tensor, vLLM's name) of every weight that the model computes with."""
    packed = getattr(model, "packed_modules_mapping", {})
    first_name: dict[int, str] = {}
    for path, module in model.named_modules():
        for kind, parameter in module._parameters.items():
            if parameter is None:
                continue
            where = f"{path}.{kind}"
            tensor = _live(module, kind, parameter)
            if isinstance(module, VocabParallelEmbedding):
                shard = module.shard_indices
                # A tied head has the embedding's name, as in the checkpoint.
                name = first_name.setdefault(id(parameter), where)
                yield name, 0, shard.org_vocab_start_index, tensor[: shard.num_org_elements], where
                continue
            parent, _, leaf = path.rpartition(".")
            rank = getattr(module, "tp_rank", 0)
            if leaf in packed:
                sizes = module.output_partition_sizes
                replicas = getattr(module, "num_kv_head_replicas", 1)
                for i, (part, shard) in enumerate(zip(packed[leaf], tensor.split(sizes), strict=True)):
                    # With fewer key-value heads than workers, several workers hold the same ones.
                    place = rank // replicas if i else rank
                    yield f"{parent}.{part}.{kind}", 0, place * sizes[i], shard, where
            else:
                dimension = _sharded_dimension(module, kind)
                yield where, dimension or 0, 0 if dimension is None else rank * tensor.shape[dimension], tensor, where


def _sharded_dimension(module: nn.Module, kind: str) -> int | None:
    """Return the dimension along which tensor parallelism shards a linear layer's parameter; None if it is replicated."""
    if getattr(module, "output_size_per_partition", None) != getattr(module, "output_size", None):
        return 0
    if kind == "weight" and getattr(module, "input_size_per_partition", None) != getattr(module, "input_size", None):
        return 1
    return None


def _live(module: nn.Module, kind: str, parameter: nn.Parameter) -> Tensor:
    """Return a parameter's values as the forward pass uses them."""
    is_embedding = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if kind != "weight" or is_embedding or not hasattr(module, "cpu_linear"):
        return parameter.detach()
    # The packed copy is inside the kernel; multiplying by the identity extracts it exactly, as all other terms of each sum are zero.
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    dtype = parameter.dtype
    rows = [module.cpu_linear(eye, parameter, None) for eye in torch.eye(width, dtype=dtype).split(1024)]
    return torch.cat(rows).t()
