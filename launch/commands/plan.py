"""`rlsys plan`: what a run needs of its machines, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import ROOT, UserError, only_json, print_text, to_stdout
from launch.options import AsJson, ConfigFile, Overrides

SHAPES = ROOT / "launch" / "configs" / "shapes"


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per machine; 0: none.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB of each GPU; without GPUs, of each machine.")] = 80.0,
    host_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of host memory of each machine, to be checked.")] = None,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="GB/s between two machines.")] = 25.0,
    local_bandwidth: Annotated[float, typer.Option(min=0.001, help="GB/s between two GPUs of a machine.")] = 200.0,
    reserve: Annotated[float, typer.Option(min=0, help="GiB per process kept free for contexts, libraries and fragmentation.")] = 2.0,
    shape: Annotated[Path | None, typer.Option(help="Plan for the model of this config.json instead of model.path's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run: what goes where, the memory of every GPU by part, transfers, checkpoints; what does not fit, and what would make it fit.

    Nothing is started, and no weights are read: the model's shape comes from its config.json. Exit status 1: something does not fit.

    Example: rlsys plan launch/configs/gpu-8b-shared.yaml --gpus 8 --nodes 1 --memory 80
    """
    from rlsys.config.checks import require_consistent_settings
    from rlsys.config.files import load_config
    from rlsys.planning.advice import fitting_nodes, suggest
    from rlsys.planning.cluster import Machines
    from rlsys.planning.plan import make_plan
    from rlsys.planning.shape import read_shape
    from rlsys.planning.tables import document, tables

    settings = load_config(config, overrides)
    require_consistent_settings(settings, "train")
    machines = Machines(nodes, gpus, memory, host_memory, bandwidth, local_bandwidth, reserve)
    with only_json(as_json) as write_json:
        model = read_shape(shape or find_shape(settings.model.path))
        planned = make_plan(settings, model, machines)
        changes = suggest(settings, model, machines)
        more = None if planned.fits or changes else fitting_nodes(settings, model, machines)
        machines_that_fit = {"nodes": more[0], "change": list(more[1])} if more else None
        write_json(document(planned) | {"suggestions": [list(change) for change in changes], "more_machines": machines_that_fit})
        if not as_json:
            console = to_stdout()
            for table in tables(planned):
                console.print(table)
            for misfit in planned.misfits:
                print_text(console, f"does not fit: {misfit}", "red")
            for change in changes:
                print_text(console, f"fits with: {' '.join(change)}", "yellow")
            if more:
                print_text(console, f"fits on {more[0]} machines with: {' '.join(more[1])}", "yellow")
            if planned.fits:
                print_text(console, "Everything fits.", "green")
    if not planned.fits:
        raise typer.Exit(1)


def find_shape(model: str) -> Path:
    """Return the config.json of a model folder, a published shape of launch/configs/shapes, or the config.json of a hub name.

    Raises:
        UserError: there is none; the message says how to name one.
    """
    from huggingface_hub import hf_hub_download

    from rlsys.models.loading import ensure_model

    name = Path(model).name
    for candidate in (Path(model) / "config.json", SHAPES / f"{name}.json"):
        if candidate.is_file():
            return candidate
    try:
        return Path(hf_hub_download(ensure_model(model), "config.json"))
    except (ValueError, OSError) as error:  # an invalid name, no network, no such model
        known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.json")))
        raise UserError(
            f"model.path={model}: no config.json there, and the hub does not provide one ({type(error).__name__}). Pass "
            f"--shape CONFIG.JSON, or one of the shapes in launch/configs/shapes: {known}."
        ) from error
