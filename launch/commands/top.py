"""`rlsys top`: a run in the terminal, live."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from launch.console import UserError, only_json
from launch.options import AsJson


def top(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run (its run.dir), running or finished.")],
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster of the run: HOST:6379, http://HOST:8265, or auto. Adds states and calls.")
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show a run in the terminal: its phase, steps, held-out results, throughput, actors and last errors.

    Reads the run folder only; with --address also the states of the cluster's actors, and the calls that run and wait at each.

    Example: rlsys top runs/quickstart; rlsys top runs/quickstart --address auto
    """
    from rlsys.reporting.top.snapshot import Snapshot, take

    def look() -> Snapshot:
        if address is None:
            return take(run)
        from actors.cluster.state import cluster_actors

        return take(run, cluster_actors(address))

    with only_json(as_json) as write_json:
        first = look()
        if as_json:
            write_json(asdict(first))
            return
    if not sys.stdout.isatty():
        raise UserError("rlsys top draws on a terminal, and stdout is none; use --json for one snapshot.")
    try:
        from rlsys.reporting.top.app import Top
    except ModuleNotFoundError as error:
        raise UserError(f"rlsys top needs textual ({error}): pip install 'rlsys[top]'.") from error
    Top(look, every).run()
