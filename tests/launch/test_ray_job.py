"""`ray job submit` of the main job to a running cluster, as in the README: real cluster, real token, tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S, SUBMIT_S, STOP_S = 600, 1200, 120


class Head:
    """`ray start --head` in a session of its own, on ports and in a folder that no other cluster uses.

    Its environment is made by launch/ray_env.sh alone, starting from one in which neither the virtual environment nor Ray's
    settings are known. The token lies in the cluster's own folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "start.log"
        hidden = ("RAY_", "VIRTUAL_ENV", "PYTHON")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        bin_folder = str(Path(sys.executable).parent)
        path = [entry for entry in os.environ["PATH"].split(os.pathsep) if entry != bin_folder]
        self.environment |= {"PATH": os.pathsep.join(path), "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "OMP_NUM_THREADS": "1"}
        # 0: Ray takes a free one. Its client server wants a number: one below those that the system hands out.
        client = 20_000 + os.getpid() % 9_000
        ports = f"--port=0 --dashboard-agent-listen-port=0 --ray-client-server-port={client} --min-worker-port=0 --max-worker-port=0"
        command = f"ray start --head --block {ports} --num-cpus=2 --object-store-memory=200000000 --temp-dir={folder / 'ray'}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.sourced(command), cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @staticmethod
    def sourced(command: str) -> list[str]:
        return ["bash", "-c", f"source launch/ray_env.sh && exec {command}"]

    def address(self) -> str:
        """The dashboard's address, which takes submissions, as `ray start` prints it."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"RAY_API_SERVER_ADDRESS='(\S+)'", self.log.read_text()):
                return found[1]
            time.sleep(0.5)
        pytest.fail(f"ray start came to nothing:\n{self.log.read_text()}")

    def submit(self, command: str) -> subprocess.CompletedProcess[str]:
        submission = self.sourced(f"ray job submit --address {self.address()} --working-dir . -- {command}")
        return subprocess.run(submission, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=SUBMIT_S)

    def watch(self, run: Path, job: Future[Any]) -> Iterator[dict[str, Any]]:
        """Yield what `rlsys top` shows of a run with its actors, once it has them."""
        command = self.sourced(f"rlsys top {run} --address {self.address()} --json")
        while not job.done():
            if not (run / "actors.json").is_file():
                time.sleep(0.2)
                continue
            result = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=SUBMIT_S)
            assert result.returncode == 0, result.stderr
            yield json.loads(result.stdout)
            return

    def stop(self) -> None:
        """End this cluster and no other: `ray stop` would end every cluster of the machine."""
        self.process.terminate()  # `ray start --block` takes its processes with it
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_S)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rlsys-"))  # short: Ray puts sockets below it, whose paths are limited to 107 bytes
    head = Head(folder)
    try:
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory) -> tuple[str, Path, list[dict[str, Any]]]:
    """(what a job printed that looked round and then trained, its run's folder, what `rlsys top` showed while it ran)."""
    folder = tmp_path_factory.mktemp("submitted")
    overrides = [
        f"run.dir={folder / 'run'}",
        f"model.path={folder / 'tiny-random'}",
        "model.dtype=float32",
        "data.heldout_rows=4",
        "prompt.template=compact",
        "prompt.max_tokens=600",
        "rollout.max_tokens=8",
        "rollout.max_num_seqs=16",
        "rollout.kv_cache_gib=0.25",
        "sft.rows=4",
        "sft.batch_rows=4",
        "rl.steps=1",
        "rl.prompts_per_step=2",
        "rl.group_size=2",
    ]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(head.submit, f"sh -c 'rlsys doctor --json && rlsys train launch/configs/quickstart.yaml {' '.join(overrides)}'")
        seen = list(head.watch(folder / "run", job))
        result = job.result()
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    return result.stdout, folder / "run", seen


def test_the_cluster_finds_the_command_and_runs_the_uploaded_code(head: Head, submitted: tuple[str, Path, list[dict[str, Any]]]) -> None:
    printed, _, _ = submitted
    report, _ = json.JSONDecoder().raw_decode(printed[printed.index("\n{") + 1 :])
    assert report["ok"] and report["ray"]["auth_mode"] == "token"
    assert report["python"]["executable"] == sys.executable
    assert Path(report["code"]).is_relative_to(head.folder / "ray")  # not the checkout that .venv was made from


def test_a_submitted_run_leaves_its_summary(submitted: tuple[str, Path, list[dict[str, Any]]]) -> None:
    _, run, _ = submitted
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["heldout"]) == {"base", "cold_start", "rl"}


def test_the_terminal_view_shows_the_cluster_of_a_run(submitted: tuple[str, Path, list[dict[str, Any]]]) -> None:
    _, _, seen = submitted
    assert seen[0]["state"] == "running" and seen[0]["name"] == "run"
    actors = {actor["name"]: actor for actor in seen[0]["actors"]}
    assert {"rollout-0", "learner-0", "reward"} <= actors.keys()
    assert actors["rollout-0"]["state"] == "alive" and actors["rollout-0"]["calls"].endswith("waiting")


def test_without_the_token_nobody_gets_in(head: Head) -> None:
    environment = head.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    command = head.sourced(f"ray job list --address {head.address()}")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SUBMIT_S)
    assert result.returncode != 0
    assert "token" in (result.stdout + result.stderr).lower()
