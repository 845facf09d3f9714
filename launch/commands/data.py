"""`rlsys data`: check preference rows, generate verifiable tasks, and turn a policy's samples into rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson
from rlsys.io.files import atomic_output
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.data.records import Record

data_app = typer.Typer(
    name="data", help="Check preference rows, generate verifiable tasks, or label a policy's samples.", no_args_is_help=True
)


@data_app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File, folder of files, glob pattern, or dataset name on the Hugging Face hub.")
    ],
    format: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="Format of the rows; see the list above.")],
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="KEY=COLUMN", help="Column that holds a key of the format; repeat for several.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 if any row is malformed.")] = False,
    max_unusable: Annotated[float, typer.Option("--max-unusable", min=0, max=1, help="Largest allowed share of malformed rows.")] = 0.5,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after this many usable records.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Also count the rows that fit into prompt.max_tokens, with the tokenizer of M."),
    ] = None,
    template: Annotated[str, typer.Option("--template", metavar="T", help="With --model: prompt template.")] = "pointwise",
    as_json: AsJson = False,
) -> None:
    """Read every row of FILE as a run would, and report malformed rows.

    Rows without a unique best response are set aside and counted; malformed rows are listed by number. The exit status is 1 if no row is
    usable, if the share of malformed rows exceeds --max-unusable, or with --strict if any row is malformed.

    Select one of several splits after a colon: FOLDER:train, FILE.json:train, owner/name:train or owner/name:config:train.

    Formats: rlsys (this project's own records), responses (no ground truth; for `rlsys judge` only), prompts (no responses to judge),
    trl_preference, trl_unpaired, hh_rlhf, ultrafeedback, ultrafeedback_binarized, helpsteer2, helpsteer3, offsetbias, llmbar, skywork,
    rewardbench, rewardbench2, rmb_pair, rmb_bon, ppe_preference, ppe_best_of_k, judgebench, realmistake, pandalm, sharegpt, kto, arena,
    arena_votes, auto_j, alpaca_eval, shp, pku_saferlhf, pku_saferlhf_safer, summarize_from_feedback, webgpt, nectar, prometheus,
    biggen, evalbiasbench, rm_bench, hhh_alignment.

    Example: rlsys data check pairs.jsonl --format trl_preference --columns prompt=question
    """
    from rlsys.data.readers import Report, formats_of, read
    from rlsys.data.readers.sources import first_rows

    report, column_names = Report(), _parse_columns(columns or [])
    with only_json(as_json) as write_json:
        records = islice(read(file, format, report=report, truth=format != "responses", columns=column_names), limit)
        print_text(to_stderr(), f"reading {file} …")
        fits: dict[int, int] = {}
        if model is None:
            for _ in records:
                pass
        else:
            fits = fitting_rows(records, model, template)
        fitting = formats_of(first_rows(file), column_names) if report.unusable > max_unusable else []
        document = report.to_json() | {"formats": [name for name in fitting if name != format]}
        write_json(document if model is None else document | {"rows_that_fit": fits})
        if not as_json:
            _print_report(document)
            if report.unusable > max_unusable:
                limits = f"data.max_unusable={max_unusable:g}"
                print_text(to_stdout(), f"{report.unusable:.0%} of the rows are malformed: a run would not start ({limits}).")
            if model is not None:
                _print_fitting(fits, model, template)
    if report.records == 0 or report.unusable > max_unusable or (strict and report.malformed_count):
        raise typer.Exit(1)


def _parse_columns(columns: list[str]) -> dict[str, str]:
    malformed = next((pair for pair in columns if not all(pair.partition("="))), None)
    if malformed is not None:
        raise UserError(f"--columns {malformed}: expected KEY=COLUMN, for example prompt=question.")
    return dict(pair.partition("=")[::2] for pair in columns)


def fitting_rows(records: Iterable[Record], model: str, template: str) -> dict[int, int]:
    """Return {N: number of rows whose prompt has at most N tokens}, for powers of two from 256 until all rows fit."""
    from rlsys.io.run_folder import find_model
    from rlsys.preflight import load_tokenizer
    from rlsys.prompts.rendering import Prompter

    prompter = Prompter(load_tokenizer(find_model(model)), template)
    lengths = [len(prompter.tokens(record, list(range(record.n)))) for record in records]
    limits = [256]
    while lengths and limits[-1] < max(lengths):
        limits.append(2 * limits[-1])
    return {limit: sum(length <= limit for length in lengths) for limit in limits}


@data_app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl or .parquet.")],
    split: Annotated[str, typer.Option(help="train or heldout; they share no item.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Number of records.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed; equal seeds give equal files.")] = 0,
    family: Annotated[list[str] | None, typer.Option("--family", help="Task family; repeat for several. Default: all.")] = None,
    level: Annotated[int, typer.Option(min=1, max=3, help="Maximum difficulty level.")] = 1,
    responses: Annotated[
        list[int] | None, typer.Option("--responses", help="Responses per record; repeat for several. Default: 1, 2, 4.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate verifiable preference tasks, whose ground truth is known by construction.

    Example: rlsys data generate --split train --count 10000 --output tasks.parquet
    """
    from rlsys.data.tasks import FAMILIES
    from rlsys.data.tasks import generate as generate_records

    unknown = [name for name in family or [] if name not in FAMILIES]
    if unknown:
        raise UserError(f"--family {', '.join(unknown)}: no such family; expected one of {', '.join(sorted(FAMILIES))}.")
    if split not in ("train", "heldout"):
        raise UserError(f"--split {split}: expected train or heldout.")
    response_counts = tuple(responses) if responses else (1, 2, 4)
    _require_writable_format(output)
    with only_json(as_json) as write_json:
        records = generate_records(split, count, seed, families=tuple(family or ()), level=level, responses=response_counts)
        counts = _write_records(records, output)
        write_json({"output": str(output), "split": split, "seed": seed, "level": level, **counts})
        if not as_json:
            _print_families(counts)
            print_text(to_stdout(), f"{counts['records']:,} records of split {split} in {output}")


@data_app.command()
def samples(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs of `rlsys policy` whose prompts have checks.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl or .parquet.")],
    responses: Annotated[
        list[int] | None, typer.Option("--responses", min=2, help="Responses per record; repeat for several. Default: 2, 3, 4.")
    ] = None,
    per_group: Annotated[int, typer.Option("--per-group", min=1, help="Maximum number of records per prompt and step.")] = 2,
    family: Annotated[list[str] | None, typer.Option("--family", help="Only prompts of this family; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; equal seeds give equal files.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Turn the samples of policies into preference rows to train its judge on (format rlsys).

    Each row has one sample that passed the checks of its prompt and others that failed, in the order of the steps, and a teacher's
    judgement for the cold start. Prompts of which all samples passed, or none, yield no row.

    Example: rlsys data samples runs/policy-gold --output samples.jsonl
    """
    from rlsys.policy.samples import preference_rows

    _require_writable_format(output)
    with only_json(as_json) as write_json:
        sizes, families = tuple(responses or (2, 3, 4)), tuple(family or ())
        rows = (row for run in runs for row in preference_rows(run, sizes, per_group, seed, families))
        first = next(rows, None)
        if first is None:
            names = ", ".join(map(str, runs))
            which = " of these families" if families else ""
            raise UserError(f"{names}: no prompt{which} has both a sample that passed and one that failed: nothing to compare.")
        counts = _write_records(chain([first], rows), output)
        write_json({"output": str(output), "runs": [str(run) for run in runs], "seed": seed, **counts})
        if not as_json:
            _print_families(counts)
            print_text(to_stdout(), f"{counts['records']:,} records in {output}")


def _require_writable_format(output: Path) -> None:
    if output.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--output {output}: the name must end in .jsonl or .parquet.")


def _write_records(records: Iterable[Record], output: Path) -> dict[str, Any]:
    """Write the records; return their numbers {records, families, responses}."""
    from rlsys.data.writers import write_jsonl, write_parquet

    families: Counter[str] = Counter()
    sizes: Counter[int] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for record in records:
            families[record.family or ""] += 1
            sizes[record.n] += 1
            yield record.to_json()

    with atomic_output(output) as path:
        (write_parquet if output.suffix == ".parquet" else write_jsonl)(rows(), path)
    return {
        "records": sum(sizes.values()),
        "families": dict(sorted(families.items())),
        "responses": {str(size): number for size, number in sorted(sizes.items())},
    }


def _print_families(counts: dict[str, Any]) -> None:
    table = Table("family", "records")
    for name, number in counts["families"].items():
        table.add_row(name, str(number))
    to_stdout().print(table)


def _print_report(report: dict[str, Any]) -> None:
    """Print `rlsys.data.readers.Report.to_json` as a table, then the first malformed rows."""
    console = to_stdout()
    print_text(console, f"{report['file']}, read as {report['format']}")
    table = Table("rows", "count")
    table.add_row("rows read", f"{report['rows']:,}")
    table.add_row("usable records", f"{report['records']:,}")
    for n, count in report["responses"].items():
        table.add_row(f"  with {n} response{'s' if n != '1' else ''}", f"{count:,}")
    for key, label in (
        ("no_unique_best", "set aside: no unique best response"),
        ("malformed_count", "set aside: malformed rows"),
        ("dropped_responses", "responses without a score, left out"),
        ("unchecked_ids", "ids not checked for duplicates"),
    ):
        if report[key]:
            table.add_row(label, f"{report[key]:,}")
    console.print(table)
    for entry in report["malformed"]:
        print_text(console, entry["message"])
    if (more := report["malformed_count"] - len(report["malformed"])) > 0:
        print_text(console, f"... and {more:,} more malformed rows")
    if report["passed_over"]:
        print_text(console, f"skipped files: {', '.join(report['passed_over'])}")
    if report["formats"]:
        print_text(console, f"formats that can read the first rows: {', '.join(report['formats'])}")


def _print_fitting(fits: dict[int, int], model: str, template: str) -> None:
    table = Table("prompt.max_tokens", "rows that fit", title=f"with the tokenizer of {model} and the template {template}")
    for limit, count in fits.items():
        table.add_row(f"{limit:,}", f"{count:,}")
    to_stdout().print(table)
