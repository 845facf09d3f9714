"""`rlsys submit`: run a command on a Ray cluster, as `ray job submit` does, with the checks that need no cluster made first."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import Detached, UserError, print_text, to_stderr
from launch.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from actors.cluster.submission import Client
    from rlsys.config.schema import Config


class Command(StrEnum):
    """Commands that need a config and nothing else."""

    train = "train"
    sft = "sft"
    rft = "rft"
    meta_rm = "meta-rm"
    ladder = "ladder"
    policy = "policy"


class OnInterrupt(StrEnum):
    """What Ctrl-C does to the job."""

    detach = "detach"
    stop = "stop"


def submit(
    config: ConfigFile,
    address: Annotated[
        str,
        typer.Option(metavar="URL", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The dashboard's address: http://HEAD:8265."),
    ],
    overrides: Overrides = None,
    command: Annotated[Command, typer.Option(help="The command to run with CONFIG.")] = Command.train,
    working_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to upload, in which the job runs: the checkout. CONFIG must lie in it."),
    ] = Path("."),
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Not uploaded, like .git, .venv, and all in .gitignore and .rayignore.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="Variable for driver and actors (default value: its value here), visible to everyone who may open the dashboard.",
            show_default=False,
        ),
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with more of Ray's runtime environment: pip, image_uri, ...")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Print the job's log, and exit with its status; else print its name only.")] = True,
    on_interrupt: Annotated[OnInterrupt, typer.Option(help="What Ctrl-C does to the job.")] = OnInterrupt.detach,
) -> None:
    """Run a command on a Ray cluster: upload the working directory, follow the log, and exit with the job's status.

    Settings are checked here before anything is uploaded; data and model are checked by the job, on the cluster. run.dir, and model.path if
    it is a folder, must be on storage that all machines see.

    Example: rlsys submit launch/configs/quickstart.yaml --address http://HEAD:8265 run.dir=/shared/runs/first
    model.path=/shared/models/smollm2-135m-instruct
    """
    from rlsys.config.files import load_config

    settings = load_config(config, overrides)
    if mistakes := paths_of_one_machine(settings):
        raise UserError("\n".join(mistakes))
    entrypoint = shlex.join(["rlsys", command.value, _inside(config, working_dir), *(overrides or [])])
    environment = job_environment(working_dir, exclude or [], env or [], runtime_env)

    from actors.cluster import submission

    client = submission.connect(address)
    _say(f"uploading {working_dir.resolve()} …")
    job = submission.submit(client, entrypoint, environment, {"run.dir": str(settings.run.dir)})
    _say(f"{job}: {entrypoint}")
    if not follow:
        _say(_handles(job, address))
        print(job)
        return
    _follow(client, job, address, on_interrupt)


def paths_of_one_machine(config: Config) -> list[str]:
    """List the settings whose relative path would name a folder in Ray's copy of the working directory, on one machine alone."""
    from rlsys.models.loading import is_built_on_demand

    why = "Ray's copy of the working directory belongs to one machine and one job. Expected storage that all machines see, for example"
    mistakes = []
    if not (run := config.run.dir).is_absolute():
        mistakes.append(f"run.dir={run} is relative: {why} run.dir=/shared/{run}.")
    model = config.model.path
    local = is_built_on_demand(model) or Path(model).exists() or model.startswith(".")
    if local and not Path(model).is_absolute():
        mistakes.append(f"model.path={model} is relative: {why} model.path=/shared/{model}, or a hub name.")
    return mistakes


def _inside(config: Path, working_dir: Path) -> str:
    """Return the path of the config file as the job sees it."""
    try:
        return str(config.resolve().relative_to(working_dir.resolve(strict=True)))
    except FileNotFoundError as error:
        raise UserError(f"--working-dir {working_dir}: no such folder.") from error
    except ValueError as error:
        raise UserError(
            f"{config} is outside of {working_dir.resolve()}, the folder that is uploaded: move it there, or name another --working-dir."
        ) from error


def job_environment(working_dir: Path, excludes: list[str], variables: list[str], file: Path | None) -> dict[str, Any]:
    """Return Ray's runtime environment of the job: that of `file`, with the working directory, excludes and variables of the options.

    Raises:
        UserError: the file is not a runtime environment, or a variable has no value here.
    """
    environment = _read_runtime_env(file) if file else {}
    environment["working_dir"] = str(working_dir.resolve())
    environment["excludes"] = [*environment.get("excludes", []), *excludes]
    environment["env_vars"] = {**environment.get("env_vars", {}), **dict(_variable(each) for each in variables)}
    return environment


def _read_runtime_env(file: Path) -> dict[str, Any]:
    import yaml
    from ray.runtime_env import RuntimeEnv

    try:
        environment = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"--runtime-env {file}: not valid YAML: {error}") from error
    if not isinstance(environment, dict):
        raise UserError(f"--runtime-env {file}: expected a mapping with keys such as pip and env_vars, found {type(environment).__name__}.")
    allowed = {name for name in RuntimeEnv.known_fields if not name.startswith("_")} - {"working_dir"}
    if unknown := sorted(map(str, environment.keys() - allowed)):  # Ray only warns of them.
        raise UserError(f"--runtime-env {file}: unknown keys {', '.join(unknown)}; expected {', '.join(sorted(allowed))}.")
    return environment


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals and name not in os.environ:
        raise UserError(f"--env {text}: expected NAME=VALUE, or the name of a variable that is set here.")
    return name, value if equals else os.environ[name]


def _follow(client: Client, job: str, address: str, on_interrupt: OnInterrupt) -> None:
    """Print the job's log until it ends, then exit with its status."""
    import asyncio

    from actors.cluster import submission

    try:
        details = asyncio.run(submission.follow(client, job, _show))
    except KeyboardInterrupt:
        if on_interrupt == OnInterrupt.stop:
            _say(f"stopping {job} …")
            _say(f"{job}: {submission.stop(client, job)}")
        else:
            _say(f"detached; {job} goes on. {_handles(job, address)}")
        raise Detached(130) from None
    except submission.ConnectionLost:
        _say(f"the job may go on. {_handles(job, address)}")
        raise
    _say(f"{job}: {details.status.value}")
    if details.status != "SUCCEEDED":
        raise typer.Exit(details.driver_exit_code or 1)


def _show(text: str) -> None:
    """Print a piece of the log as it is, as a local run would."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print_text(to_stderr(), text)


def _handles(job: str, address: str) -> str:
    return f"Its log: `ray job logs --address {address} --follow {job}`. End it: `ray job stop --address {address} {job}`."
