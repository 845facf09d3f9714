"""A real Prometheus scrapes a real job: every query of the board and every alert rule has an answer."""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, rlsys_here

from rlsys.monitoring.alerts import Thresholds, rules, rules_text
from rlsys.monitoring.board import rows
from rlsys.monitoring.prometheus import DISCOVERY, configuration

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"),
]

DEADLINE_S = 800
JOB = [
    "run.actor_timeout_s=600", "data.heldout_rows=2", "rl.prompts_per_step=2", "rl.steps=4", "rl.staleness=1", "rl.equal_groups=train",
    "rl.eval_every=2", "checkpoint.every=1", "sft.rows=0", "rollout.max_tokens=32", "learner.ranks=1", "run.dashboard=true",
]  # fmt: skip
VARIABLES = {"$run": ".+", "$SessionName": ".+", "$__rate_interval": "30s"}
EAGER = Thresholds(stalled_minutes=0, kl=-1, parse_failures=-1, entropy=1e9)
"""With these, every alert of a step fires."""
OTHER_JOBS = """
import os, sys, time
import ray
from actors.cluster.metrics import RunMetrics

ray.init(address=sys.argv[1], logging_level="error")
metrics = RunMetrics("other")
metrics.update({"nll": 1.0, "round": 1, "heldout_auc": 0.5, "row_tokens": 10, "source/a/rows": 2, "source/a/reward": 0.5})

@ray.remote(num_cpus=0)
class Doomed:
    def die(self):
        os._exit(1)

try:
    ray.get(Doomed.remote().die.remote())
except ray.exceptions.RayActorError:
    print("died", flush=True)
time.sleep(3600)
"""
"""Sets what only the other jobs measure, and lets an actor die."""


def wait_for(there: Callable[[], Any], process: subprocess.Popen[str], what: str) -> Any:
    """Return `there()` once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := there()):
        assert process.poll() is None, f"{what}: the process ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.2)
    return found


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process group of its own, which ends with the block."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)} | environment
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, cwd=ROOT, env=env, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def session_of(job: subprocess.Popen[str]) -> Path | None:
    """Return the session folder of the job's local Ray, once that lists its metrics endpoint and has written Grafana's settings."""
    found = [Path(name) for name in glob.glob(f"/tmp/ray/session_*_{job.pid}")]
    written = (DISCOVERY, "metrics/prometheus/prometheus.yml")  # the latter is written last
    return found[0] if found and all((found[0] / name).exists() for name in written) else None


class Prometheus:
    """The API of a running server."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: object) -> Any:
        with urllib.request.urlopen(f"{self.address}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            document = json.loads(answer.read())
        assert document["status"] == "success", document
        return document["data"]

    def is_up(self) -> bool:
        try:
            return bool(self.get("query", query="vector(1)"))
        except OSError:
            return False

    def values(self, expression: str, start: float) -> list[float]:
        """Return all values of all series since `start`."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        found = self.get("query_range", query=expression, start=start, end=time.time(), step=1)["result"]
        return [float(value) for series in found for _, value in series["values"]]


@contextmanager
def prometheus(folder: Path, session: Path) -> Iterator[Prometheus]:
    """Run a server that scrapes the session's endpoints, with the default rules and the eager ones."""
    (folder / "default.yml").write_text(rules_text())
    (folder / "eager.yml").write_text(rules_text(EAGER).replace("name: rlsys", "name: eager"))
    (folder / "prometheus.yml").write_text(configuration(session, [folder / "default.yml", folder / "eager.yml"], interval_s=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log") as process:
        server = Prometheus(port)
        wait_for(server.is_up, process, "Prometheus")
        yield server


def board_in_ray(session: Path, output: Path) -> None:
    """Put the board where Ray wrote that of Ray Data, which its dashboard embeds by this uid."""
    place = session / "metrics" / "grafana" / "dashboards" / "data_grafana_dashboard.json"
    before = json.loads(place.read_text())
    result = rlsys_here("board", "-o", output, "--in-ray", "--session", session)
    assert result.returncode == 0, result.stderr
    after = json.loads(place.read_text())
    assert after["title"] == "rlsys" != before["title"] and after["uid"] == before["uid"]


def test_every_query_and_every_rule_answers_over_a_running_job(tiny_model: Path, tmp_path: Path) -> None:
    import ray

    began, log = time.time(), tmp_path / "job.log"
    command = [sys.executable, "-m", "launch.cli", "train", "launch/configs/tiny.yaml", f"run.dir={tmp_path / 'run'}"]
    command += [f"model.path={tiny_model}", *JOB]
    with ExitStack() as stack:
        (tmp_path / "token").write_text("a" * 64)
        ray_settings = {"RAY_metrics_report_interval_ms": "1000", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        job = stack.enter_context(running(command, log, **ray_settings))
        session = wait_for(lambda: session_of(job), job, "Ray's session")
        server = stack.enter_context(prometheus(tmp_path, session))
        board_in_ray(session, tmp_path / "monitoring")
        (gcs,) = session.glob("gcs_server_port_*")
        helper = [sys.executable, "-c", OTHER_JOBS, f"{ray.util.get_node_ip_address()}:{gcs.read_text().strip()}"]
        with running(helper, tmp_path / "helper.log", **ray_settings) as other:
            wait_for(lambda: "died" in (tmp_path / "helper.log").read_text(), other, "an actor that dies")
            wait_for(lambda: server.values("max(ray_rlsys_kl)", began), job, "the first step")
            wait_for(lambda: server.values('ALERTS{alertname="RlsysActorDied"}', began), job, "the alert of the actor")
            job.wait(timeout=DEADLINE_S)
        assert job.returncode == 0, log.read_text()[-3000:]
        silent = [
            f"{panel.title}: {query.expression}"
            for panels in rows().values()
            for panel in panels
            for query in panel.queries
            if not server.values(query.expression, began) and not panel.needs_gpu
        ]
        assert silent == []
        for group in server.get("rules")["groups"]:
            assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(rule["alert"], "ok") for rule in rules()]
        for rule in rules(EAGER):
            assert server.values(f'ALERTS{{alertname="{rule["alert"]}"}}', began), rule["alert"]
        expressions = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(rules_text())["groups"][0]["rules"]}
        for quiet in ("RlsysNoStep", "RlsysKlHigh", "RlsysEntropyZero"):
            assert server.values(expressions[quiet], began) == [], quiet
