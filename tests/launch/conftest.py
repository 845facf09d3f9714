"""What the benchmarks' tests share: a tiny model, and a command run as a person would, its figures kept for the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlsys.models import build_tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny_bench_model(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("bench") / "tiny-random")


@pytest.fixture(scope="session")
def bench():
    """`bench("step", "--prompts", 2, ...)` -> the JSON document that `rlsys bench step --json ...` prints."""

    def run(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "launch.cli", "bench", *map(str, arguments), "--json"]
        environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run
