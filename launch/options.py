"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; examples are in launch/configs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file, for example seed=1 model.path=M.", show_default=False),
]
OnlyCheck = Annotated[bool, typer.Option("--check", help="Only check settings, data and model; start nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a single JSON document to stdout.")]
