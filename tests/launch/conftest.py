"""Fixtures of the command tests: a tiny trained run, and benchmarks run as commands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, run_rlsys
from rich.console import Console

from rlsys.config.files import load_config
from rlsys.config.schema import Config
from rlsys.documents.runs import RunSummary
from rlsys.models.loading import build_tiny


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """Return `tiny(run_dir, model, "rl.steps=2", ...)`, which loads a smaller launch/configs/tiny.yaml."""
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


@pytest.fixture(scope="session")
def tiny_bench_model(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("bench") / "tiny-random")


@pytest.fixture(scope="session")
def run_bench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `run_bench("step", "--prompts", 2, ...)`, which runs `rlsys bench step --prompts 2 ...`."""
    return partial(run_rlsys, "bench", timeout_s=1800)


@pytest.fixture(scope="session")
def all_cores() -> tuple[object, ...]:
    """`--cores` with all cores, for benchmarks that spend most of their time starting engines and learners."""
    return "--cores", len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def bench(run_bench) -> Callable[..., dict[str, Any]]:
    """Return `bench("step", "--prompts", 2, ...)`, which returns the JSON document of `rlsys bench step --prompts 2 ... --json`."""

    def document(*arguments: object) -> dict[str, Any]:
        result = run_bench(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return document
