"""`rlsys eval`: a generative reward model on benchmarks, by every k and every strategy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from launch.commands.judge import MetaRm, ModelOption, Seed, Settings, Temperature, judge_config, judged_by
from launch.console import UserError, atomic_output, finite, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson, OnlyCheck
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.evaluation import Grid, Part
    from rlsys.evaluation.benchmarks import Benchmark, Item
    from rlsys.io.resumable import ResumableRows
    from rlsys.judging.voting import Strategy

NAMED = 3
"""Files passed over that are named on the screen; eval.json names all."""


def evaluate(
    model: ModelOption,
    benchmark: Annotated[
        list[str],
        typer.Option("--benchmark", "-b", metavar="NAME=PATH", help="For example judgebench=gpt.jsonl; may be given several times."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for samples, eval.json and eval.md.")],
    settings: Settings = None,
    k: Annotated[str, typer.Option("--k", metavar="K,K,...", help="Samples per item, increasing.")] = "1,2,4,8,16,32",
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="S", help="As in `rlsys vote`; may be given several times. Default: all that fit."),
    ] = None,
    meta_rm: MetaRm = None,
    temperature: Temperature = 0.5,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random subsets of the samples for each k.")] = 100,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first units of each subset.")] = None,
    swap: Annotated[bool, typer.Option("--swap/--no-swap", help="Ask greedily about pairs in both orders.")] = True,
    text: Annotated[bool, typer.Option("--text", help="Keep the texts of all samples, not of the greedy ones alone.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, whatever DIR holds.")] = False,
    check: OnlyCheck = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on benchmarks: greedy, and for every k and strategy out of one set of samples.

    Each item is judged once greedily (pairs in both orders) and by as many samples as the largest k. What came back lies in
    DIR/NAME.greedy.jsonl, NAME.swapped.jsonl and NAME.samples.jsonl; a command that was killed goes on after the last line when it is
    started again. The figures are computed from these files: with other --strategy or --draws the same command takes seconds and starts
    no engine. DIR/eval.json and eval.md hold figures with 95% intervals, baselines, biases, parse failures and tokens.

    Example: rlsys eval --model runs/quickstart -b judgebench=gpt.jsonl -b rewardbench=filtered.parquet --k 1,2,4,8 --output evals/first
    """
    ks = increasing(k)
    from launch.check import checked
    from rlsys.io.run_folder import resolve_model

    config, problems = judge_config(model, seed, settings)
    scores = config.prompt.scores
    scores.single = scores.range  # a benchmark has one scale
    began = time.monotonic()
    with only_json(as_json) as write_json:
        console = to_stderr() if as_json else to_stdout()
        try:
            benchmarks = loaded(benchmark, limit, console)
        except ValueError as error:  # told with what else is wrong
            checked("eval", config, [*problems, str(error)], check, meta_rm=meta_rm, folder=str(output))
            raise
        known = {"meta_rm": meta_rm is not None, "certainty": config.rollout.self_certainty}
        chosen = {name: fitting(strategy, found, known, console) for name, found in benchmarks.items()}
        if not any(chosen.values()):
            raise UserError(f"--strategy {', '.join(strategy or [])}: none of them fits any of the benchmarks.")
        from rlsys.evaluation import evaluation, parts

        work = {name: parts(found, ks[-1], temperature, seed, text, swap) for name, found in benchmarks.items()}
        if check or again or problems or not all(_path(output, name, part).is_file() for name, found in work.items() for part in found):
            checked("eval", config, problems, check, meta_rm=meta_rm, folder=str(output))
        reward_model = None if meta_rm is None else resolve_model(meta_rm)[0]
        with ExitStack() as stack:
            files = opened(work, output, judged_by(config, reward_model), again, stack)
            judge_all(work, files, config, reward_model, console)
            document: dict[str, Any] = {
                "model": config.model.path,
                "meta_rm": reward_model,
                "k": ks,
                "draws": draws,
                "temperature": temperature,
                "seed": seed,
                "benchmarks": {},
            }
            for name, found in benchmarks.items():
                print_text(console, f"scoring {name} …")
                rows = {part.name: files[name, part.name].rows() for part in work[name]}
                document["benchmarks"][name] = evaluation(found, rows, chosen[name], ks, draws, seed, scores.range)
        document = finite(document | {"seconds": time.monotonic() - began})
        publish(document, output)
        write_json(document)
        if not as_json:
            show(document, console)
            print_text(console, f"{output / 'eval.json'}, {output / 'eval.md'}")


def increasing(text: str) -> list[int]:
    """`1,2,4` as numbers.

    Raises:
        UserError: they are not whole, increasing and at least 1.
    """
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(numbers) != len(parts) or numbers[0] < 1 or any(after <= before for before, after in zip(numbers, numbers[1:])):
        raise UserError(f"--k {text}: expected increasing whole numbers from 1, for example 1,2,4,8.")
    return numbers


def loaded(given: list[str], limit: int | None, console: Console) -> dict[str, Benchmark]:
    """The benchmarks of NAME=PATH options; what was set aside in reading is told.

    Raises:
        UserError: an option that is no such thing, or a name for the second time.
        DataError: an unknown name, or files that cannot be used.
    """
    from rlsys.evaluation.benchmarks import load

    found: dict[str, Benchmark] = {}
    for option in given:
        name, equals, path = option.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--benchmark {option}: expected NAME=PATH, for example judgebench=gpt.jsonl.")
        if name in found:
            raise UserError(f"--benchmark {option}: {name} is given twice; evaluate the second file into another --output.")
        found[name] = load(name, path, limit)
        tell_rows(name, found[name], console)
    return found


def tell_rows(name: str, benchmark: Benchmark, console: Console) -> None:
    """What became of the rows of the benchmark's files, and which files hold none."""
    rows = benchmark.rows
    parts = {
        "beyond --limit": rows.beyond_limit,
        "without a better response, which this benchmark does not score": rows.no_unique_best,
        "malformed": rows.malformed,
    }
    left_out = "".join(f", {count:,} {what}" for what, count in parts.items() if count)
    print_text(console, f"{name}: {rows.read:,} rows, {rows.used:,} used{left_out}", "yellow" if rows.malformed else None)
    if rows.malformed:
        print_text(console, f"{name}: the first malformed row: {benchmark.report.malformed[0][1]}", "yellow")
    if rows.passed_over:
        named = "; ".join(f"{file} ({why})" for file, why in rows.passed_over[:NAMED])
        more = f"; and {len(rows.passed_over) - NAMED:,} more" if len(rows.passed_over) > NAMED else ""
        print_text(console, f"{name}: {len(rows.passed_over):,} files passed over: {named}{more}", "yellow")


def fitting(names: list[str] | None, benchmark: Benchmark, known: dict[str, bool], console: Console) -> list[Strategy]:
    """The strategies asked for (None: all there are) that say something on the benchmark, with what is `known` of each sample.

    Raises:
        UserError: one that was asked for needs what the samples will not have.
    """
    from rlsys.evaluation import unfit
    from rlsys.judging.voting import STRATEGIES, find

    chosen = []
    for strategy in map(find, dict.fromkeys(names or list(STRATEGIES))):
        why = unfit(strategy, benchmark, **known)
        if why is None:
            chosen.append(strategy)
        elif names and (strategy.needs or strategy.counts == "scores"):
            raise UserError(f"--strategy {strategy.name}: {why}.")
        elif names:
            print_text(console, f"{benchmark.name}: without {strategy.name}, {why}", "yellow")
    return chosen


Files = dict[tuple[str, str], "ResumableRows"]
"""By benchmark and part."""


def opened(work: dict[str, list[Part]], output: Path, about: dict[str, Any], again: bool, stack: ExitStack) -> Files:
    """The files of all parts; all of them, before the first engine starts, as any may be of other settings."""
    from rlsys.io.resumable import ResumableRows

    return {
        (name, part.name): stack.enter_context(ResumableRows(_path(output, name, part), about | part.settings, again))
        for name, parts in work.items()
        for part in parts
    }


def _path(output: Path, name: str, part: Part) -> Path:
    return output / f"{name.replace(':', '_')}.{part.name}.jsonl"


def judge_all(work: dict[str, list[Part]], files: Files, config: Config, meta_rm: str | None, console: Console) -> None:
    """Complete the files, by engines that are started once, if any is incomplete."""
    if all(file.complete for file in files.values()):
        return
    from actors.loops.judge import running_judge, write_rows

    with running_judge(config, console, meta_rm) as judge:
        for (name, part), file in ((key, file) for key, file in files.items() if not file.complete):
            task = next(one for one in work[name] if one.name == part)

            def rows(items: Iterable[Item], task: Part = task) -> Iterator[dict[str, Any]]:
                items = list(items)
                for item, answer in zip(items, judge.answer(map(task.ask, items), task.temperature), strict=True):
                    yield task.row(item, answer)

            write_rows(file, len(task.items), task.items, rows, console, f"{name}: {part}")


def publish(document: dict[str, Any], output: Path) -> None:
    from rlsys.evaluation import by_group, overview, page

    with atomic_output(output / "eval.json") as aside:
        aside.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    with atomic_output(output / "eval.md") as aside:
        aside.write_text(page(document, [overview(document, every=True), *by_group(document)]), encoding="utf-8")


def show(document: dict[str, Any], console: Console) -> None:
    from rlsys.evaluation import overview

    console.print(rendered(overview(document)))
    for name, found in document["benchmarks"].items():
        position, failures = found["position"], found["parse_failures"]
        said = [f"{failures['failed']:,} of {failures['samples']:,} samples not parsed"]
        if failures["cut_off"]:
            said.append(f"{failures['cut_off']:,} of them cut off at rollout.max_tokens")
        if position["other_order"] is not None:
            said.append(f"the same winner in both orders {position['other_order']:.1%}")
        if found["tokens"]["per_sample"] is not None:
            said.append(f"{found['tokens']['per_sample']:,.0f} tokens a sample")
        print_text(console, f"{name}: {', '.join(said)}")
        if found["skipped"]:
            more = ", …" if found["skipped"] > len(found["skipped_ids"]) else ""
            print_text(
                console,
                f"{name}: {found['skipped']} items with too long a prompt, no verdict: {', '.join(found['skipped_ids'])}{more}",
                "yellow",
            )


def rendered(grid: Grid) -> Table:
    table = Table(title=grid.title)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="right" if number else "left")
    for row in grid.rows:
        table.add_row(*row)
    return table
