"""The engine's side of the weight transfer, and of sampling: runs inside vLLM's own processes.

`CpuWeightTransferEngine` loads buckets; `WorkerExtension` tells what the live model computes with, and sets how it draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.cpu.kernels import use_fused_kernels
from actors.cpu.sampler import CpuSampler, Drawn
from actors.cpu.weight_loading import NotPlain, Plan, pack_again
from actors.weights.buckets import Table, attach, one_thread, table_bytes, views
from actors.weights.checks import Digest, checksum
from rlsys.system.processes import keep_freed_memory

# vLLM sets up the loggers below its own name only.
logger = init_logger("vllm.rlsys.weights")


@dataclass
class CpuInitInfo(WeightTransferInitInfo):
    """Where buckets will lie, and what in them."""

    path: str
    """Of an `actors.weights.buckets.Segment` that holds the slots."""
    slots: int
    slot_bytes: int
    tables: list[Table]
    """Of the buckets of every update; bucket i comes in slot i % `slots`."""
    layerwise: bool = False
    """Load through vLLM's layerwise reload even where copying into the live model would do."""


@dataclass
class CpuUpdateInfo(WeightTransferUpdateInfo):
    """One bucket has come."""

    bucket: int


class LoadClock:
    """Adds up the time spent inside `with`: seconds, and CPU seconds of all threads."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


class CpuWeightTransferEngine(WeightTransferEngine[CpuInitInfo, CpuUpdateInfo]):
    """Loads buckets out of memory that it shares with the learner: by a `Plan`, or, where a model is not plain, by vLLM's reload."""

    init_info_cls = CpuInitInfo
    update_info_cls = CpuUpdateInfo

    def init_transfer_engine(self, init_info: CpuInitInfo) -> None:
        self.slots = attach(init_info.path, init_info.slots * init_info.slot_bytes).split(init_info.slot_bytes)
        self.tables = init_info.tables
        self.clock = LoadClock()
        self.plan: Plan | None = None
        if not init_info.layerwise:
            try:
                with set_current_vllm_config(self.vllm_config):
                    self.plan = Plan(self.model, self.tables)
            except NotPlain as reason:
                logger.info("weights are loaded through vLLM's layerwise reload: %s", reason)
        # Every packed layer is freed and allocated again at every update: on fresh pages that would take longer than packing.
        keep_freed_memory()

    def start_weight_update(self) -> None:
        self.clock = LoadClock()
        if self.plan is None:
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class ends with torch.accelerator.synchronize(), which a machine without an accelerator does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: CpuUpdateInfo) -> None:
        table = self.tables[update_info.bucket]
        bucket = self.slots[update_info.bucket % len(self.slots)][: table_bytes(table)]
        with self.clock, one_thread():
            if self.plan is not None:
                self.plan.load(update_info.bucket, bucket)
            else:
                # A copy, as a half-filled layer keeps views until the rest of it comes.
                self.model.load_weights(views(table, bucket.clone()))

    def finish_weight_update(self) -> None:
        with self.clock:
            if self.plan is not None:
                self.plan.finish()
            else:
                finalize_layerwise_reload(self.model, self.model_config)
                _repack_tied(self.model)

    def shutdown(self) -> None:
        pass


def _repack_tied(model: nn.Module) -> None:
    """Renew the packed copies that tied layers keep of a weight which arrived under another layer's name.

    On CPUs vLLM packs each linear layer's weight for its kernel. A tied output head shares the embedding's tensor, gets no
    weight of its own in a reload, and would go on computing with its old packed copy.
    """
    owners: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not hasattr(module, "cpu_linear") or weight is None or weight.numel() == 0:
            continue
        if weight.data_ptr() in owners:
            pack_again(module)
        owners.add(weight.data_ptr())


class WorkerExtension:
    """Mixed into vLLM's workers (engine argument `worker_extension_cls`)."""

    def rlsys_threads(self) -> int:
        """Threads of this process that compute."""
        return torch.get_num_threads()

    def rlsys_use_fused_kernels(self) -> None:
        """`actors.cpu.kernels.use_fused_kernels`."""
        use_fused_kernels(self.model_runner.get_model())

    def rlsys_take_over_sampling(self, keep: bool, certainty: bool) -> None:
        """Draw tokens as `actors.cpu.sampler.CpuSampler` does, from now on."""
        self.rlsys_sampler = CpuSampler(self.model_runner, keep, certainty)

    def rlsys_take_drawn(self, numbers: list[int], keep: list[int]) -> list[Drawn]:
        """`CpuSampler.take`."""
        return self.rlsys_sampler.take(numbers, keep)

    def rlsys_last_load(self) -> dict[str, Any]:
        """Of the last update, backend "cpu" only: seconds and cpu_seconds of loading and packing, and whether vLLM's reload did it."""
        engine = self.weight_transfer_engine
        return {"seconds": engine.clock.seconds, "cpu_seconds": engine.clock.cpu_seconds, "layerwise": engine.plan is None}

    def rlsys_checksums(self) -> list[Digest]:
        """Checksums of the weights that this process computes with, under Hugging Face names, fused layers taken apart.

        Each entry says which part of the whole tensor this process holds: (name, dimension, start, length, checksum, where),
        where `where` is vLLM's own name of the parameter. vLLM's `compute_weight_checksums` would not do: on CPUs a linear
        layer's parameter is emptied once its packed copy exists, so that all such layers have the checksum of nothing.
        """
        # Some kernels keep a bias in fp32; its values are those of the model's dtype all the same.
        dtype = self.model_config.dtype
        return [
            (name, dimension, start, tensor.shape[dimension], checksum(name, tensor.to(dtype)), where)
            for name, dimension, start, tensor, where in live_weights(self.model_runner.get_model())
        ]


def live_weights(model: nn.Module) -> Iterator[tuple[str, int, int, Tensor, str]]:
    """(Hugging Face name, sharded dimension, start in it, tensor, vLLM's name) of everything the model computes with."""
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
                # A tied head goes by the embedding's name, as in the checkpoint.
                name = first_name.setdefault(id(parameter), where)
                yield name, 0, shard.org_vocab_start_index, tensor[: shard.num_org_elements], where
                continue
            parent, _, leaf = path.rpartition(".")
            rank = getattr(module, "tp_rank", 0)
            if leaf in packed:
                sizes = module.output_partition_sizes
                replicas = getattr(module, "num_kv_head_replicas", 1)
                for i, (part, shard) in enumerate(zip(packed[leaf], tensor.split(sizes), strict=True)):
                    # Fewer key-value heads than workers: several workers hold the same ones.
                    place = rank // replicas if i else rank
                    yield f"{parent}.{part}.{kind}", 0, place * sizes[i], shard, where
            else:
                dimension = _sharded_dimension(module, kind)
                yield where, dimension or 0, 0 if dimension is None else rank * tensor.shape[dimension], tensor, where


def _sharded_dimension(module: nn.Module, kind: str) -> int | None:
    """The dimension along which tensor parallelism divides a linear layer's parameter; None where every worker has all of it."""
    if getattr(module, "output_size_per_partition", None) != getattr(module, "output_size", None):
        return 0
    if kind == "weight" and getattr(module, "input_size_per_partition", None) != getattr(module, "input_size", None):
        return 1
    return None


def _live(module: nn.Module, kind: str, parameter: nn.Parameter) -> Tensor:
    """A parameter's values as the forward pass uses them."""
    looked_up = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if kind != "weight" or looked_up or not hasattr(module, "cpu_linear"):
        return parameter.detach()
    # The packed copy lives inside the kernel; the identity brings it out, exactly, as every other term of a sum is zero.
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    dtype = parameter.dtype
    rows = [module.cpu_linear(eye, parameter, None) for eye in torch.eye(width, dtype=dtype).split(1024)]
    return torch.cat(rows).t()
