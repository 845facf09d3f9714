"""Fixtures of the command tests: benchmarks run as commands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import run_rlsys

from rlsys.models.loading import build_tiny


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
