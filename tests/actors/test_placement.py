"""Placement on real raylets with pretended GPUs: every actor reports the machine and the GPU that Ray gave it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from typing import Any

import pytest

pytestmark = pytest.mark.nightly
TIMEOUT_S = 500
JOBS = {
    "shared": ["learner.ranks=4", "rollout.actors=4"],
    "wide engines": ["learner.ranks=4", "rollout.actors=2", "rollout.tensor_parallel=2"],
    "split": ["learner.ranks=2", "rollout.actors=1", "rollout.tensor_parallel=2", "rl.staleness=1"],
    "judges": ["judges", "rollout.actors=2", "rollout.tensor_parallel=2"],
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the actors of each job report on two machines of two GPUs; and under "error", what a job says whose GPUs are taken."""
    given = {"machines": [[2, ["0", "1"]], [2, ["4", "5"]]], "jobs": list(JOBS.values())}
    command = [sys.executable, "-m", "tests.actors.placed", json.dumps(given)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith(('{"', '"'))]
    return dict(zip([*JOBS, "error"], lines, strict=True)) | {"stderr": result.stderr}


def gpus(job: dict[str, Any], kind: str) -> list[list[tuple[str, str]]]:
    """Return the (node, GPU) pairs of each actor of a kind, in order."""
    names = sorted((name for name in job["reported"] if name.startswith(kind)), key=lambda name: int(name.partition("-")[2]))
    return [[(job["reported"][name]["node"], gpu) for gpu in job["reported"][name]["gpus"]] for name in names]


@pytest.mark.parametrize(("name", "width"), [("shared", 1), ("wide engines", 2)])
def test_an_engine_has_the_gpus_of_its_ranks_and_every_rank_its_own(found, name, width):
    job = found[name]
    ranks, engines = list(chain(*gpus(job, "learner"))), gpus(job, "rollout")
    assert len(ranks) == len(set(ranks)) == 4
    assert engines == [ranks[start : start + width] for start in range(0, 4, width)]
    assert all(len({node for node, _ in engine}) == 1 for engine in engines)


def test_split_engines_and_learners_are_on_different_machines(found):
    ranks, (engine,) = list(chain(*gpus(found["split"], "learner"))), gpus(found["split"], "rollout")
    assert len(set(ranks)) == 2 and len(set(engine)) == 2
    assert len({node for node, _ in ranks}) == len({node for node, _ in engine}) == 1 and ranks[0][0] != engine[0][0]


def test_a_scorer_shares_a_gpu_of_the_first_engine(found):
    first, second = gpus(found["judges"], "rollout")
    assert not set(first) & set(second) and gpus(found["judges"], "scorer") == [[first[0]]]


def test_actors_are_on_the_machine_of_their_slot(found):
    for job in (found[name] for name in JOBS):
        for name, one in job["reported"].items():
            slot = job["placement"]["slots"][name]
            assert one["node"] == job["placement"]["machines"][slot["machine"]]["node_id"] and one["threads"] == slot["threads"]


def test_actors_get_the_gpus_that_their_machine_offers_and_the_variables_of_whoever_started_the_job(found):
    for job in (found[name] for name in JOBS):
        offered = dict(zip((machine["node_id"] for machine in job["placement"]["machines"]), [{"0", "1"}, {"4", "5"}], strict=True))
        for one in job["reported"].values():
            assert set(one["gpus"]) <= offered[one["node"]]
            variables = one["environment"]
            assert (variables["NCCL_DEBUG"], variables["HF_HUB_OFFLINE"], variables["HF_TOKEN"]) == ("WARN", "1", None)
            # An engine of several GPUs sets the variable itself (actors/rollout/rollout.py).
            assert len(one["gpus"]) > 1 or variables["CUDA_VISIBLE_DEVICES"] == one["gpus"][0]


def test_a_job_whose_gpus_another_one_holds_says_so_and_ends(found):
    assert "did not grant the job's resources within 2 s; requested: {'CPU': 1.0, 'GPU': 1} on" in found["error"]
    assert "free in the whole cluster: {'CPU': 0" in found["error"] and "'GPU': 0" in found["error"]
    assert "waiting up to 2 s for resources that other jobs hold" in found["stderr"]
