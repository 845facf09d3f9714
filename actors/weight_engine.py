"""The engine's side of the weight transfer: runs inside vLLM's own processes.

`CpuWeightTransferEngine` receives packed buckets; `WorkerExtension` tells what the live model computes with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights import Digest, checksum, unpack


@dataclass
class CpuInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class CpuUpdateInfo(WeightTransferUpdateInfo):
    """One bucket (`actors.weights.pack`) in a file on this machine."""

    path: str
    table: list[Any]


class CpuWeightTransferEngine(WeightTransferEngine[CpuInitInfo, CpuUpdateInfo]):
    """Maps buckets from shared-memory files and loads them within vLLM's layerwise reload. All workers share one machine."""

    init_info_cls = CpuInitInfo
    update_info_cls = CpuUpdateInfo

    def init_transfer_engine(self, init_info: CpuInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class ends with torch.accelerator.synchronize(), which a machine without an accelerator does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: CpuUpdateInfo) -> None:
        # shared=False maps privately: pages come from the file, which may be unlinked while a half-filled layer still holds views.
        size = os.path.getsize(update_info.path)
        bucket = torch.from_file(update_info.path, shared=False, size=size, dtype=torch.uint8)
        self.model.load_weights(unpack(update_info.table, bucket))

    def finish_weight_update(self) -> None:
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
            module.quant_method.process_weights_after_loading(module)
        owners.add(weight.data_ptr())


class WorkerExtension:
    """Mixed into vLLM's workers (engine argument `worker_extension_cls`)."""

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
