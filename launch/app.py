"""The commands of `rlsys`. Each imports what it needs when it runs, so that help is there at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.bench.app import bench_app
from launch.commands import data, doctor, eval, judge, ladder, meta_rm, report, rft, score, show, vote
from launch.console import only_json, to_stdout
from launch.options import AsJson, ConfigFile, OnlyCheck, Overrides
from rlsys.system.terminal import Table

app = typer.Typer(
    name="rlsys",
    help="Train a generative reward model by online RL on a Ray cluster: vLLM rollouts, rule-based rewards, DeepSpeed learners.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(name="config", help="Look at the settings of a run.", no_args_is_help=True)
app.add_typer(config_app)
app.add_typer(data.data_app)
app.add_typer(bench_app)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"rlsys {importlib.metadata.version('rlsys')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")] = False,
) -> None:
    pass


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Run the main job: held-out evaluation, cold start, online RL, evaluation again.

    Everything lands in the folder run.dir: config.yaml, metrics.jsonl, trajectories/, checkpoints/, logs/, summary.json.
    A folder that already holds a run is resumed where it stopped. Before anything starts, all that can be known is checked, and told as one
    list of mistakes.

    Example: rlsys train launch/configs/quickstart.yaml rl.steps=50 run.dir=runs/longer
    """
    from launch.check import checked_config

    settings = checked_config("train", config, overrides, check)
    from actors.loops.rl import train as run

    run(settings, console=to_stdout())


@app.command()
def sft(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Run the cold start alone: fine-tune on worked trajectories.

    Example: rlsys sft launch/configs/quickstart.yaml sft.rows=512 run.dir=runs/cold-start
    """
    from launch.check import checked_config

    settings = checked_config("sft", config, overrides, check)
    from actors.loops.rl import train as run

    run(settings, console=to_stdout(), stages=("sft",))


app.command()(rft.rft)
app.command("filter")(rft.filter_rows)
app.command("meta-rm")(meta_rm.meta_rm)
app.command()(ladder.ladder)
app.command()(judge.judge)
app.command("eval")(eval.evaluate)
app.command()(vote.vote)
app.command()(report.report)
app.command()(show.show)
app.command()(score.score)
app.command()(doctor.doctor)


@config_app.command("show")
def config_show(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG KEY=VALUE", help="YAML file (none: all defaults), then settings.", show_default=False),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Explain every key instead: its value here and what it means.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference of all keys, docs/configuration.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the settings that a run would use, as YAML: the file's, with the defaults filled in and the overrides applied.

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
            rows = [{"key": key, "value": value, "help": text} for key, value, text in _explained(settings, tree)]
            write_json(rows)
            if not as_json:
                to_stdout().print(_key_table(rows))
            return
        write_json(tree)
        if not as_json:
            import yaml

            print(yaml.safe_dump(tree, sort_keys=False), end="")


def _explained(settings, tree: dict) -> list[tuple[str, object, str]]:
    """(dotted key, value, docstring) of every setting, sections left out."""
    rows = []
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if hasattr(type(value), "model_fields"):
            rows += [(f"{name}.{key}", inner, text) for key, inner, text in _explained(value, tree[name])]
        else:
            rows.append((name, tree[name], " ".join((info.description or "").split())))
    return rows


def _reference() -> str:
    """docs/configuration.md: type, default and meaning of every key, out of the models of `rlsys.config.schema`."""
    from rlsys.config.schema import Config, Section, Source

    schema = Config.model_json_schema()

    def table(section: type[Section], prefix: str) -> list[str]:
        return ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows(section, prefix)]

    def rows(section: type[Section], prefix: str) -> list[str]:
        found = []
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
        "<!-- Written by `rlsys config show --markdown > docs/configuration.md`. Edit the docstrings of rlsys/config/schema.py. -->",
        "",
        "# Configuration",
        "",
        "A run takes a YAML file and overrides, `rlsys train CONFIG key=value ...`; every key has a default. `rlsys config show CONFIG`",
        "prints the settings that a run would use. [How values are read](troubleshooting.md#how-settings-are-read).",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    sections = {name: info.annotation for name, info in Config.model_fields.items() if issubclass(info.annotation, Section)}
    lines += [row for row in rows(Config, "") if "." not in row.split("|")[1]]
    for name, section in sections.items():
        about = [] if section.__doc__ in (None, Section.__doc__) else ["", _cell(section.__doc__)]
        lines += ["", f"## {name}", *about, *table(section, f"{name}.")]
        if name == "data":
            needed["path"] = "FILE"
            lines += ["", "### Entries of data.train and data.heldout", "", _cell(Source.__doc__), *table(Source, "")]
            needed.clear()
    return "\n".join(lines) + "\n"


def _type(shape: dict) -> str:
    """A JSON schema in words."""
    if "$ref" in shape:
        return "section" if not shape["$ref"].endswith("/Source") else "entry"
    if several := shape.get("anyOf") or shape.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in several))
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{_literal(value)}`" for value in shape.get("enum", [shape.get("const")]))
    kind = shape.get("type")
    if kind == "array":
        items = shape.get("prefixItems")
        return f"[{'; '.join(map(_type, items))}]" if items else f"list of {_type(shape['items'])}"
    word = {"string": shape.get("format", "text"), "null": "null", "object": "mapping"}.get(kind, kind or "any")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([word, *(f"{sign} {shape[key]:,}" for key, sign in signs.items() if key in shape)])


def _cell(text: str | None) -> str:
    """A docstring as one line of Markdown; code stays as it is."""
    parts = " ".join((text or "").split()).split("`")
    return "`".join(part if number % 2 else part.replace("*", r"\*").replace("|", r"\|") for number, part in enumerate(parts))


def _key_table(rows: list[dict]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=36)
    table.add_column("meaning", overflow="fold")
    for row in rows:
        table.add_row(row["key"], _literal(row["value"]), row["help"])
    return table


def _literal(value: object) -> str:
    """`value` as it is written in YAML and in an override."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
