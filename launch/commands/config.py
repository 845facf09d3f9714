"""`rlsys config show`: the settings of a run, and the reference of all keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import only_json, to_stdout
from launch.options import AsJson
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from pydantic import BaseModel

config_app = typer.Typer(name="config", help="Show the settings of a run.", no_args_is_help=True)


@config_app.command()
def show(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG KEY=VALUE", help="YAML file (default: none), then overrides.", show_default=False),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its value and meaning instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference of all keys (docs/configuration.md).")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the settings that a run would use as YAML, with defaults filled in and overrides applied.

    Examples: rlsys config show --keys; rlsys config show launch/configs/quickstart.yaml rl.steps=50
    """
    from rlsys.config.files import load_config

    if markdown:
        print(_reference(), end="")
        return
    arguments = list(arguments or [])
    first_is_file = bool(arguments) and ("=" not in arguments[0] or Path(arguments[0]).exists())
    path = Path(arguments.pop(0)) if first_is_file else None
    settings = load_config(path, arguments)
    tree = settings.model_dump(mode="json")
    with only_json(as_json) as write_json:
        if keys:
            rows = [{"key": key, "value": value, "help": text} for key, value, text in _flatten(settings, tree)]
            write_json(rows)
            if not as_json:
                to_stdout().print(_key_table(rows))
            return
        write_json(tree)
        if not as_json:
            import yaml

            print(yaml.safe_dump(tree, sort_keys=False), end="")


def _flatten(settings: BaseModel, tree: dict[str, Any]) -> list[tuple[str, object, str]]:
    """Return (dotted key, value, docstring) of every setting; sections have no entry of their own."""
    rows: list[tuple[str, object, str]] = []
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if hasattr(type(value), "model_fields"):
            rows += [(f"{name}.{key}", inner, text) for key, inner, text in _flatten(value, tree[name])]
        else:
            rows.append((name, tree[name], " ".join((info.description or "").split())))
    return rows


def _reference() -> str:
    """Render docs/configuration.md from `rlsys.config.schema`: type, default and meaning of every key."""
    from rlsys.config.resuming import changeable
    from rlsys.config.schema import Config
    from rlsys.config.section import Section
    from rlsys.config.sources import Source

    schema = Config.model_json_schema()

    def table(section: type[Section], prefix: str) -> list[str]:
        return ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows(section, prefix)]

    def rows(section: type[Section], prefix: str) -> list[str]:
        found: list[str] = []
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                found += rows(info.annotation, f"{prefix}{name}.")
                continue
            shape = (schema if section is Config else schema["$defs"][section.__name__])["properties"][name]
            default = "" if info.is_required() else f"`{_literal(section(**needed).model_dump(mode='json')[name])}`"
            found.append(f"| `{prefix}{name}` | {_type(shape)} | {default} | {_cell(info.description)} |")
        return found

    needed: dict[str, str] = {}
    lines = [
        "<!-- Written by `rlsys config show --markdown > docs/configuration.md`. Edit the docstrings in rlsys/config/. -->",
        "",
        "# Configuration",
        "",
        "A run takes a YAML file and overrides, `rlsys train CONFIG key=value ...`; every key has a default. `rlsys config show CONFIG`",
        "prints the settings that a run would use. [How values are read](troubleshooting.md#how-settings-are-read).",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    sections = {
        name: kind for name, info in Config.model_fields.items() if isinstance(kind := info.annotation, type) and issubclass(kind, Section)
    }
    lines += [row for row in rows(Config, "") if "." not in row.split("|")[1]]
    for name, section in sections.items():
        about = [] if section.__doc__ in (None, Section.__doc__) else ["", _cell(section.__doc__)]
        lines += ["", f"## {name}", *about, *table(section, f"{name}.")]
        if name == "data":
            needed["path"] = "FILE"
            lines += ["", "### Entries of data.train and data.heldout", "", _cell(Source.__doc__), *table(Source, "")]
            needed.clear()
    lines += [
        "",
        "## When a run is resumed",
        "",
        "A folder with completed work goes on with the settings that it began with; a start with others is refused, and shows each that",
        "differs, before and now. These may change (`rlsys/config/resuming.py`):",
        "",
        "| keys | determine |",
        "|---|---|",
        *(f"| {', '.join(f'`{key}`' for key in keys)} | {why} |" for why, keys in changeable().items()),
        "",
        "The files of `data.train`, `data.heldout`, `data.exclude`, `sft.data`, `rft.instruction_data`, `meta_rm.data` and a template of",
        "your own must be the same, too: RUN/data_files.json holds a SHA-256 of each (of a file larger than 64 MiB, of its size and 64",
        "blocks of 1 MiB); times of change do not matter. Not recorded are models, pipes, and datasets of the Hugging Face Hub.",
    ]
    return "\n".join(lines) + "\n"


def _type(shape: dict[str, Any]) -> str:
    """Describe a JSON schema in words."""
    if "$ref" in shape:
        return "section" if not shape["$ref"].endswith("/Source") else "entry"
    if variants := shape.get("anyOf") or shape.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(variant) for variant in variants))
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{_literal(value)}`" for value in shape.get("enum", [shape.get("const")]))
    kind: str = shape.get("type", "any")
    if kind == "array":
        items = shape.get("prefixItems")
        return f"[{'; '.join(map(_type, items))}]" if items else f"list of {_type(shape['items'])}"
    word = {"string": shape.get("format", "text"), "null": "null", "object": "mapping"}.get(kind, kind)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([word, *(f"{sign} {shape[key]:,}" for key, sign in signs.items() if key in shape)])


def _cell(text: str | None) -> str:
    """Format a docstring as one line of Markdown, leaving code spans unchanged."""
    parts = " ".join((text or "").split()).split("`")
    return "`".join(part if number % 2 else part.replace("*", r"\*").replace("|", r"\|") for number, part in enumerate(parts))


def _key_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=36)
    table.add_column("meaning", overflow="fold")
    for row in rows:
        table.add_row(row["key"], _literal(row["value"]), row["help"])
    return table


def _literal(value: object) -> str:
    """Format `value` as in YAML and in an override."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
