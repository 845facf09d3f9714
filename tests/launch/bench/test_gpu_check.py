"""Every check that is made for GPUs runs on a CPU with the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from launch import gpu_check

TINY_SHAPE = ["--quick", "--prompt-tokens=64", "--output-tokens=8"]


@pytest.mark.nightly
@pytest.mark.parametrize("check", gpu_check.checks((64, 8), quick=True), ids=lambda check: check.name)
def test_each_check_runs_on_a_cpu(check: gpu_check.Check, tiny_model) -> None:
    if check.gpu_only:
        pytest.skip("flex attention trains on GPUs only")
    outcome = gpu_check.run(check, str(tiny_model), timeout_s=600)
    assert outcome.error == "" and outcome.figures, outcome.error


def test_a_check_that_fails_is_reported_and_the_others_are_kept(tmp_path) -> None:
    """The model does not exist; so no engine starts."""
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "launch.gpu_check", *TINY_SHAPE, "--only=learner", "--model=/nowhere", f"--out={out}", "--timeout=120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    outcomes = json.loads(out.read_text())["checks"]
    assert [each["name"] for each in outcomes] == ["learner, blocks", "learner, ZeRO-3"]
    assert all("/nowhere" in each["error"] for each in outcomes) and "FAILED" in done.stderr


def test_an_unknown_check_is_named(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.gpu_check", "--only=tpu"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode and "tpu" in done.stderr
