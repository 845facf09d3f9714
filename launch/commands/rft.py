"""`rlsys rft` and `rlsys filter`: rejective fine-tuning, and marking the rows that a model always gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides
from rlsys.system.stopping import stops_at_sigterm


@stops_at_sigterm()
def rft(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Rejective fine-tuning: sample rows with and without a hint, reject samples, fine-tune on the rest.

    Of the rft.samples samples without a hint, incorrect ones are rejected, and all of them if none is incorrect; the sample with the
    ground truth in its prompt is rejected if incorrect. The model learns the rest without the hint, mixed with rft.instruction_data;
    rft.rounds repeats the procedure. RUN/trajectories/rft_round_1.parquet holds every sample and why it was kept or rejected, RUN/model
    the resulting model, from which `rlsys train` can start (model.path=RUN). If the folder already holds a run, the run resumes where it
    stopped.

    Example: rlsys rft launch/configs/quickstart.yaml model.path=runs/cold-start rft.rows=1024 run.dir=runs/rft
    """
    from launch.check import load_checked_config

    settings = load_checked_config("rft", config, overrides, check)
    from actors.loops.rft import rejective_fine_tuning

    rejective_fine_tuning(settings, console=to_stdout())


def filter_rows(
    config: ConfigFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write, one line per row.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per row; a row is easy if all of them are right.")] = 3,
    rows: Annotated[int | None, typer.Option(min=1, help="Number of rows of data.train, in the order of a run. Default: all.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Start over, ignoring existing rows in OUTPUT.")] = False,
    check: OnlyCheck = False,
) -> None:
    """Mark the rows of data.train that model.path always gets right: RL has nothing to learn from them.

    Each line is {id, source, right, samples, easy, failures, tokens}. Pass the file to a run as data.exclude to leave out its easy rows.
    If the command is interrupted, run it again to resume after the last line.

    Example: rlsys filter launch/configs/quickstart.yaml --rows 2000 --output easy.jsonl
    """
    from launch.check import load_checked_config

    settings = load_checked_config("filter", config, overrides, check, files=(str(output),))
    from actors.loops import filter

    filter.filter_rows(settings, output, samples, rows, again, to_stdout())
