"""Defaults that differ between CPUs and GPUs, as pure functions of the settings: engines, learners and plans of a run share them.

`device` is "cpu", or anything else for an accelerator. The values for GPUs follow from reading the sources of vLLM 0.32, DeepSpeed
0.19 and PyTorch 2.13; none of them was measured on one (docs/gpu.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlsys.config.schema import Learner, Rollout

CPU_KV_CACHE_GIB = 2.0
GPU_BATCHED_TOKENS = 16_384
"""Tokens that a GPU engine processes in one step: enough for prefills to be bound by arithmetic, not by launches."""
DECODE_GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""vLLM's compilation config for CUDA graphs of decoding steps without torch.compile, which would take minutes to start."""


@dataclass(frozen=True)
class EngineSizes:
    """Sizes of a rollout engine."""

    max_num_seqs: int
    """Sequences that are decoded concurrently."""
    max_num_batched_tokens: int
    """Tokens of one step."""
    kv_cache_bytes: int | None
    """Size of the key-value cache; None: what `rollout.gpu_memory_utilization` leaves."""
    eager: bool
    """Neither compiled nor captured in graphs."""


def engine_sizes(rollout: Rollout, device: str, max_model_len: int) -> EngineSizes:
    """Return the sizes of an engine on `device` whose prompt and completion have at most `max_model_len` tokens together."""
    cpu = device == "cpu"
    gib = CPU_KV_CACHE_GIB if cpu and rollout.kv_cache_gib is None else rollout.kv_cache_gib
    return EngineSizes(
        max_num_seqs=concurrent_sequences(rollout, device),
        # On a CPU prompts are never split, so a whole one has to fit.
        max_num_batched_tokens=max(max_model_len, 4096) if cpu else GPU_BATCHED_TOKENS,
        kv_cache_bytes=None if gib is None else int(gib * 2**30),
        eager=cpu if rollout.enforce_eager is None else rollout.enforce_eager,
    )


def concurrent_sequences(rollout: Rollout, device: str) -> int:
    """Return the number of sequences that an engine decodes concurrently."""
    return rollout.max_num_seqs or (128 if device == "cpu" else 512)


def attention(learner: Learner, device: str) -> Literal["blocks", "flex"]:
    """Resolve `learner.attention`."""
    if learner.attention != "auto":
        return learner.attention
    return "blocks" if device == "cpu" else "flex"


def reference_kind(learner: Learner) -> Literal["whole", "sharded", "host"]:
    """Resolve `learner.reference`."""
    if learner.reference != "auto":
        return learner.reference
    return "sharded" if learner.zero_stage == 3 else "whole"


def releases(learner: Learner, takes_turns: bool) -> bool:
    """Resolve `learner.release`: states can be moved to host memory and back with ZeRO 1 to 3, unless they are there already."""
    if learner.release is not None:
        return learner.release
    return takes_turns and learner.zero_stage > 0 and learner.offload == "none"


def bucket_mib(configured: int | None, backend: str) -> int:
    """Resolve `weights.bucket_mib`. On GPUs every bucket costs a barrier and a remote call, so they are large."""
    return configured or (64 if backend == "cpu" else 512)


def zero_defaults(device: str) -> dict[str, Any]:
    """Return DeepSpeed's settings `zero_optimization` that depend on the device, apart from the stage."""
    if device == "cpu":
        # DeepSpeed reduces whole buckets either way; reduce_scatter would only split and copy them once more. Its default bucket of 5e8
        # elements takes 2 GB in fp32.
        return {"reduce_scatter": False, "reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25}
    return {"reduce_scatter": True, "overlap_comm": True, "reduce_bucket_size": 2**27, "allgather_bucket_size": 2**27}
