"""Create stand-ins for the actors of jobs on pretended machines with pretended GPUs, as Ray accounts for them. Run by test_placement.py.

Usage: python -m tests.actors.placed '{"machines": [[cpus, [gpu id, ...]], ...], "jobs": [[override, ...], ...]}'
Prints a line of JSON per job: the placement, and what each actor reports; then the error of a job that finds its GPUs taken.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.cluster.reservation import Reservation, cluster_machines, location
from actors.cluster.session import ray_session
from actors.cluster.waiting import ActorFailed, Pending, wait
from rlsys.config.files import load_config
from rlsys.config.schema import Run
from rlsys.system.placement import Placement, check_reported_gpus, place, place_judges

WAIT_S = 120
REPORTED = ("NCCL_DEBUG", "HF_HUB_OFFLINE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES")
"""Environment variables that the actors report."""


class StandIn:
    """Reports where it is."""

    def __init__(self, threads: int, gpus: list[str] | None = None):
        self.location = location() | ({} if gpus is None else {"gpus": gpus})
        self.location |= {"threads": threads, "environment": {name: os.environ.get(name) for name in REPORTED}}

    def where(self) -> dict[str, Any]:
        return self.location


def placement_of(overrides: list[str]) -> Placement:
    """Place a training run, or with the word "judges" engines and a scorer."""
    config = load_config(None, [override for override in overrides if override != "judges"])
    return place_judges(config, cluster_machines(), scorer=True) if "judges" in overrides else place(config, cluster_machines())


def run_job(placement: Placement) -> dict[str, Any]:
    """Reserve a placement, create an actor in each place, and return what they report."""
    reservation = Reservation(placement, WAIT_S)
    actors = {name: reservation.create(StandIn, name, gpus=reservation.gpu_ids(name)) for name in placement.slots}
    found = wait([Pending(actor.where.remote(), name, "where") for name, actor in actors.items()], WAIT_S)
    reported = dict(zip(actors, found, strict=True))
    check_reported_gpus(placement, {name: (one["node"], one["gpus"]) for name, one in reported.items()})
    for actor in actors.values():
        ray.kill(actor)
    reservation.release()
    return {"placement": asdict(placement), "reported": reported}


def refused_reservation(placement: Placement) -> str:
    """Return the error of a reservation whose resources another one holds."""
    held = Reservation(placement, WAIT_S)
    try:
        Reservation(placement, 2.0)
    except ActorFailed as error:
        return str(error)
    finally:
        held.release()
    return "granted"


def main() -> None:
    """Start the machines and run the jobs, one after the other."""
    given = json.loads(sys.argv[1])
    cluster = Cluster()
    for cpus, gpus in given["machines"]:
        cluster.add_node(num_cpus=cpus, num_gpus=len(gpus), env_vars={"CUDA_VISIBLE_DEVICES": ",".join(gpus)}, include_dashboard=False)
    # Set by whoever starts the job, after the machines were started.
    os.environ |= {"RAY_ADDRESS": cluster.address, "NCCL_DEBUG": "WARN", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}
    with ray_session(Run(dir=Path("/tmp"))):
        for overrides in given["jobs"]:
            print(json.dumps(run_job(placement_of(overrides))), flush=True)
        print(json.dumps(refused_reservation(placement_of(given["jobs"][0]))), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
