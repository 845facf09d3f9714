"""Several machines, for real: namespaces with addresses, /tmp, /dev/shm, /proc and loopback of their own, and a Ray cluster over them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import ROOT

from launch.bench.machines import SHARED, Machines, unavailable
from rlsys.io.metrics import MetricsLog
from rlsys.models.loading import build_tiny

REASON = unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"machines in namespaces: {REASON}")
JOB_S, NAMED_S = 600, 180
SMALL = (
    "launch/configs/tiny.yaml run.actor_timeout_s=300 data.heldout_rows=4 sft.rows=16 rl.steps=2 rl.prompts_per_step=2 rl.staleness=1 "
    "rl.equal_groups=train rollout.max_tokens=32 "
    "learner.ranks=2 learner.cpus=1 learner.zero_stage=3 rollout.cpus=2 checkpoint.every=1 weights.verify=true"
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that all machines have, not below /tmp, where each has its own."""
    with tempfile.TemporaryDirectory(prefix="rlsys-machines-", dir="/var/tmp") as name:
        yield Path(name)


# --- the wire alone ---------------------------------------------------------------------------------------------------

MEET = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from rlsys.system.network import interface_of
rank, own, host, port, interface = int(sys.argv[1]), *sys.argv[2:]
if interface == "set":
    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(own)
store = dist.TCPStore(host, int(port), 2, rank == 0, timedelta(seconds=90))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=90 if interface == "set" else 5))
sent = torch.full([1000], float(rank + 1))
dist.all_reduce(sent)
print("sum", sent.sum().item(), flush=True)
store.set(f"done {rank}", "")  # A rank that leaves earlier closes connections that the other one may still need.
store.wait(["done 0", "done 1"])
"""


def test_ranks_meet_by_the_interface_of_their_address_and_not_by_their_host_name(shared):
    """A host name that means the loopback is the rule on Debian: without the interface, gloo listens where nobody can reach it."""
    shutil.copytree(ROOT / "rlsys/system", shared / "code/rlsys/system")
    python = f"env PYTHONPATH={SHARED}/code {ROOT}/.venv/bin/python"
    with Machines(shared) as machines:
        pair = [machines.add(None) for _ in range(2)]
        ranks = [
            machines.popen(
                f"{python} -c '{MEET}' {rank} {machine.address} {pair[0].address} {port} {interface}",
                machine,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for port, interface in ((29500, "set"), (29501, "unset"))
            for rank, machine in enumerate(pair)
        ]
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert ["sum 3000.0" in output for output in outputs] == [True, True, False, False], outputs


def test_machines_end_with_the_process_that_holds_them_even_if_it_is_killed(shared):
    with Machines(shared) as machines:
        inside = [Path(f"/proc/{machines.add(None).process}") for _ in range(2)]
        assert all(each.exists() for each in inside)
        links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
        assert "machine-" not in links and "bridge" not in links  # this machine's own network is left alone
        machines.cut(machines.machines[0])
        _until(lambda: not inside[0].exists())
        assert inside[1].exists()
    # `with` kills it by SIGKILL.
    _until(lambda: not inside[1].exists())


def _until(true, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- the main job -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(shared) -> Iterator[Machines]:
    """Machine 1: the head, for the job itself; 2: two CPUs, which only the engine fits; 3 to 5: one CPU each, for ranks and rewards."""
    build_tiny(shared / "tiny-random")
    with Machines(shared) as machines:
        for cpus in (0, 2, 1, 1, 1):
            machines.add(cpus)
        yield machines


@pytest.fixture(scope="module")
def finished(cluster, shared) -> tuple[Path, str]:
    """(run folder, output) of a job over the five machines."""
    status, output = cluster.submit(f"rlsys train {SMALL} run.dir={SHARED}/run model.path={SHARED}/tiny-random", JOB_S)
    assert status == 0, output[-6000:]
    return shared / "run", output


def where(run: Path) -> dict[str, str]:
    """The address of each actor's machine."""
    return {name: told["machine"] for name, told in json.loads((run / "actors.json").read_text()).items()}


def on_every(machines: Machines, command: str) -> list[str]:
    """Output of a command on each machine."""
    outputs = []
    for machine in machines.machines:
        process = machines.popen(command, machine, stdout=subprocess.PIPE)
        outputs.append(process.communicate(timeout=60)[0])
    return outputs


def require_each_sample_once(run: Path, steps: int) -> None:
    """Every step is in metrics.jsonl, and each of its samples once in its table."""
    rows = MetricsLog.read(run)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        table = pq.read_table(run / f"trajectories/step_{row['step']:06d}.parquet")
        keys = list(zip(*(table[name].to_pylist() for name in ("group", "sample"))))
        assert len(keys) == len(set(keys)) == row["samples"]


@pytest.mark.nightly
def test_engine_ranks_and_reward_actor_work_on_machines_of_their_own(cluster, finished):
    run, _ = finished
    _, engine, *others = [machine.address for machine in cluster.machines]
    found = where(run)
    assert found["rollout-0"] == engine
    assert sorted([found["learner-0"], found["learner-1"], found["reward"]]) == sorted(others)
    # Checksums of every tensor were compared after each of the transfers (weights.verify): a difference ends the run.
    assert [row["weight_version"] for row in MetricsLog.read(run)] == [2, 3]
    assert all(row["skipped"] == 0 for row in MetricsLog.read(run))
    assert json.loads((run / "summary.json").read_text())["rl_steps"] == 2


@pytest.mark.nightly
def test_trajectories_checkpoints_and_logs_of_all_machines_are_in_the_run_folder_and_nowhere_else(cluster, finished):
    run, _ = finished
    require_each_sample_once(run, 2)
    state = run / "checkpoints/step_000002/optimizer/state"
    assert len(list(state.glob("*optim_states.pt"))) == 2
    for name in ("rollout-0", "learner-0", "learner-1"):
        assert (run / f"logs/{name}.log").stat().st_size > 0
    elsewhere = on_every(cluster, r"find /tmp -xdev -name step_\*.parquet -o -xdev -name learner-\*.log -o -xdev -name summary.json")
    assert elsewhere == [""] * len(cluster.machines)


@pytest.mark.nightly
def test_a_folder_or_a_model_that_only_one_machine_has_is_refused_before_an_engine_starts(cluster):
    lonely = "/tmp/lonely"
    shell = f"mkdir {lonely} && cp -r {SHARED}/tiny-random {lonely}/model"
    assert cluster.popen(f"sh -c '{shell}'", cluster.machines[0]).wait(60) == 0
    status, output = cluster.submit(f"rlsys train {SMALL} run.dir={lonely}/run model.path={lonely}/model", JOB_S)
    assert status != 0
    for machine in cluster.machines[1:]:
        assert f"machine {machine.address} does not see {lonely}/run/logs: choose a run.dir on storage that all machines share" in output
        assert f"machine {machine.address} has no folder {lonely}/model: put the model on storage that all machines share" in output
    assert "Traceback" not in output


@pytest.mark.nightly
def test_a_machine_added_later_is_used_and_one_taken_away_is_named(cluster, finished, shared):
    added = cluster.add(1)
    settings = f"{SMALL} learner.ranks=4 rl.steps=1000 checkpoint.every=0 model.path={SHARED}/tiny-random run.dir={SHARED}/longer"
    settings += " recovery.max_restarts=0"
    metrics = shared / "longer/metrics.jsonl"
    job = cluster.start_job(f"rlsys train {settings}")
    _until(lambda: job.poll() is not None or metrics.exists() and metrics.read_text().count("\n") >= 1, JOB_S)
    assert job.poll() is None, job.communicate()[0][-6000:]
    found = where(shared / "longer")
    name = next(name for name, address in found.items() if address == added.address)
    cluster.cut(added)
    cut_at = time.monotonic()
    output, _ = job.communicate(timeout=NAMED_S)
    print(f"named {time.monotonic() - cut_at:.0f} s after it was cut")
    assert job.returncode != 0
    assert name in output and added.address in output, output[-6000:]


@pytest.mark.nightly
def test_a_run_goes_on_with_the_machines_that_are_left(cluster, finished, shared):
    """Two ranks on two of three machines of their size; one of the two is cut off, and the third takes its place."""
    steps, run = 6, shared / "moved"
    job = cluster.start_job(f"rlsys train {SMALL} rl.steps={steps} model.path={SHARED}/tiny-random run.dir={SHARED}/moved")
    metrics = run / "metrics.jsonl"
    _until(lambda: job.poll() is not None or metrics.exists() and metrics.read_text().count("\n") >= 2, JOB_S)
    assert job.poll() is None, job.communicate()[0][-6000:]
    lost = next(machine for machine in cluster.machines if machine.address == where(run)["learner-1"])
    cluster.cut(lost)
    output, _ = job.communicate(timeout=JOB_S)
    assert job.returncode == 0 and "all actors start anew, and the run continues from its last checkpoint" in output, output[-6000:]
    assert lost.address not in where(run).values()
    require_each_sample_once(run, steps)
