"""What the machines of a cluster must share before actors start on them: the run's folder, and the model's files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.waiting import Pending, wait
from rlsys.models.folder import differing_files, file_digests
from rlsys.models.loading import ModelError, ensure_model

STORAGE = "choose a run.dir on storage that all machines share, under the same absolute path"
COPY = "put the model on storage that all machines share, copy it to the same path on each, or give a hub name"


class MachineError(ValueError):
    """Machines of the cluster lack files; the message names them and says what to do."""


def require_same_files(model: str, logs: Path | None, timeout_s: float) -> None:
    """Check that every other machine with CPUs or GPUs holds the same `model` and, unless None, sees the folder `logs`.

    Otherwise actors would write logs, trajectories and checkpoints into folders of their own machine, or start from other weights.

    Raises:
        MachineError: a machine does not.
        ActorFailed: a machine did not answer within `timeout_s` seconds.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and node["Resources"].keys() & {"CPU", "GPU"}]
    if not others:
        return
    digests = file_digests(Path(model))
    check = ray.remote(num_cpus=0, max_retries=0)(find_missing)
    # Only a machine that shares the folder sees a file that was created just now.
    with tempfile.NamedTemporaryFile(dir=logs, prefix=".seen-by-all-machines-") as created:
        calls = [
            Pending(
                check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    model, digests, logs and str(logs), created.name
                ),
                f"machine {node['NodeManagerAddress']}",
                "check of its files",
            )
            for node in others
        ]
        answers = wait(calls, timeout_s, "run.timeouts_s.start")
    problems = [f"{call.actor} {problem}" for call, found in zip(calls, answers, strict=True) for problem in found]
    if problems:
        raise MachineError("\n".join(problems))


def find_missing(model: str, digests: dict[str, str], logs: str | None, created: str) -> list[str]:
    """List what this machine lacks, as ends of sentences that begin with its name. A built-in model that is missing is built."""
    problems = []
    if logs and not Path(created).exists():
        problems.append(f"does not see {logs}: {STORAGE}.")
    try:
        ensure_model(model)
    except ModelError as error:
        return [*problems, f"has no folder {model}: {COPY}." if digests else f"cannot load the model: {error}"]
    if differing := differing_files(digests, file_digests(Path(model))):
        problems.append(f"holds other files in {model} than the job's machine ({', '.join(differing[:3])}): {COPY}.")
    return problems
