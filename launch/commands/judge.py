"""`rlsys judge`: score rows with a generative reward model, by many samples each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson, OnlyCheck
from rlsys.data.accounts import MALFORMED
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rich.console import Console

    from rlsys.config.schema import Config
    from rlsys.data.readers import SetAside
    from rlsys.data.records import Record
    from rlsys.judging.voting import Strategy

ModelOption = Annotated[str, typer.Option("--model", metavar="M", help="Run folder, model folder or hub name. A run's template is used.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings of a run, for example rollout.actors=4 prompt.template=compact.", show_default=False
    ),
]
MetaRm = Annotated[str | None, typer.Option("--meta-rm", metavar="R", help="Meta reward model: folder of `rlsys meta-rm`, or its model.")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling; 0.5 as in the paper, 0 is greedy.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the shuffles, the samples, and ties.")]


def judge(
    model: ModelOption,
    input: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="As in `rlsys data check`.")],
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="Reader, as in `rlsys data check`; responses: without truth.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write, a line per row.")],
    settings: Settings = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Samples per row.")] = 8,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="S", help="As in `rlsys vote`. Default: vote; with --meta-rm, meta.")
    ] = None,
    meta_rm: MetaRm = None,
    k_meta: Annotated[int | None, typer.Option("--k-meta", min=1, help="meta: samples kept. Default: half.")] = None,
    error_rate: Annotated[float, typer.Option("--error-rate", help="adaptive: probability of stopping early for a wrong winner.")] = 0.05,
    temperature: Temperature = 0.5,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Keep the critiques.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, whatever OUTPUT holds.")] = False,
    check: OnlyCheck = False,
    as_json: AsJson = False,
) -> None:
    """Judge every row of a file by k samples, each with the responses in a fresh order, and write one line per row.

    A line holds totals (one per response, in the file's order), best, every sample's order and scores (as shown), its log-probability,
    tokens and meta reward, parse failures by reason, and, where the format has a ground truth, gold and correct. A row that is malformed,
    or whose prompt does not fit prompt.max_tokens, has a line as well, which says why there is no verdict; the exit status is 1 if one
    was malformed. A command that was killed goes on after the last line when it is started again.
    With --strategy adaptive samples are drawn two at a time, until the winner is clear or k are there; with synthesis the last one
    reads the others first.

    Example: rlsys judge --model runs/quickstart --input pairs.jsonl --format trl_preference --k 8 --output judged.jsonl
    """
    from launch.check import checked
    from rlsys.io.run_folder import resolve_model
    from rlsys.judging.voting import Options, find

    config, problems = judge_config(model, seed, settings)
    chosen, options = find(strategy or ("meta" if meta_rm else "vote")), Options(k_meta=k_meta, error_rate=error_rate)
    problems += unmet(chosen, config, meta_rm)
    if output.exists() and input.exists() and output.samefile(input):
        problems.append(f"--output {output}: this is the input; name another file.")
    if again or check or problems or not output.is_file():
        checked("judge", config, problems, check, rows=(str(input), format), meta_rm=meta_rm, files=(str(output),))
    reward_model = None if meta_rm is None else resolve_model(meta_rm)[0]
    with only_json(as_json) as write_json:
        console = to_stderr() if as_json else to_stdout()
        from rlsys.data.readers import Report, read_all
        from rlsys.io.resumable import ResumableRows
        from rlsys.judging.results import as_before, in_place, verdict_row
        from rlsys.judging.sampling_plans import plan_for

        report = Report()
        read_rows = read_all(input, format, report=report, truth=False, columns=config.data.columns)
        rows = list_once(islice(read_rows, limit), input)
        about = judged_by(config, reward_model) | {
            "input": {"file": str(input), "format": format, "bytes": report.bytes, "limit": limit},
            "k": k,
            "strategy": chosen.name,
            "k_meta": k_meta,
            "error_rate": error_rate,
            "temperature": temperature,
            "seed": seed,
            "text": text,
        }
        with ResumableRows(output, about, again) as file:
            if file.complete:
                print_text(console, f"{output} is complete already; --again would begin anew.")
            else:
                from actors.loops.judge import running_judge, write_rows

                def judged(records: Iterator[Record]) -> Iterator[dict[str, Any]]:
                    with running_judge(config, console, reward_model) as judge:
                        for answer in judge.answer_by(plan_for(chosen, k, options, seed), records, temperature):
                            yield verdict_row(answer, chosen, options, seed, judge.prompter.score_format.single, text)

                rows = as_before(rows, islice(file.rows(), file.done))
                write_rows(file, None, rows, lambda left: in_place(left, judged), console, f"judging {input.name}")
            summary = summarise(file.rows())
        write_json(summary | {"output": str(output)})
        if not as_json:
            show(summary, console)
    if summary["account"].get(MALFORMED):
        raise typer.Exit(1)


def judge_config(model: str, seed: int, settings: list[str] | None) -> tuple[Config, list[str]]:
    """(config of the engines, what is wrong with `settings`): the template and lengths of the run that the model comes from, then
    `settings`, the wrong ones left out.
    """
    from rlsys.config.files import load_config
    from rlsys.config.schema import Config, ConfigError
    from rlsys.io.run_folder import resolve_model

    path, run = resolve_model(model)
    run = run or Config()
    start = Config(
        seed=seed,
        model=run.model.model_copy(update={"path": path}),
        prompt=run.prompt,
        rollout=Config().rollout.model_copy(update={name: getattr(run.rollout, name) for name in ("max_tokens", "max_num_seqs")}),
    )
    try:
        return load_config(None, settings, start), []
    except ConfigError as error:
        return error.rest or start, list(error.problems)


def unmet(strategy: Strategy, config: Config, meta_rm: str | None) -> list[str]:
    """What the strategy needs of each sample and the command does not provide."""
    problems = []
    if "meta_reward" in strategy.needs and meta_rm is None:
        problems.append(f"--strategy {strategy.name} needs the meta reward of each sample: name a model with --meta-rm.")
    if "certainty" in strategy.needs and not config.rollout.self_certainty:
        problems.append(f"--strategy {strategy.name} needs each sample's self-certainty: set rollout.self_certainty=true.")
    return problems


def judged_by(config: Config, meta_rm: str | None) -> dict[str, Any]:
    """What every sample depends on, besides what is asked."""
    return {
        "model": config.model.path,
        "meta_rm": meta_rm,
        "prompt": config.prompt.model_dump(mode="json"),
        "top_p": config.rollout.top_p,
        "max_tokens": config.rollout.max_tokens,
        "dtype": config.model.dtype,
        "self_certainty": config.rollout.self_certainty,
    }


def list_once(rows: Iterator[Record | SetAside], file: Path) -> Iterator[Record | SetAside]:
    """The rows, in one of which there must be a record: only then does the first one come."""
    from rlsys.data.records import Record

    leading = []
    for row in rows:
        leading.append(row)
        if isinstance(row, Record):
            yield from leading
            yield from rows
            return
    told = f"; row {leading[0].row}: {leading[0].message}" if leading else ""
    raise UserError(f"{file}: no usable row among {len(leading):,}{told}")


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """{rows; account: {what became of them: count}, which adds up to rows; samples, parsed, failures, cut_off (failures that met the
    token limit), tokens, prompt_tokens, skipped, no_verdict, judged (rows with a truth), correct, accuracy, first_malformed}.
    """
    from rlsys.judging.results import outcome

    account, first_malformed = Counter({"verdict": 0}), None
    total: dict[str, Any] = dict.fromkeys(
        ("rows", "samples", "parsed", "cut_off", "tokens", "prompt_tokens", "skipped", "no_verdict", "judged", "correct"), 0
    )
    failures: dict[str, int] = {}
    for row in rows:
        account[outcome(row)] += 1
        if row.get("set_aside") == MALFORMED and first_malformed is None:
            first_malformed = f"row {row['row']}: {row['skipped']}"
        total["rows"] += 1
        total["samples"] += row["k"]
        total["skipped"] += "skipped" in row
        total["no_verdict"] += row["best"] is None
        for name in ("parsed", "tokens", "prompt_tokens"):
            total[name] += row.get(name, 0)
        total["cut_off"] += sum(sample["scores"] is None and sample.get("truncated", False) for sample in row["samples"])
        for reason, count in row.get("failures", {}).items():
            failures[reason] = failures.get(reason, 0) + count
        if row["correct"] is not None:
            total["judged"] += 1
            total["correct"] += row["correct"]
    accuracy = total["correct"] / total["judged"] if total["judged"] else None
    return total | {"account": dict(account), "failures": failures, "accuracy": accuracy, "first_malformed": first_malformed}


def show(summary: dict[str, Any], console: Console) -> None:
    console.print(render(summary))
    if summary["first_malformed"]:
        print_text(console, f"the first malformed row, {summary['first_malformed']}", "yellow")


def render(summary: dict[str, Any]) -> Table:
    table = Table("judged", "")
    for key, words in (
        ("rows", "rows"),
        ("samples", "samples"),
        ("parsed", "of these, parsed"),
        ("tokens", "tokens generated"),
        ("prompt_tokens", "tokens of different prompts"),
        ("no_verdict", "rows without a verdict"),
    ):
        table.add_row(words, f"{summary[key]:,}")
    for reason, count in summary["account"].items():
        if reason != "verdict":
            table.add_row(f"  {reason}", f"{count:,}")
    for reason, count in sorted(summary["failures"].items()):
        table.add_row(f"parse failure: {reason}", f"{count:,}")
    if summary["cut_off"]:
        table.add_row("of these, cut off at rollout.max_tokens", f"{summary['cut_off']:,}")
    if summary["judged"]:
        table.add_row("accuracy", f"{summary['accuracy']:.1%} of {summary['judged']:,} rows with a ground truth")
    return table
