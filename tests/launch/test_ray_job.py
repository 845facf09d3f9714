"""Jobs on a running cluster, by `ray job submit` and `rlsys submit`: real cluster, real token, tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from commands import as_in_a_terminal
from random_scorer import build_random_scorer

from launch.commands.serve import free_port

ROOT = Path(__file__).resolve().parents[2]
START_S, SUBMIT_S, STOP_S = 600, 1200, 120
RLSYS = "python -m launch.cli"  # `rlsys` on PATH may be that of another checkout
SUBMIT = f"{RLSYS} submit launch/configs/quickstart.yaml"


class Head:
    """`ray start --head` in a session of its own, on ports and in a folder that no other cluster uses.

    Its environment is made by launch/ray_env.sh alone, starting from one in which neither the virtual environment nor Ray's
    settings are known. The token lies in the cluster's own folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.output = folder, folder / "start.log"
        hidden = ("RAY_", "VIRTUAL_ENV", "PYTHON")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        bin_folder = str(Path(sys.executable).parent)
        path = [entry for entry in os.environ["PATH"].split(os.pathsep) if entry != bin_folder]
        self.environment |= {"PATH": os.pathsep.join(path), "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "OMP_NUM_THREADS": "1"}
        # 0: Ray takes a free one. Its client server wants a number: one below those that the system hands out.
        client = 20_000 + os.getpid() % 9_000
        self.agent_port = client + 9_000
        ports = f"--port=0 --min-worker-port=0 --max-worker-port=0 --ray-client-server-port={client}"
        ports += f" --dashboard-agent-listen-port={self.agent_port}"
        command = f"ray start --head --block {ports} --num-cpus=2 --object-store-memory=200000000 --temp-dir={folder / 'ray'}"
        with self.output.open("w") as log:
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
            if found := re.search(r"RAY_API_SERVER_ADDRESS='(\S+)'", self.output.read_text()):
                return found[1]
            time.sleep(0.5)
        pytest.fail(f"ray start came to nothing:\n{self.output.read_text()}")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the root of the checkout, as someone who submits jobs to this cluster."""
        return subprocess.run(self.sourced(command), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=SUBMIT_S)

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Like `run`, without waiting; stdout goes to `log`."""
        with log.open("w") as output:
            return subprocess.Popen(
                self.sourced(command), cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.PIPE, preexec_fn=as_in_a_terminal
            )

    def watch(self, run: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Return what `rlsys top` shows of a run with its actors, once it has them."""
        wait_until(lambda: (run / "actors.json").is_file(), process)
        result = self.run(f"{RLSYS} top {run} --address {self.address()} --json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def working_directories(self) -> list[set[str]]:
        """Return the names of files and folders in each uploaded working directory that the cluster holds, to a depth of two."""
        places = [each for each in self.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*") if each.is_dir()]
        return [{str(path.relative_to(place)) for depth in ("*", "*/*") for path in place.glob(depth)} for place in places]

    def log(self, job: str) -> str:
        """Return a job's log, from the file in which Ray keeps it."""
        return next(self.folder.glob(f"ray/session_2*/logs/job-driver-{job}.log")).read_text()

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


class DroppingProxy:
    """A TCP proxy on this machine, at `address`, whose `drop` breaks every open connection."""

    def __init__(self, target: str):
        self.host, self.port = re.fullmatch(r"http://([^:/]+):(\d+)", target).groups()  # type: ignore[union-attr]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.host, int(self.port)))
            self.pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        self.drop()


def wait_until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SUBMIT_S
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=STOP_S)
        time.sleep(0.1)


def settings(folder: Path) -> str:
    """The overrides that make the quickstart's config a run of a few seconds."""
    return " ".join(
        [
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
    )


class Submitted(NamedTuple):
    """A run that `rlsys submit` followed through a proxy that broke the connection in the middle."""

    job: str
    output: str
    run: Path
    uploaded: list[set[str]]
    """Names in the working directories that the cluster held during the run, to a depth of two."""
    top: dict[str, Any]
    """What `rlsys top` showed during the run."""


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory) -> Submitted:
    folder = tmp_path_factory.mktemp("submitted")
    proxy, output = DroppingProxy(head.address()), folder / "output"
    options = f"--address {proxy.address} --exclude launch/bench --env VLLM_LOGGING_LEVEL=DEBUG"
    try:
        process = head.start(f"{SUBMIT} {settings(folder)} {options}", output)
        wait_until(lambda: "held-out rows" in output.read_text(), process)
        uploaded = head.working_directories()  # Ray removes them with their jobs.
        proxy.drop()
        top = head.watch(folder / "run", process)
        _, messages = process.communicate(timeout=SUBMIT_S)
    finally:
        proxy.close()
    assert process.returncode == 0, (messages.decode() + output.read_text())[-8000:]
    job = re.search(r"raysubmit_\w+", messages.decode())
    assert job and f"{job[0]}: SUCCEEDED" in messages.decode()
    return Submitted(job[0], output.read_text(), folder / "run", uploaded, top)


def test_the_cluster_finds_the_command_and_runs_the_uploaded_code(head: Head) -> None:
    result = head.run(f"ray job submit --address {head.address()} --working-dir . -- rlsys doctor --json")
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    report, _ = json.JSONDecoder().raw_decode(result.stdout[result.stdout.index("\n{") + 1 :])
    assert report["ok"] and report["ray"]["auth_mode"] == "token"
    assert Path(report["python"]["executable"]).parent.resolve() == Path(sys.executable).parent.resolve()
    assert Path(report["code"]).is_relative_to(head.folder / "ray")  # not the checkout that .venv was made from


def test_a_submitted_run_leaves_its_summary(submitted: Submitted) -> None:
    summary = json.loads((submitted.run / "summary.json").read_text())
    assert set(summary["heldout"]) == {"base", "cold_start", "rl"}


def test_the_log_is_printed_once_although_the_connection_broke(head: Head, submitted: Submitted) -> None:
    assert submitted.output == head.log(submitted.job)
    assert submitted.output.count("held-out rl:") == 1


def test_the_terminal_view_shows_the_cluster_of_a_run(submitted: Submitted) -> None:
    assert submitted.top["state"] == "running" and submitted.top["name"] == "run"
    actors = {actor["name"]: actor for actor in submitted.top["actors"]}
    assert {"rollout-0", "learner-0", "reward"} <= actors.keys()
    assert actors["rollout-0"]["state"] == "alive" and actors["rollout-0"]["calls"].endswith("waiting")


def test_variables_reach_the_actors(submitted: Submitted) -> None:
    assert "DEBUG" in (submitted.run / "logs" / "rollout-0.log").read_text()


def test_the_working_directory_is_uploaded_without_what_is_excluded(submitted: Submitted) -> None:
    assert any({"rlsys", "actors", "launch/configs"} <= names and "launch/bench" not in names for names in submitted.uploaded)
    assert not any({"docs", "tests", ".venv", ".git", "models"} & names for names in submitted.uploaded)


def test_a_jobs_exit_status_is_that_of_its_command(head: Head, tmp_path: Path) -> None:
    result = head.run(f"{SUBMIT} {settings(tmp_path)} data.train=/nowhere.jsonl --address {head.address()}")
    assert result.returncode == 2, result.stderr
    assert "/nowhere.jsonl" in result.stdout and "FAILED" in result.stderr


@pytest.mark.parametrize("choice", ["detach", "stop"])
def test_ctrl_c_detaches_or_stops(head: Head, tmp_path: Path, choice: str) -> None:
    output = tmp_path / "output"
    process = head.start(f"{SUBMIT} {settings(tmp_path)} --address {head.address()} --on-interrupt {choice}", output)
    wait_until(lambda: "checking settings" in output.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=STOP_S)
    assert process.returncode == 130
    job = re.search(r"raysubmit_\w+", messages.decode())
    assert job and "same command" not in messages.decode()  # it would submit a second job
    status = head.run(f"ray job status --address {head.address()} {job[0]}").stdout
    if choice == "stop":
        assert "was stopped" in status and f"{job[0]}: STOPPED" in messages.decode()
        return
    assert "RUNNING" in status and f"ray job stop --address {head.address()} {job[0]}" in messages.decode()
    assert "was stopped" in head.run(f"ray job stop --address {head.address()} {job[0]}").stdout


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_probes_of_the_manifests_answer_without_the_token(head: Head, name: str) -> None:
    text = (ROOT / "launch/cluster" / name).read_text()
    probes = set(re.findall(r"httpGet: {path: (\S+), port: (\d+)}", text))
    assert len(probes) == 2
    address = head.address()
    places = {"8265": address, "52365": f"{address.rpartition(':')[0]}:{head.agent_port}"}
    for path, port in probes:
        with urllib.request.urlopen(f"{places[port]}{path}", timeout=60) as answer:
            assert answer.status == 200 and b"success" in answer.read()


def test_without_the_token_nobody_gets_in(head: Head) -> None:
    environment = head.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    for command in (f"ray job list --address {head.address()}", f"{SUBMIT} run.dir=/r model.path=/m --address {head.address()}"):
        result = subprocess.run(head.sourced(command), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SUBMIT_S)
        assert result.returncode != 0
        assert "token" in (result.stdout + result.stderr).lower()
    assert result.returncode == 2 and "Traceback" not in result.stderr


@pytest.mark.nightly
def test_a_judge_is_served_by_serve_deploy_and_by_rlsys_serve(head: Head, tiny_model: Path, tmp_path: Path) -> None:
    """The file that is shipped, for a tiny model; then the same with a meta reward model, by the command, which removes it at its end."""
    port = free_port("127.0.0.1", 0)
    url, body = f"http://127.0.0.1:{port}", {"conversation": "q", "responses": ["a", "b"], "k": 2}
    token = tmp_path / "token"
    token.write_text("a-token-for-the-test")
    allowed = {"Authorization": f"Bearer {token.read_text()}"}
    small = ["rollout.max_tokens=16", "rollout.kv_cache_gib=0.25"]

    def score() -> httpx.Response:
        return httpx.post(f"{url}/v1/score", json=body, headers=allowed, timeout=SUBMIT_S)

    def is_ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/readyz", headers=allowed, timeout=60).status_code == 200
        return False

    described = yaml.safe_load((ROOT / "launch/cluster/serve.yaml").read_text())
    described["http_options"] = {"host": "127.0.0.1", "port": port}
    described["applications"][0]["args"] |= {
        "model": str(tiny_model), "max_replicas": 1, "token_file": str(token), "settings": [*small, "rollout.cpus=1"]
    }  # fmt: skip
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(described))
    deployed = head.run(f"serve deploy {file} --address {head.address()}")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    deadline = time.monotonic() + START_S
    while not is_ready():
        assert time.monotonic() < deadline, head.run(f"serve status --address {head.address()}").stdout
        time.sleep(1)
    assert len(score().json()["samples"]) == 2
    assert httpx.post(f"{url}/v1/score", json=body, timeout=60).status_code == 401
    assert head.run(f"serve shutdown -y --address {head.address()}").returncode == 0

    scorer, log = build_random_scorer(tiny_model, tmp_path / "scorer"), tmp_path / "log"
    gcs = re.search(r"--address='([\d.:]+)'", head.output.read_text())
    assert gcs, head.output.read_text()
    command = (
        f"{RLSYS} serve --model {tiny_model} --meta-rm {scorer} --token-file {token} --address {gcs[1]} --port {port} {' '.join(small)}"
    )
    process = head.start(command, log)
    wait_until(lambda: "Ctrl-C stops it" in log.read_text(), process)
    answer = score().json()
    assert answer["strategy"] == "meta" and all(isinstance(sample["meta_reward"], float) for sample in answer["samples"]), answer
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=STOP_S)
    assert process.returncode == 0, log.read_text() + messages.decode()
    assert "rlsys" not in head.run(f"serve status --address {head.address()}").stdout
