"""A thin wrapper of DeepSpeed: the process group, engines, and an optimizer step that skips non-finite gradients.

Everything specific to DeepSpeed (0.19) is here, so that `actors.learner.learner` contains only the algorithm.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlsys.config.schema import Learner
from rlsys.models.streaming import streamed
from rlsys.system.devices import reference_kind, zero_defaults

# DeepSpeed reads this when it is imported; otherwise it guesses from the installed packages.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

Engine: TypeAlias = Any
"""A `deepspeed.DeepSpeedEngine`; DeepSpeed has no type annotations."""


Weights: TypeAlias = Iterable[tuple[str, Tensor]]
"""(name, full tensor) of a module's parameters, in its order."""


class StepResult(NamedTuple):
    """Outcome of an optimizer step."""

    applied: bool
    """False: a gradient was not finite; weights and moments are unchanged."""
    grad_norm: float
    """Norm of the full batch's gradient over all ranks, before clipping; inf or nan if the step was not applied."""


def open_store(host: str, world_size: int, timeout_s: float) -> dist.TCPStore:
    """Open rank 0's rendezvous server on a port chosen by the system; it stays bound, so no other process can take the port."""
    return dist.TCPStore(host, 0, world_size, True, timedelta(seconds=timeout_s), wait_for_workers=False)


def join_group(rank: int, world_size: int, host: str, port: int, store: dist.TCPStore | None, timeout_s: float) -> None:
    """Form the process group over rank 0's store and let DeepSpeed adopt it. One rank per process, one device per rank.

    Raises:
        torch.distributed.DistError: a rank did not join within `timeout_s` seconds.
    """
    # Ray exposes only its own device to each actor, so the local rank is always 0.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR=host, MASTER_PORT=str(port))
    timeout = timedelta(seconds=timeout_s)
    store = store or dist.TCPStore(host, port, world_size, False, timeout)
    backend = get_accelerator().communication_backend_name()
    get_accelerator().set_device(0)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    # The shared-memory all-reduce is for inference on CPUs; its first use would compile it (44 s, needs a C++ compiler).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout)


def _settings(learner: Learner, dtype: torch.dtype) -> dict[str, Any]:
    """Return DeepSpeed's config: ours, with the entries of `learner.deepspeed` on top."""
    bf16 = dtype == torch.bfloat16
    settings: dict[str, Any] = {
        # Micro-batches vary in number and size: the boundary is set explicitly, and losses are already normalised.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "zero_optimization": {"stage": learner.zero_stage, **zero_defaults(device_type())},
        "steps_per_print": None,
    }
    if learner.zero_stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if learner.offload != "none":
        host = {"device": "cpu", "pin_memory": device_type() != "cpu"}
        settings["zero_optimization"] |= {"offload_optimizer": host} | ({"offload_param": host} if learner.offload == "all" else {})
        settings["zero_force_ds_cpu_optimizer"] = False  # It would be compiled at its first use; torch's fused AdamW runs on hosts, too.
    passed = dict(learner.deepspeed)
    settings["zero_optimization"] |= passed.pop("zero_optimization", {})
    return settings | passed


def build_engine(module: nn.Module, learner: Learner, dtype: torch.dtype) -> Engine:
    """Build an engine with AdamW on fp32 master weights, ZeRO stage `learner.zero_stage`, and no scheduler.

    Gradients of micro-batches are accumulated in fp32, except for stage 0 with bf16 weights, where DeepSpeed supports bf16 only.
    torch's fused AdamW runs on every device without compilation.
    """
    if learner.zero_stage == 3:
        partition(module, learner, dtype)

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.0, betas=learner.betas, weight_decay=learner.weight_decay, fused=True)

    engine, *_ = deepspeed.initialize(model=module, optimizer=adamw, config=_settings(learner, dtype))
    reset_moments(engine)
    return engine


def freeze(module: nn.Module, learner: Learner, dtype: torch.dtype, weights: Weights) -> nn.Module:
    """Prepare a module with the values `weights` for inference only: sharded over the ranks, or whole, on the device or the host."""
    module.requires_grad_(False).eval()
    kind = reference_kind(learner)
    if kind != "sharded":
        module.to("cpu" if kind == "host" else device())
        for parameter, (_, whole) in zip(module.parameters(), weights, strict=True):
            parameter.data.copy_(whole)
        return module
    learner = learner.model_copy(update={"zero_stage": 3, "offload": "none"})
    partition(module, learner, dtype, weights)
    engine, *_ = deepspeed.initialize(model=module, config=_settings(learner, dtype))
    engine.eval()
    return engine


def partition(module: nn.Module, learner: Learner, dtype: torch.dtype, weights: Weights | None = None) -> None:
    """Shard a module in host memory over the ranks, parameter by parameter: no device holds more than one of them whole. Collective.

    Args:
        weights: (name, full tensor) of every parameter, in the module's order, to shard in place of its own.
    """
    settings = _settings(learner, dtype)
    source = iter(weights) if weights is not None else None
    for name, parameter in module.named_parameters():
        if source is not None:
            theirs, whole = next(source)
            assert theirs == name, f"{theirs} where {name} was expected"
            parameter.data = whole.to(device(), parameter.dtype, copy=True)
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=settings, dtype=dtype)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device())


@contextmanager
def computing(model: nn.Module, learner: Learner) -> Iterator[bool]:
    """Within the block, `model` computes on this rank's device; yields whether it can compute gradients there.

    For ZeRO 3 its weights stay in host memory, where ranks share the pages of a file mapped into memory; otherwise it moves for good.
    """
    if learner.zero_stage < 3 or device_type() == "cpu":
        model.to(device())
        yield True
        return
    with streamed(model, device()):
        yield False


def backward(engine: Engine, loss: Tensor, *, last: bool) -> None:
    """Accumulate the gradient of one micro-batch; `last` marks the final one before `step`.

    The loss is this micro-batch's share of the batch's loss: gradients are summed over micro-batches and ranks.
    A non-finite loss makes the whole gradient NaN, so that `step` skips the update on every rank.
    """
    if not math.isfinite(loss.item()):
        # inf times a zero derivative could leave a finite gradient; nan times anything is nan.
        loss = loss * math.nan
    engine.set_gradient_accumulation_boundary(last)
    # DeepSpeed averages over ranks.
    engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)


def step(engine: Engine, lr: float) -> StepResult:
    """Clip and update with learning rate `lr`; if the gradient of any rank is not finite, discard it on every rank."""
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = lr
    norm: Any = None
    if engine.optimizer is engine.basic_optimizer:
        # Stage 0 in fp32 is a plain torch optimizer, the only case that DeepSpeed does not check.
        norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None)
        if not torch.isfinite(norm):
            engine.zero_grad()
            return StepResult(False, float(norm))
    engine.step()
    return StepResult(engine.was_step_applied(), float(engine.get_global_grad_norm() if norm is None else norm))


def reset_moments(engine: Engine) -> None:
    """Set AdamW's moments and step count to zero, in place because DeepSpeed keeps views of them."""
    for state in engine.basic_optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()


def release_states(engine: Engine, reference: nn.Module | None, learner: Learner) -> None:
    """Make room for an engine on the same GPU: move master weights, moments, gradient buffers and a whole reference to host memory.

    Args:
        engine: of ZeRO stage 1 to 3.
    """
    if reference is not None and reference_kind(learner) == "whole":
        reference.to("cpu")
    stage, pinned = engine.zero_optimization_stage(), device_type() != "cpu"
    if stage in (1, 2):
        states = [OffloadStateTypeEnum.hp_params, OffloadStateTypeEnum.optim_states, OffloadStateTypeEnum.lp_grads]
        engine.offload_states(include=states, pin_memory=pinned)
    elif stage == 3:
        # DeepSpeed moves the optimizer's part for its own FusedAdam only.
        _move_states(engine, "cpu")
        engine.offload_states(include=[OffloadStateTypeEnum.lp_grads, OffloadStateTypeEnum.contiguous_grad_buffer], pin_memory=pinned)
    empty_cache()


def reclaim_states(engine: Engine, reference: nn.Module | None, learner: Learner) -> None:
    """Move everything that `release_states` moved back to the device."""
    if reference is not None and reference_kind(learner) == "whole":
        reference.to(device())
    if engine.zero_optimization_stage() == 3:
        _move_states(engine, device())
    if engine.zero_optimization_stage():
        engine.reload_states()


def _move_states(engine: Engine, device: str) -> None:
    moments = [value for state in engine.basic_optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    # The master weights are not in the optimizer's groups, which DeepSpeed empties between steps.
    for tensor in (*engine.optimizer.fp32_partitioned_groups_flat, *moments):
        tensor.data = tensor.data.to(device)


@contextmanager
def on_device(reference: nn.Module, learner: Learner) -> Iterator[None]:
    """Within the block, a reference that is kept in host memory is on the device."""
    moves = reference_kind(learner) == "host"
    if moves:
        reference.to(device())
    yield
    if moves:
        reference.to("cpu")


@contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[Tensor]:
    """Yield the full parameter, also where ZeRO 3 keeps only a shard (`numel()` is 0 then). Collective: every rank must enter."""
    sharded = hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter]) if sharded else nullcontext():
        yield parameter.detach()


def full_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) of every parameter; a tensor is valid until the next one is requested. Collective."""
    for name, parameter in module.named_parameters():
        with gathered(parameter) as whole:
            yield name, whole


def from_all_ranks(value: Any) -> list[Any]:
    """Return every rank's `value` (small, picklable), in rank order. Collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def device() -> str:
    """Return this rank's device."""
    return get_accelerator().current_device_name()


def device_type() -> str:
    """Return the type of this rank's device: "cpu", "cuda", ..."""
    return get_accelerator().device_name()


def empty_cache() -> None:
    """Release the device memory that no tensor uses; no effect on a CPU."""
    get_accelerator().empty_cache()


def synchronize() -> None:
    """Wait for the device, so that timings include the work queued on it."""
    get_accelerator().synchronize()
