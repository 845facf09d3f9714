"""`rlsys doctor`: examine the installation, or measure which model families are supported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import UserError, only_json, print_text, to_stdout
from launch.environment import examine
from launch.options import AsJson
from rlsys.system.terminal import Table


def doctor(
    models: Annotated[bool, typer.Option("--models", help="Measure which model families are computed correctly instead.")] = False,
    family: Annotated[list[str] | None, typer.Option("--family", help="With --models: only this family; repeat for several.")] = None,
    write: Annotated[Path | None, typer.Option("--write", help="With --models: also write the table into this Markdown file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what is installed, what is missing, and what to do about it.

    The exit status is 1 if something that a run needs is missing, or if a model family is computed incorrectly.

    With --models, a tiny random model of each family is loaded as in a learner, and its log-probabilities and gradient are compared with
    those of transformers. packed: correct with learner.packing=true; plain: correct only without; refused: a run stops with an error
    before anything starts.

    Example: rlsys doctor --models --family gemma
    """
    if models:
        measure_models(family or [], write, as_json)
        return
    if family or write:
        raise UserError("--family and --write require --models.")
    with only_json(as_json) as write_json:
        report = examine()
        write_json(report)
        if not as_json:
            _print(report)
    if not report["ok"]:
        raise typer.Exit(1)


def measure_models(families: list[str], write: Path | None, as_json: bool) -> None:
    """Run `rlsys doctor --models`."""
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
        "device": ": ".join([device["kind"], *([", ".join(device["names"])] if device["names"] else [])])
        + (f", driver {device['driver']}" if device["driver"] else "")
        + f" (torch: {device['torch']})",
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
