"""`rlsys eval`: evaluate a generative reward model on benchmarks, for every k and every strategy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from launch.commands.judge import MetaRm, Seed, Settings, Temperature, require_one_judge
from launch.console import UserError, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson, Concurrency, FormOption, JudgeBody, JudgeModel, JudgeUrl, KeyVariable, OnlyCheck, endpoint_of

if TYPE_CHECKING:
    from rlsys.evaluation.benchmarks import Benchmark

MAX_NAMED_FILES = 3
"""Skipped files that are named on the screen; eval.json names all."""


def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Option("--benchmark", "-b", metavar="NAME=PATH", help="For example judgebench=gpt.jsonl; repeat for several."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for samples, eval.json and eval.md.")],
    settings: Settings = None,
    model: FormOption = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    api_key_env: KeyVariable = None,
    concurrency: Concurrency = 16,
    judge_body: JudgeBody = None,
    k: Annotated[str, typer.Option("--k", metavar="K,K,...", help="Samples per item, increasing.")] = "1,2,4,8,16,32",
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="S", help="As in `rlsys vote`; repeat for several. Default: all that apply."),
    ] = None,
    meta_rm: MetaRm = None,
    temperature: Temperature = 0.5,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random subsets of the samples for each k.")] = 100,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Evaluate the first units of each subset only.")] = None,
    swap: Annotated[bool, typer.Option("--swap/--no-swap", help="Judge pairs greedily in both orders.")] = True,
    text: Annotated[bool, typer.Option("--text", help="Keep the texts of all samples, not only of the greedy ones.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Start over, ignoring existing samples in DIR.")] = False,
    check: OnlyCheck = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on benchmarks: greedy decoding, and every k and strategy on one set of samples.

    Each item is judged once greedily (pairs in both orders) and with as many samples as the largest k. The samples are kept in
    DIR/NAME.greedy.jsonl, NAME.swapped.jsonl and NAME.samples.jsonl; if the command is interrupted, run it again to resume after the last
    line. All figures are computed from these files: with another --strategy or --draws the same command takes seconds and starts no
    engine. DIR/eval.json and eval.md hold figures with 95% intervals, baselines, biases, parse failures and tokens.

    With --judge, an OpenAI-compatible endpoint answers, with the same template, scores and figures; --model then only gives the form.

    Example: rlsys eval --model runs/quickstart -b judgebench=gpt.jsonl -b rewardbench=filtered.parquet --k 1,2,4,8 --output evals/first
    """
    ks = increasing(k)
    from launch.check import run_checks
    from rlsys.io.run_folder import resolve_model
    from rlsys.judging.setup import judge_config

    require_one_judge(model, judge, meta_rm)
    endpoint = endpoint_of(judge, judge_model, api_key_env, concurrency, judge_body, connect=check)
    config, problems = judge_config(model, seed, settings)
    scores = config.prompt.scores
    scores.single = scores.range  # a benchmark has one score range
    began = time.monotonic()
    checked = {"meta_rm": meta_rm, "folder": str(output), "endpoint": endpoint is not None}
    with only_json(as_json) as write_json:
        console = to_stderr() if as_json else to_stdout()
        try:
            benchmarks = load_benchmarks(benchmark, limit, console)
        except ValueError as error:  # reported together with all other mistakes
            run_checks("eval", config, [*problems, str(error)], check, **checked)
            raise
        from actors.loops.evaluation import Evaluation, applicable_strategies, print_evaluation

        certainty = config.rollout.self_certainty
        strategies = {
            name: applicable_strategies(strategy, found, meta_rm is not None, certainty, console, endpoint is None)
            for name, found in benchmarks.items()
        }
        if not any(strategies.values()):
            raise UserError(f"--strategy {', '.join(strategy or [])}: none of them applies to any of the benchmarks.")
        evaluation = Evaluation(config, benchmarks, output, ks, draws, temperature, seed, text, swap, endpoint)
        if check or again or problems or not evaluation.all_files_exist:
            run_checks("eval", config, problems, check, **checked)
        report = evaluation.run(strategies, console, None if meta_rm is None else resolve_model(meta_rm)[0], again, began)
        write_json(report.to_json())
        if not as_json:
            print_evaluation(report, console)
            print_text(console, f"{output / 'eval.json'}, {output / 'eval.md'}")


def increasing(text: str) -> list[int]:
    """Parse `1,2,4`.

    Raises:
        UserError: not increasing integers from 1.
    """
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(numbers) != len(parts) or numbers[0] < 1 or any(after <= before for before, after in zip(numbers, numbers[1:])):
        raise UserError(f"--k {text}: expected increasing integers from 1, for example 1,2,4,8.")
    return numbers


def load_benchmarks(options: list[str], limit: int | None, console: Console) -> dict[str, Benchmark]:
    """Load the benchmarks of NAME=PATH options, and print how many rows were used.

    Raises:
        UserError: an option is malformed, or a name is given twice.
        DataError: the name is unknown, or the files are unusable.
    """
    from rlsys.evaluation.benchmarks import load

    found: dict[str, Benchmark] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--benchmark {option}: expected NAME=PATH, for example judgebench=gpt.jsonl.")
        if name in found:
            raise UserError(f"--benchmark {option}: {name} is given twice; evaluate the second file into another --output.")
        found[name] = load(name, path, limit)
        print_row_counts(name, found[name], console)
    return found


def print_row_counts(name: str, benchmark: Benchmark, console: Console) -> None:
    """Print how many rows of the benchmark's files were used, why others were not, and which files hold none."""
    rows = benchmark.rows
    unused = {
        "beyond --limit": rows.beyond_limit,
        "without a better response, which this benchmark does not score": rows.no_unique_best,
        "malformed": rows.malformed,
    }
    left_out = "".join(f", {count:,} {reason}" for reason, count in unused.items() if count)
    print_text(console, f"{name}: {rows.read:,} rows, {rows.used:,} used{left_out}", "yellow" if rows.malformed else None)
    if rows.malformed:
        print_text(console, f"{name}: the first malformed row: {benchmark.report.malformed[0][1]}", "yellow")
    if rows.passed_over:
        named = "; ".join(f"{file} ({why})" for file, why in rows.passed_over[:MAX_NAMED_FILES])
        more = f"; and {len(rows.passed_over) - MAX_NAMED_FILES:,} more" if len(rows.passed_over) > MAX_NAMED_FILES else ""
        print_text(console, f"{name}: {len(rows.passed_over):,} files skipped: {named}{more}", "yellow")
