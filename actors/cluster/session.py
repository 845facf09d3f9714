"""The Ray cluster that a command runs on."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from rlsys.config.schema import Run

PASSED_ON = ("NCCL_", "GLOO_", "HF_", "TRANSFORMERS_", "VLLM_", "TORCH_", "PYTORCH_")
"""Variables of the driver that its actors on other machines get too, except tokens, which Ray's dashboard would show. CUDA_VISIBLE_DEVICES
is not one of them: each raylet hands out the GPUs of its own machine that its own CUDA_VISIBLE_DEVICES names."""


@contextmanager
def ray_session(run: Run) -> Iterator[None]:
    """Join the cluster that this job was submitted to, or start a local one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    submitted = "RAY_ADDRESS" in os.environ
    # A local Ray generates an authentication token; its message about that is of no use to the user.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # The cores available to this process, which may be fewer than the machine has.
    options: dict[str, Any] = {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": run.dashboard}
    if submitted:
        # The processes of a local Ray inherit all variables of this one. Here the job may have set some, which have these same values.
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
        options = {
            "runtime_env": {
                "env_vars": {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) and "TOKEN" not in name}
            }
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=True, logging_level="warning", **options)
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it by one that exits with 15
    if submitted and not run.dir.is_absolute():
        print(f"run.dir={run.dir} is relative: it is in this job's working folder, {Path.cwd()}. Give an absolute path to keep it.")
    try:
        yield
    finally:
        if not submitted:
            ray.shutdown()
