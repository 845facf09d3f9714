"""Fixtures shared by many tests: a Ray session, a tiny model, and a tiny trained run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import ROOT
from hypothesis import HealthCheck, Phase, settings
from rich.console import Console

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.documents.runs import RunSummary

# Before Ray starts, so that its actors inherit the setting: no usage statistics.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# As `actors.serving.session` does for a Ray of its own.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

# Before torch is imported: with several test processes, each computes with one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# No deadlines: the machine may be busy.
settings.register_profile("rlsys", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For launch/mutate.sh, which only needs to know whether a test fails.
settings.register_profile("mutation", settings.get_profile("rlsys"), phases=[Phase.explicit, Phase.reuse, Phase.generate])
settings.load_profile("rlsys")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Resolve `--numprocesses auto`: one per usable core, at most four."""
    return min(4, len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray with two cores for the whole test session."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield ray
    ray.shutdown()


@pytest.fixture
def s3_store(request, tmp_path, monkeypatch) -> str:
    """URL of an empty place in moto's S3 server, which the environment points to (skipped where moto is not installed)."""
    server = pytest.importorskip("moto.server", reason="moto is not installed (the extra s3-test)").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    request.addfinalizer(server.stop)
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    from pyarrow import fs

    place = {"endpoint_override": f"{host}:{port}", "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(allow_bucket_creation=True, **place).create_dir("bucket")
    return f"s3://bucket/{tmp_path.name}"


RATIO = "ratio of "


@pytest.fixture
def record_ratio(record_property):
    """Return `record_ratio(name, value)`, which prints a benchmark's ratio at the end of the session; it is never asserted."""
    return lambda name, value: record_property(RATIO + name, value)


def pytest_terminal_summary(terminalreporter):
    reports = [report for found in terminalreporter.stats.values() for report in found if getattr(report, "when", None) == "call"]
    ratios = sorted((name, value) for report in reports for name, value in report.user_properties if name.startswith(RATIO))
    if ratios:
        terminalreporter.section("ratios of this run's benchmarks")
        for name, value in ratios:
            terminalreporter.write_line(f"{value:10.3f}  {name.removeprefix(RATIO)}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a randomly initialised Llama of about a million parameters, with tokenizer and chat template."""
    from rlsys.models.loading import build_tiny

    return build_tiny(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Return `tiny(run_dir, model, "rl.steps=2", ...)`, which loads a smaller launch/configs/tiny.yaml."""
    from rlsys.config.files import load_config

    small = ["run.actor_timeout_s=1200", "data.heldout_rows=6", "data.responses=[1, 2]", "rl.prompts_per_step=2", "weights.verify=true"]

    def config(run_dir: Path, model: Path | str, *overrides: str) -> Config:
        return load_config(ROOT / "launch/configs/tiny.yaml", [f"run.dir={run_dir}", f"model.path={model}", *small, *overrides])

    return config


@pytest.fixture(scope="session")
def quiet() -> Iterator[Console]:
    """A console without output."""
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere, force_terminal=False)


@pytest.fixture(scope="session")
def straight_run(ray_session, tiny, quiet, tiny_model, tmp_path_factory) -> tuple[Config, RunSummary]:
    """An uninterrupted run of a tiny model, cold start and three RL steps: its config, and the result of `train`."""
    from actors.loops.rl import train

    config = tiny(tmp_path_factory.mktemp("straight") / "run", tiny_model, "checkpoint.every=1")
    return config, train(config, quiet)
