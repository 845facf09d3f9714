"""`rlsys bench intervals`: simulated coverage of the 95% intervals that are printed (`launch.bench.coverage`)."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.console import report
from launch.options import AsJson


def intervals(
    trials: Annotated[int, typer.Option(min=1, help="Trials of each setting.")] = 4000,
    kind: Annotated[str, typer.Option(help="Only kinds of interval whose name contains this.")] = "",
    every: Annotated[bool, typer.Option("--all", help="One line per setting, not only per kind.")] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate the coverage of every interval that is printed. Half an hour at the default number of trials.

    Example: rlsys bench intervals --kind paired --trials 1000
    """
    from launch.bench.coverage import measure, render

    report(as_json, lambda: measure(trials, kind), lambda document: render(document, every))
