"""Settings as they resolve on the planned machines."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.models.policy import CPU_CHUNK, GPU_CHUNK
from rlsys.planning.cluster import Machines
from rlsys.system.devices import attention, bucket_mib, engine_sizes, releases, zero_defaults
from rlsys.system.placement import engines_sleep, weight_backend


@dataclass(frozen=True)
class Resolved:
    """What depends on the device."""

    colocated: bool
    """Learners and engines share devices."""
    sleep: bool
    """Engines free their memory while learners train; without GPUs they keep it."""
    releases: bool
    """Learners give states back while engines sample; without GPUs nothing is freed."""
    backend: str
    """Of the weight transfer."""
    bucket: int
    """Of the weight transfer, in bytes."""
    attention: str
    chunk: int
    """Logits computed at a time."""
    gradient_bucket: int
    """Elements of a bucket of DeepSpeed's reduction."""
    gradient_buckets: int
    max_live: int
    """Elements of weights that ZeRO-3 keeps gathered."""
    max_num_seqs: int
    max_num_batched_tokens: int
    cache_width: int
    """Bytes of an element of the key-value cache."""
    kv_cache_bytes: int | None
    """None: what `rollout.gpu_memory_utilization` leaves."""


def resolve(config: Config, machines: Machines, colocated: bool) -> Resolved:
    """Resolve the settings whose defaults depend on the machines; `learner.deepspeed` and `rollout.engine` override them."""
    device, engine = machines.device, config.rollout.engine
    backend = weight_backend(config.weights.backend, machines.gpus, colocated)
    sizes = engine_sizes(config.rollout, device, config.prompt.max_tokens + config.rollout.max_tokens)
    given = config.learner.deepspeed.get("zero_optimization", {})
    # DeepSpeed takes both spellings of its ZeRO-3 options.
    zero = zero_defaults(device) | {name.removeprefix("stage3_"): value for name, value in given.items()}
    half = str(engine.get("kv_cache_dtype", "auto")).startswith("fp8")
    return Resolved(
        colocated=colocated,
        sleep=machines.gpus > 0 and engines_sleep(config, machines.gpus, colocated),
        releases=machines.gpus > 0 and releases(config.learner, colocated and config.rl.staleness == 0),
        backend=backend,
        bucket=bucket_mib(config.weights.bucket_mib, backend) * 2**20,
        attention=attention(config.learner, device),
        chunk=CPU_CHUNK if device == "cpu" else GPU_CHUNK,
        gradient_bucket=int(zero["reduce_bucket_size"]),
        gradient_buckets=2 if zero.get("overlap_comm") else 1,
        max_live=int(zero.get("max_live_parameters", 10**9)) + int(zero.get("prefetch_bucket_size", 5 * 10**7)),
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=int(engine.get("max_num_batched_tokens", sizes.max_num_batched_tokens)),
        cache_width=1 if half else 2 if config.model.dtype == "bfloat16" else 4,
        kv_cache_bytes=sizes.kv_cache_bytes,
    )
