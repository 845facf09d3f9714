"""Defaults by device."""

from __future__ import annotations

from rlsys.config.schema import Learner, Rollout
from rlsys.system.devices import attention, bucket_mib, concurrent_sequences, engine_sizes, zero_defaults


def test_engines_on_cpus_and_gpus() -> None:
    cpu, gpu = (engine_sizes(Rollout(), device, 20_000) for device in ("cpu", "cuda"))
    assert (cpu.max_num_seqs, cpu.max_num_batched_tokens, cpu.kv_cache_bytes, cpu.eager) == (128, 20_000, 2 * 2**30, True)
    assert (gpu.max_num_seqs, gpu.max_num_batched_tokens, gpu.kv_cache_bytes, gpu.eager) == (512, 16_384, None, False)
    configured = Rollout(max_num_seqs=7, kv_cache_gib=0.5, enforce_eager=True)
    for device in ("cpu", "cuda"):
        sizes = engine_sizes(configured, device, 100)
        assert (sizes.max_num_seqs, sizes.kv_cache_bytes, sizes.eager) == (7, 2**29, True)
    assert concurrent_sequences(configured, "cuda") == 7


def test_learners_on_cpus_and_gpus() -> None:
    assert [attention(Learner(), device) for device in ("cpu", "cuda")] == ["blocks", "flex"]
    assert attention(Learner(attention="blocks"), "cuda") == "blocks"
    assert [bucket_mib(None, backend) for backend in ("cpu", "ipc", "nccl")] == [64, 512, 512] and bucket_mib(3, "ipc") == 3
    assert zero_defaults("cuda")["reduce_scatter"] and not zero_defaults("cpu")["reduce_scatter"]
