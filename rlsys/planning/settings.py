"""Settings as they resolve on the planned machines."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.models import policy
from rlsys.planning.cluster import Machines
from rlsys.system.placement import engines_sleep, weight_backend


@dataclass(frozen=True)
class Resolved:
    """What depends on the device."""

    colocated: bool
    """Learners and engines share devices."""
    sleep: bool
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
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_bytes: int | None
    """None: what `rollout.gpu_memory_utilization` leaves."""


def resolve(config: Config, machines: Machines, colocated: bool) -> Resolved:
    """Resolve the settings whose defaults depend on the machines."""
    cpu = machines.device == "cpu"
    backend = weight_backend(config.weights.backend, machines.gpus, colocated)
    return Resolved(
        colocated=colocated,
        sleep=engines_sleep(config, machines.gpus, colocated),
        backend=backend,
        bucket=config.weights.bucket_mib * 2**20,
        attention=config.learner.attention,
        chunk=policy.CHUNK,
        gradient_bucket=2**25,
        gradient_buckets=1,
        max_num_seqs=config.rollout.max_num_seqs,
        max_num_batched_tokens=max(config.prompt.max_tokens + config.rollout.max_tokens, 4096) if cpu else 16_384,
        kv_cache_bytes=int(config.rollout.kv_cache_gib * 2**30) if cpu else None,
    )
