"""`rlsys serve`: a generative reward model behind HTTP."""

from __future__ import annotations

import shlex
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.judge import MetaRm, Settings
from launch.console import UserError, print_text, to_stdout
from launch.options import OnlyCheck
from rlsys.serving.limits import Limits
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rich.console import Console

    from actors.serving.session import Service
    from rlsys.config.schema import Config
    from rlsys.serving.service import ServiceArguments

EXAMPLE = '{"conversation": "Which one is a tool: whiskey, judo, beige, saw?", "responses": ["whiskey", "saw"]}'
DEFAULTS = Limits()


def serve(
    model: Annotated[str, typer.Option("--model", metavar="M", help="Run folder, model folder or hub name. A run also sets the template.")],
    settings: Settings = None,
    meta_rm: MetaRm = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Samples of a request that names no k.")] = 8,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="S", help="Of a request that names none. Default: vote; with --meta-rm, meta.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Sampling temperature of a request that names none.")] = 0.5,
    host: Annotated[str, typer.Option("--host", help="Address to bind. The default can be reached from this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Bearer token that requests must send. Default: the variable RLSYS_TOKEN."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDRESS", help="Of a running Ray cluster. Default: a local Ray of its own."),
    ] = None,
    min_replicas: Annotated[int, typer.Option("--min-replicas", min=1, help="Engines that always run.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", min=1, help="Engines that run when many requests wait. Default: --min-replicas.")
    ] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Limit: MiB of a request's body.")] = DEFAULTS.max_body_mib,
    max_batch_mib: Annotated[int, typer.Option(min=1, help="Limit: MiB of a batch's body.")] = DEFAULTS.max_batch_mib,
    max_responses: Annotated[int, typer.Option(min=1, help="Limit: responses of a request.")] = DEFAULTS.max_responses,
    max_k: Annotated[int, typer.Option(min=1, help="Limit: samples of a request.")] = DEFAULTS.max_k,
    max_seconds: Annotated[int, typer.Option(min=1, help="Limit: seconds that a request may take.")] = DEFAULTS.max_seconds,
    max_pending: Annotated[int, typer.Option(min=1, help="Limit: requests in progress; more are refused.")] = DEFAULTS.max_pending,
    max_batches: Annotated[int, typer.Option(min=1, help="Limit: batches in progress; more are refused.")] = DEFAULTS.max_batches,
    drain_s: Annotated[float, typer.Option("--drain-s", min=0, help="Seconds for requests in progress, after Ctrl-C or SIGTERM.")] = 30.0,
    check: OnlyCheck = False,
) -> None:
    """Serve a judge: scores of any number of responses by the votes of k samples, over HTTP.

    Starts engines in a Ray of its own, or on a cluster, and prints the address once they answer. GET /docs lists the routes. Ctrl-C, or
    SIGTERM, refuses further requests, lets those in progress finish, and stops everything; a second Ctrl-C does not wait.

    Example: rlsys serve --model runs/quickstart --k 8
    """
    from launch.check import run_checks
    from rlsys.serving.service import ServiceArguments, read_token, service_config

    if max_replicas is not None and max_replicas < min_replicas:
        raise UserError(f"--max-replicas {max_replicas}: expected at least --min-replicas, {min_replicas}.")
    limits = Limits(max_body_mib, max_batch_mib, max_responses, max_k, max_seconds, max_pending, max_batches)
    arguments = ServiceArguments(
        model=model,
        meta_rm=meta_rm,
        settings=settings or [],
        k=k,
        strategy=strategy,
        temperature=temperature,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        token_file=token_file,
        limits=limits,
    )
    token = read_token(token_file)
    config, reward_model, problems = service_config(arguments)
    if address is None or check:
        run_checks("serve", config, [*problems, *exposed(host, token)], check, meta_rm=meta_rm)
    elif mistakes := [*problems, *exposed(host, token)]:
        raise UserError("\n".join(mistakes))
    if address is None:
        port = free_port(host, port)
    run_service(arguments, config, reward_model, token, host, port, address, drain_s)


def run_service(
    arguments: ServiceArguments,
    config: Config,
    meta_rm: str | None,
    token: str | None,
    host: str,
    port: int,
    address: str | None,
    drain_s: float,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from actors.serving.session import running_service

    console = to_stdout()
    print_text(console, "starting the engines …")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlsys-logs-") as scratch:
        if address is None:
            arguments = arguments.model_copy(update={"logs": Path(scratch)})
        with running_service(arguments, config, meta_rm, token, host, port, address) as service:
            print_text(console, f"ready after {time.monotonic() - began:.0f} s")
            introduce(service.url, arguments, token, console)
            wait_for_the_end(service, drain_s, console)
    print_text(console, "stopped")


def exposed(host: str, token: str | None) -> list[str]:
    """Return the mistake of a service that others can reach without a token."""
    from rlsys.system.local_http import is_loopback

    if token is not None or is_loopback(host):
        return []
    return [f"--host {host}: others can reach this address, so a token is required: --token-file FILE, or the variable RLSYS_TOKEN."]


def free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0.

    Raises:
        UserError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be bound ({error}); choose another --port, or 0 for a free one.") from error


def introduce(url: str, arguments: ServiceArguments, token: str | None, console: Console) -> None:
    """Print where the service is, and two lines to copy."""
    from rlsys.serving.service import default_strategy

    least, most = arguments.replicas
    table = Table(show_header=False)
    table.add_row("address", url)
    table.add_row("model", arguments.model + (f", meta reward model {arguments.meta_rm}" if arguments.meta_rm else ""))
    table.add_row("engines", str(least) if least == most else f"{least} to {most}, by the requests that wait")
    table.add_row("by default", f"k = {arguments.k}, strategy {default_strategy(arguments)}, temperature {arguments.temperature:g}")
    table.add_row("token", "none is needed" if token is None else "required")
    table.add_row("routes", f"{url}/docs, {url}/metrics")
    console.print(table)
    print_text(console, curl_line(url, arguments.token_file, token))
    print_text(console, f"curl {url}/readyz")
    print_text(console, "Ctrl-C stops it")


def curl_line(url: str, token_file: Path | None, token: str | None) -> str:
    """Return a line for a shell that asks the service; it names where the token is, not the token."""
    line = shlex.join(["curl", f"{url}/v1/score", "-H", "Content-Type: application/json", "-d", EXAMPLE])
    if token is None:
        return line
    place = "$RLSYS_TOKEN" if token_file is None else f"$(cat {shlex.quote(str(token_file))})"
    return f'{line} -H "Authorization: Bearer {place}"'


def wait_for_the_end(service: Service, drain_s: float, console: Console) -> None:
    """Return after Ctrl-C or SIGTERM, once the requests in progress are answered or `drain_s` seconds have passed.

    Raises:
        ServiceError: the service itself has ended.
    """
    try:
        while True:
            service.check()
            time.sleep(2.0)
    except KeyboardInterrupt:
        print_text(console, f"stopping: no further requests; those in progress have {drain_s:g} s")
        if left := service.drain(drain_s):
            print_text(console, f"{left} request(s) were not finished", "yellow")
