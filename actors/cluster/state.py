"""The actors of a running cluster and their calls, as Ray's state API reports them, for `rlsys top`."""

from __future__ import annotations

from collections import Counter

from rlsys.reporting.top.snapshot import Actor

TIMEOUT_S = 5


class ClusterUnreachable(ValueError):
    """No cluster answers at an address."""


def cluster_actors(address: str) -> list[Actor]:
    """Return the named actors of a cluster that are not dead, with their states and numbers of calls.

    Args:
        address: of the head: HOST:6379, http://HOST:8265, or "auto" for the cluster on this machine.

    Raises:
        ClusterUnreachable: no cluster answers there.
    """
    from ray.util.state import list_actors, list_tasks

    try:
        actors = list_actors(address, filters=[("state", "!=", "DEAD")], limit=1000, timeout=TIMEOUT_S, raise_on_missing_output=False)
        tasks = list_tasks(
            address, filters=[("state", "!=", "FINISHED"), ("state", "!=", "FAILED")], limit=5000, timeout=TIMEOUT_S,
            raise_on_missing_output=False,
        )  # fmt: skip
    except Exception as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        expected = "expected HOST:6379 or http://HOST:8265 of a cluster with a dashboard"
        raise ClusterUnreachable(f"--address {address}: no Ray cluster answers ({problem}); {expected}.") from error
    running: Counter[str | None] = Counter(task.actor_id for task in tasks if task.state == "RUNNING")
    waiting: Counter[str | None] = Counter(task.actor_id for task in tasks if task.state != "RUNNING")
    named = Counter(actor.name for actor in actors)
    return [
        Actor(
            # Every job has names of its own.
            (actor.name or actor.class_name) + (f" (job {actor.job_id})" if named[actor.name] > 1 else ""),
            f"pid {actor.pid} on node {(actor.node_id or '')[:8]}",
            actor.state.lower(),
            f"{running[actor.actor_id]} running, {waiting[actor.actor_id]} waiting",
        )
        for actor in actors
    ]
