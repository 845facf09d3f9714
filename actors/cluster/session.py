"""The Ray cluster that a command runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from rlsys.config.schema import Run


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
    local = {} if submitted else {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": run.dashboard}
    ray.init(log_to_driver=True, logging_level="warning", **local)
    if submitted and not run.dir.is_absolute():
        print(f"run.dir={run.dir} is relative: it is in this job's working folder, {Path.cwd()}. Give an absolute path to keep it.")
    try:
        yield
    finally:
        if not submitted:
            ray.shutdown()
