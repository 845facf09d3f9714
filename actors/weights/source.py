"""The learner's weights as a stream of full tensors under their Hugging Face names, for every ZeRO stage.

The interface of vLLM's `WeightSource` (vllm/distributed/weight_transfer/base.py): `metadata()` and iteration. It is duck-typed rather
than subclassed, so that a learner without a GPU need not import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ParamMeta(NamedTuple):
    """Name, dtype, and full shape of one parameter."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    """The parameters of an unsharded module. Tied parameters appear once, under their first name."""

    everywhere = False
    """Yield tensors on every rank; if False, ranks other than 0 may get None."""
    rank, ranks = 0, 1
    """This learner rank, and the number of ranks that send the same weights."""

    def __init__(self, module: nn.Module):
        """
        Args:
            module: a Hugging Face model, whose parameter names are those of its checkpoint.
        """
        self.module = module

    def metadata(self) -> list[ParamMeta]:
        """Describe the tensors of an iteration, in the same order, without gathering anything."""
        return [ParamMeta(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in self.module.named_parameters()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach()

    def parts(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield this rank's part of each flattened parameter, in its own dtype: (name, index of the first element, elements).

        The parts of all ranks make up the whole. Unlike iteration, this is not a collective: nothing is gathered.
        """
        for name, parameter in self.module.named_parameters():
            length = -(-parameter.numel() // self.ranks)
            first = self.rank * length
            yield name, first, parameter.detach().reshape(-1)[first : first + length]


class DeepSpeedSource(WeightSource):
    """The parameters of a DeepSpeed engine, ZeRO 0 to 3.

    With ZeRO 3 a rank holds shards (`numel()` is 0, `ds_shape` is the shape); they are gathered layer by layer, so that no rank holds
    more than one full layer. Gathering is a collective: all ranks iterate in lockstep, and rank 0 keeps the data.
    """

    def __init__(self, engine: Any):
        """
        Args:
            engine: a DeepSpeed engine whose module is a Hugging Face model or has one as its attribute `model`.
        """
        module = getattr(engine, "module", engine)
        # A Hugging Face model has an attribute `model`, too; only the outer one has the checkpoint's names.
        super().__init__(module if hasattr(module, "save_pretrained") else module.model)
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def __iter__(self) -> Iterator[tuple[str, Tensor | None]]:
        if not self._sharded():
            yield from super().__iter__()
            return
        import deepspeed

        keep = self.everywhere or self.rank == 0
        for _, layer in groupby(self.module.named_parameters(), key=lambda item: layer_of(item[0])):
            names, parameters = zip(*layer, strict=True)
            with deepspeed.zero.GatheredParameters(list(parameters)):
                # Copied: gathered tensors are released after this block, and must not stay gathered while the consumer works.
                tensors = [p.detach().clone() if keep else None for p in parameters]
            yield from zip(names, tensors, strict=True)

    def parts(self) -> Iterator[tuple[str, int, Tensor]]:
        if not self._sharded():
            yield from super().parts()
            return
        for name, parameter in self.module.named_parameters():
            # ZeRO 3 splits the flat parameter into shards of equal length: the last ones may contain padding.
            shard = parameter.ds_tensor.detach()
            first = self.rank * parameter.ds_tensor.ds_numel
            yield name, first, shard[: max(parameter.ds_numel - first, 0)]

    def _sharded(self) -> bool:
        return any(hasattr(parameter, "ds_id") for parameter in self.module.parameters())


def layer_of(name: str) -> str:
    """Return the layer of a parameter: `model.layers.3.mlp.up_proj.weight` -> `model.layers.3`; a name without a number is its own."""
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: index + 1])
