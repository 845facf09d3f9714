"""`rlsys judge`: score rows with a generative reward model, many samples per row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, print_text, to_stderr, to_stdout
from launch.options import AsJson, Concurrency, FormOption, JudgeBody, JudgeModel, JudgeUrl, KeyVariable, OnlyCheck, endpoint_of
from rlsys.data.accounts import MALFORMED
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rich.console import Console

    from rlsys.config.schema import Config
    from rlsys.data.records import Record
    from rlsys.judging.voting import Strategy

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Overrides of a run's settings, for example rollout.actors=4 prompt.template=compact.", show_default=False
    ),
]
MetaRm = Annotated[
    str | None, typer.Option("--meta-rm", metavar="R", help="Meta reward model: run folder of `rlsys meta-rm`, or a model folder.")
]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0.5 as in the paper, 0 for greedy.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of shuffles, samples and tie-breaking.")]


def judge(
    input: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="Rows to judge, as in `rlsys data check`.")],
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="Format, as in `rlsys data check`; responses: no ground truth.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write, one line per row.")],
    settings: Settings = None,
    model: FormOption = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    api_key_env: KeyVariable = None,
    concurrency: Concurrency = 16,
    judge_body: JudgeBody = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Samples per row.")] = 8,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="S", help="As in `rlsys vote`. Default: vote; with --meta-rm, meta.")
    ] = None,
    meta_rm: MetaRm = None,
    k_meta: Annotated[int | None, typer.Option("--k-meta", min=1, help="With meta: samples kept. Default: half.")] = None,
    error_rate: Annotated[
        float, typer.Option("--error-rate", help="With adaptive: probability of stopping early at a wrong winner.")
    ] = 0.05,
    temperature: Temperature = 0.5,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Judge only the first rows.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Keep the texts of the critiques.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Start over, ignoring existing rows in OUTPUT.")] = False,
    check: OnlyCheck = False,
    as_json: AsJson = False,
) -> None:
    """Judge every row of a file with k samples, each with the responses in a new order, and write one line per row.

    A line holds totals (one per response, in the file's order), best, the order and scores (as shown) of every sample, its
    log-probability, tokens and meta reward, parse failures by reason, and, where the format has a ground truth, gold and correct. A row
    that is malformed, or whose prompt does not fit prompt.max_tokens, also has a line, with the reason; the exit status is 1 if any row
    was malformed. If the command is interrupted, run it again to resume after the last line.
    With --strategy adaptive, samples are generated two at a time until the winner is clear or k is reached; with synthesis, the last
    sample reads the others first. With --judge, an OpenAI-compatible endpoint answers; --model then only gives the form.

    Example: rlsys judge --model runs/quickstart --input pairs.jsonl --format trl_preference --k 8 --output judged.jsonl
    """
    from launch.check import run_checks
    from rlsys.io.run_folder import resolve_model
    from rlsys.judging.setup import judge_config, sampling_settings
    from rlsys.judging.voting import Options, find_strategy

    require_one_judge(model, judge_url, meta_rm)
    endpoint = endpoint_of(judge_url, judge_model, api_key_env, concurrency, judge_body, connect=check)
    config, problems = judge_config(model, seed, settings)
    chosen, options = find_strategy(strategy or ("meta" if meta_rm else "vote")), Options(k_meta=k_meta, error_rate=error_rate)
    problems += missing_inputs(chosen, config, meta_rm, endpoint is not None)
    if output.exists() and input.exists() and output.samefile(input):
        problems.append(f"--output {output}: this is the input; name another file.")
    if again or check or problems or not output.is_file():
        checked = {"rows": (str(input), format), "meta_rm": meta_rm, "files": (str(output),), "endpoint": endpoint is not None}
        run_checks("judge", config, problems, check, **checked)
    reward_model = None if meta_rm is None else resolve_model(meta_rm)[0]
    with only_json(as_json) as write_json:
        console = to_stderr() if as_json else to_stdout()
        from rlsys.data.readers import Report, read_all
        from rlsys.io.resumable import ResumableRows
        from rlsys.judging.results import check_resumed_items, in_input_order, result_row
        from rlsys.judging.sampling_plans import sampling_plan
        from rlsys.judging.summary import require_record, summarise_rows

        report = Report()
        rows = islice(read_all(input, format, report=report, truth=False, columns=config.data.columns), limit)
        identity = sampling_settings(config, reward_model, endpoint) | {
            "input": {"file": str(input), "format": format, "bytes": report.bytes, "limit": limit},
            "k": k,
            "strategy": chosen.name,
            "k_meta": k_meta,
            "error_rate": error_rate,
            "temperature": temperature,
            "seed": seed,
            "text": text,
        }
        with ResumableRows(output, identity, again) as file:
            if file.complete:
                print_text(console, f"{output} is already complete; use --again to start over.")
            else:
                from actors.loops.judge import open_judge, write_rows

                def judged(records: Iterator[Record]) -> Iterator[dict[str, Any]]:
                    with open_judge(config, endpoint, console, reward_model) as judge:
                        for answer in judge.answer_by(sampling_plan(chosen, k, options, seed), records, temperature):
                            yield result_row(answer, chosen, options, seed, judge.prompter.score_format.single, text)

                items = check_resumed_items(require_record(rows, input), islice(file.rows(), file.done))
                write_rows(file, None, items, lambda left: in_input_order(left, judged), console, f"judging {input.name}")
            summary = summarise_rows(file.rows())
        write_json(summary | {"output": str(output)})
        if not as_json:
            print_summary(summary, console)
    if summary["account"].get(MALFORMED):
        raise typer.Exit(1)


def require_one_judge(model: str | None, url: str | None, meta_rm: str | None) -> None:
    """Check that engines or an endpoint answer.

    Raises:
        UserError: neither or something that only engines have.
    """
    if model is None and url is None:
        raise UserError("who judges? Name a model with --model, or an OpenAI-compatible endpoint with --judge.")
    if url is not None and meta_rm is not None:
        raise UserError("--meta-rm: a meta reward model scores the samples of engines, not those of an endpoint; leave out one of the two.")


def missing_inputs(strategy: Strategy, config: Config, meta_rm: str | None, endpoint: bool = False) -> list[str]:
    """List the values that the strategy needs of each sample and that the samples will not have."""
    if endpoint and (missing := [name for name in strategy.needs if name != "tokens"]):
        return [f"--strategy {strategy.name} needs the {' and the '.join(missing)} of each sample, which an endpoint does not give."]
    problems = []
    if "meta_reward" in strategy.needs and meta_rm is None:
        problems.append(f"--strategy {strategy.name} needs the meta reward of each sample: name a model with --meta-rm.")
    if "certainty" in strategy.needs and not config.rollout.self_certainty:
        problems.append(f"--strategy {strategy.name} needs each sample's self-certainty: set rollout.self_certainty=true.")
    return problems


def print_summary(summary: dict[str, Any], console: Console) -> None:
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
        ("prompt_tokens", "tokens of distinct prompts"),
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
