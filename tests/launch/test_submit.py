"""`rlsys submit`: what it refuses before anything is uploaded. Jobs on a real cluster: test_ray_job.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import rlsys_here

from launch.commands.submit import job_environment, paths_of_one_machine
from launch.console import UserError
from rlsys.config.files import load_config
from rlsys.config.schema import Config

NOBODY = "http://127.0.0.1:9"
EVERYWHERE = ["run.dir=/shared/run", "model.path=/shared/model"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*EVERYWHERE, "--address", "127.0.0.1:6379"], "expected the dashboard's, http://HEAD:8265"),
        ([*EVERYWHERE, "--address", NOBODY], "no Ray dashboard answers here"),
        ([*EVERYWHERE, "rl.stepz=1", "--address", NOBODY], "Did you mean rl.steps?"),
        (["model.path=/shared/model", "--address", NOBODY], "run.dir=/shared/runs/quickstart"),
        (["run.dir=/shared/run", "--address", NOBODY], "model.path=/shared/models/smollm2-135m-instruct"),
        ([*EVERYWHERE, "--working-dir", "docs", "--address", NOBODY], "outside of"),
        ([*EVERYWHERE, "--working-dir", "nowhere", "--address", NOBODY], "no such folder"),
        ([*EVERYWHERE, "--env", "RLSYS_UNSET", "--address", NOBODY], "expected NAME=VALUE"),
    ],
)
def test_a_mistake_is_named_before_anything_is_uploaded(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOBODY)  # the command sets it
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    result = rlsys_here("submit", "launch/configs/quickstart.yaml", *arguments)
    assert result.returncode == 2
    assert expected in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("run", "model", "refused"),
    [
        ("/shared/run", "owner/name", []),
        ("/shared/run", "/shared/model", []),
        ("runs/x", "owner/name", ["run.dir"]),
        ("/shared/run", "./model", ["model.path"]),
        ("runs/x", "somewhere/tiny-random", ["run.dir", "model.path"]),
    ],
)
def test_paths_that_one_machine_has_are_named(run: str, model: str, refused: list[str]) -> None:
    config = load_config(None, [f"run.dir={run}", f"model.path={model}"], Config())
    assert [mistake.partition("=")[0] for mistake in paths_of_one_machine(config)] == refused


def test_the_runtime_environment_is_the_files_and_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {HF_HOME: /old, RLSYS_A: '1'}\nexcludes: [big]\npip: [six]\n")
    assert job_environment(tmp_path, ["*.bin"], ["HF_HOME=/new=x", "NCCL_SOCKET_IFNAME"], file) == {
        "working_dir": str(tmp_path),
        "excludes": ["big", "*.bin"],
        "env_vars": {"HF_HOME": "/new=x", "RLSYS_A": "1", "NCCL_SOCKET_IFNAME": "eth0"},
        "pip": ["six"],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pipp: [six]", "unknown keys pipp"),
        ("working_dir: .", "unknown keys working_dir"),
        ("[a]", "found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_runtime_environment_with_a_mistake_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=expected):
        job_environment(tmp_path, [], [], file)
