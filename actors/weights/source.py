"""The learner's weights as a stream of whole tensors under their Hugging Face names, whatever ZeRO stage they are kept in.

The shape of vLLM's `WeightSource` (vllm/distributed/weight_transfer/base.py): `metadata()` and iteration. It is followed, not
subclassed, so that a learner without a GPU does not have to import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ParamMeta(NamedTuple):
    """Name, dtype on the wire, and full shape of one parameter."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    """The parameters of a module that holds them whole. Tied parameters appear once, under their first name."""

    everywhere = False
    """Yield tensors on every rank; otherwise ranks other than 0 may get None."""
    rank, ranks = 0, 1
    """Which learner rank this is, and of how many that send the same weights."""

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None):
        """
        Args:
            module: a Hugging Face model: its parameter names are those of its checkpoint.
            dtype: of the tensors sent, the engines' dtype; None: each parameter's own.
        """
        self.module, self.dtype = module, dtype

    def metadata(self) -> list[ParamMeta]:
        """What iteration will yield, in the same order, without gathering anything."""
        return [
            ParamMeta(name, self.dtype or p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in self.module.named_parameters()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach().to(self.dtype or parameter.dtype)

    def parts(self) -> Iterator[tuple[str, int, Tensor]]:
        """(name, first element, elements from there on) of each parameter, flat, in its own dtype: what this rank brings.

        The parts of all ranks are the whole. Unlike iteration, this is no collective: nothing is gathered.
        """
        for name, parameter in self.module.named_parameters():
            length = -(-parameter.numel() // self.ranks)
            first = self.rank * length
            yield name, first, parameter.detach().reshape(-1)[first : first + length]


class DeepSpeedSource(WeightSource):
    """The parameters of a DeepSpeed engine, ZeRO 0 to 3.

    With ZeRO 3 a rank holds shards (`numel()` is 0, `ds_shape` is the shape); they are gathered layer by layer, so that no rank
    ever holds more than one whole layer. Gathering is a collective: all ranks iterate in step, rank 0 keeps the data.
    """

    def __init__(self, engine: Any, dtype: torch.dtype | None = None):
        """
        Args:
            engine: a DeepSpeed engine whose module is a Hugging Face model or wraps one as its attribute `model`.
        """
        module = getattr(engine, "module", engine)
        # A Hugging Face model has a `model` inside, too; only the whole one can be saved under checkpoint names.
        super().__init__(module if hasattr(module, "save_pretrained") else module.model, dtype)
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def __iter__(self) -> Iterator[tuple[str, Tensor | None]]:
        if not self._sharded():
            yield from super().__iter__()
            return
        import deepspeed

        keep = self.everywhere or self.rank == 0
        for _, layer in groupby(self.module.named_parameters(), key=lambda item: _layer(item[0])):
            names, parameters = zip(*layer, strict=True)
            with deepspeed.zero.GatheredParameters(list(parameters)):
                # Copied, as what was gathered is gone after this block, and nothing may be gathered while a reader takes its time.
                tensors = [p.detach().to(self.dtype or p.dtype, copy=True) if keep else None for p in parameters]
            yield from zip(names, tensors, strict=True)

    def parts(self) -> Iterator[tuple[str, int, Tensor]]:
        if not self._sharded():
            yield from super().parts()
            return
        for name, parameter in self.module.named_parameters():
            # ZeRO 3 divides the flat parameter among ranks, all of the same length: the last ones may hold padding.
            shard = parameter.ds_tensor.detach()
            first = self.rank * parameter.ds_tensor.ds_numel
            yield name, first, shard[: max(parameter.ds_numel - first, 0)]

    def _sharded(self) -> bool:
        return any(hasattr(parameter, "ds_id") for parameter in self.module.parameters())


def _layer(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.3`; names without a number stand for themselves."""
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: index + 1])
