"""The Typer app of `rlsys`. Each command imports its dependencies when it runs, so that `--help` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.bench.app import bench_app
from launch.commands.board import board
from launch.commands.config import config_app
from launch.commands.data import data_app
from launch.commands.doctor import doctor
from launch.commands.eval import evaluate
from launch.commands.export import export
from launch.commands.judge import judge
from launch.commands.ladder import ladder
from launch.commands.meta_rm import meta_rm
from launch.commands.metrics import metrics
from launch.commands.plan import plan
from launch.commands.policy import policy
from launch.commands.prompt import prompt
from launch.commands.report import report
from launch.commands.rft import filter_rows, rft
from launch.commands.score import score
from launch.commands.serve import serve
from launch.commands.show import show
from launch.commands.submit import submit
from launch.commands.top import top
from launch.commands.train import sft, train
from launch.commands.view import view
from launch.commands.vote import vote

app = typer.Typer(
    name="rlsys",
    help="Train a generative reward model by online RL on a Ray cluster: vLLM rollouts, rule-based rewards, DeepSpeed learners.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        import importlib.metadata

        print(f"rlsys {importlib.metadata.version('rlsys')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


app.command()(train)
app.command()(sft)
app.command()(rft)
app.command("filter")(filter_rows)
app.command("meta-rm")(meta_rm)
app.command()(ladder)
app.command()(policy)
app.command()(submit)
app.command()(plan)
app.command()(judge)
app.command()(serve)
app.command("eval")(evaluate)
app.command()(vote)
app.command()(report)
app.command()(show)
app.command()(view)
app.command()(metrics)
app.command()(top)
app.command()(board)
app.command()(score)
app.command()(doctor)
app.command()(prompt)
app.command()(export)
app.add_typer(config_app)
app.add_typer(data_app)
app.add_typer(bench_app)
