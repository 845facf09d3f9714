"""What the fork server imports, whose children vLLM's engine processes are on CPUs (`actors.vllm_compat.use_fork_server`).

A fork server is a process without threads that imports once and then forks: engines begin with vLLM imported. Ours does it while the
rollout actor itself imports vLLM. Nothing else may import this module: children of whoever does die with it.
"""

from __future__ import annotations

import os
import signal

import vllm.model_executor.models.llama
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker  # noqa: F401

from rlsys.processes import die_with_parent

# The fork server ends with the rollout actor, however that ends.
os.register_at_fork(after_in_child=lambda: die_with_parent(signal.SIGKILL))
