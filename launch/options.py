"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlsys.config.endpoint import Endpoint

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; examples are in launch/configs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file, for example seed=1 model.path=M.", show_default=False),
]
OnlyCheck = Annotated[bool, typer.Option("--check", help="Only check settings, data and model; start nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a single JSON document to stdout.")]

FormOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="M", help="RUN, RUN@best, RUN@step_10, a model folder or a hub name. A trained model brings its template."
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="URL", help="OpenAI-compatible endpoint that answers instead of engines, e.g. http://127.0.0.1:8000/v1."
    ),
]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", metavar="NAME", help="Model at the endpoint. Default: the only one.")]
KeyVariable = Annotated[
    str | None, typer.Option("--api-key-env", metavar="VAR", help="Environment variable that holds the endpoint's key. Default: no key.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Maximum number of requests in flight at the endpoint.")]
JudgeBody = Annotated[
    str | None,
    typer.Option(
        "--judge-body", metavar="JSON", help="Further fields of every request; null removes one of temperature, max_tokens, seed."
    ),
]


def endpoint_of(
    url: str | None, model: str | None, key_variable: str | None, concurrency: int, body: str | None, connect: bool
) -> Endpoint | None:
    """Return the endpoint that the options name, with its model; None without `--judge`.

    Args:
        connect: connect to it even if its model is named.

    Raises:
        UserError: an option is invalid, or needs another one.
        rlsys.serving.endpoint.EndpointError: the endpoint cannot be used.
    """
    import json

    from pydantic import ValidationError

    from launch.console import UserError
    from rlsys.config.endpoint import Endpoint
    from rlsys.config.secrets import without_keys

    if url is None:
        given = {"--judge-model": model, "--api-key-env": key_variable, "--judge-body": body}
        if unused := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{', '.join(unused)}: only with --judge URL, the endpoint that answers.")
        return None
    try:
        fields = {} if body is None else json.loads(body)
        endpoint = Endpoint.model_validate(
            {"url": url, "model": model, "api_key_env": key_variable, "concurrency": concurrency, "body": fields}
        )
    except json.JSONDecodeError as error:
        raise UserError(f'--judge-body: not valid JSON ({error}); expected an object such as {{"max_tokens": 512}}.') from error
    except ValidationError as error:
        (first, *_) = error.errors()
        option = {"url": "--judge", "body": "--judge-body"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise UserError(without_keys(f"{option}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r}).")) from error
    try:
        endpoint.key()
    except ValueError as error:
        raise UserError(f"--api-key-env: {error}") from error
    if endpoint.model is None or connect:
        from rlsys.serving.endpoint import EndpointJudge

        with EndpointJudge(endpoint) as judge:
            endpoint.model = judge.model
    return endpoint
