"""`rlsys prompt`: the filled prompt of a row, requests for a teacher, and a teacher's answers as trajectories of a cold start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, print_text, row_output, to_stderr, to_stdout
from launch.options import AsJson
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.data.records import Record
    from rlsys.prompts.rendering import UserTurns


class Form(StrEnum):
    text = "text"
    chat = "chat"
    tokens = "tokens"
    requests = "requests"


def prompt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows, as in `rlsys data check`.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="Format; responses: no ground truth.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of a run, e.g. prompt.template=compact.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="CONFIG", help="YAML file of the run that will use the rows.")] = None,
    form: Annotated[
        Form,
        typer.Option("--as", help="text: the user turn. chat, tokens: as the model reads it. requests: a batch file for a teacher."),
    ] = Form.text,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="Only this usable row, from 1. Default: the first; for requests, all.")
    ] = None,
    hint: Annotated[bool, typer.Option("--hint", help="Show the teacher the ground truth. It is not part of what is learned.")] = False,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Requests per row, each with the responses in another order.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the orders and the samples.")] = 0,
    teacher: Annotated[str | None, typer.Option("--teacher", metavar="NAME", help="With requests: the model that they name.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="With requests: sampling temperature.")] = 1.0,
    completions: Annotated[
        Path | None, typer.Option("--completions", metavar="FILE", help="Answers to the requests: write the rows for sft.data.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the filled prompt of a row, write requests for a teacher, or turn a teacher's answers into rows for sft.data.

    Requests are JSONL in the format of OpenAI's batch API, which `vllm run-batch` reads, too. The answers go back in with the same rows and
    options and --completions: each is scored by the rules of a run, and kept if it parses and, where its row has a ground truth, is right.
    The rows kept are {"prompt": the user turn without the hint, "completion": the answer without its thought}.

    Examples: rlsys prompt mine.jsonl -f trl_preference --row 3;
    rlsys prompt mine.jsonl -f trl_preference --as requests --teacher NAME -o requests.jsonl;
    rlsys prompt mine.jsonl -f trl_preference --completions answers.jsonl -o sft.jsonl
    """
    from rlsys.config.files import load_config
    from rlsys.judging.requests import Sampling
    from rlsys.prompts.rendering import UserTurns

    run = load_config(config, settings)
    turns = UserTurns.for_endpoint(run.prompt)
    if completions is None and form is not Form.requests:
        row = row or 1
    rows = numbered_rows(file, format, run, row)
    with only_json(as_json) as write_json:
        if completions is None and form is not Form.requests:
            document: Any = filled(next(rows)[1], form, run, turns, hint, seed)
            write_lines([document["text"]], output, as_json)
        else:
            from rlsys.serving.batch_file import teacher_requests

            requests = teacher_requests(rows, turns, samples, seed, hint)
            if completions is None:
                if teacher is None:
                    raise UserError("--as requests: name the teacher's model with --teacher NAME.")
                document = [request.line(teacher, Sampling(temperature, 1.0, run.rollout.max_tokens)) for request in requests]
                write_lines([json.dumps(line, ensure_ascii=False) for line in document], output, as_json)
            else:
                document = write_trajectories(requests, turns, completions, output, as_json)
        write_json(document)
    if completions is not None and not document["outcomes"].get("kept"):
        raise typer.Exit(1)


def write_lines(lines: list[str], output: Path | None, as_json: bool) -> None:
    """Write lines to `output`, else to stdout unless a JSON document goes there."""
    with row_output(output, as_json) as out:
        if out is not None:
            out.writelines(f"{line}\n" for line in lines)
    if output is not None:
        print_text(to_stderr(), f"{output}: {len(lines):,} line(s)")


def numbered_rows(file: Path, format: str, run: Config, only: int | None) -> Iterator[tuple[int, Record]]:
    """Yield (number, record) of the usable rows, from 1, or of one.

    Raises:
        DataError: the file cannot be read, or no row is usable.
        UserError: there is no row `only`.
    """
    from rlsys.data.readers import DataError, Report, read

    report = Report()
    rows = enumerate(read(file, format, report=report, truth=format != "responses", columns=run.data.columns), 1)
    found = False
    for numbered in islice(rows, (only or 1) - 1, only):
        found = True
        yield numbered
    if not found and report.records:
        raise UserError(f"--row {only}: {file} has {report.records:,} usable rows.")
    if not found:
        raise DataError(f"{file}: no usable row; `rlsys data check {file} --format {format}` lists the reasons.")
    if report.malformed:
        number, message = report.malformed[0]
        print_text(to_stderr(), f"{len(report.malformed):,} rows are malformed and left out, the first: row {number}, {message}", "yellow")


def filled(record: Record, form: Form, run: Config, turns: UserTurns, hint: bool, seed: int) -> dict[str, Any]:
    """Return {id, order, text} of one prompt, and its tokens if they are asked for."""
    from rlsys.prompts.rendering import Prompter, hint_for, shuffled

    order = shuffled(record.n, "teacher", seed, record.id, 0)
    said = hint_for(record, order, turns.score_format.single) if hint and record.has_truth else ""
    found: dict[str, Any] = {"id": record.id, "order": order, "text": turns.hinted_turn(record, order, said)}
    if form is Form.text:
        return found
    from rlsys.io.run_folder import find_model
    from rlsys.preflight import load_tokenizer

    prompter = Prompter.from_config(load_tokenizer(find_model(run.model.path)), run.prompt)
    found["text"] = prompter.render(record, order, said)
    if form is Form.tokens:
        tokens = prompter.encode(found["text"])
        pieces = [prompter.tokenizer.decode([token]) for token in tokens]
        shown = " ".join(f"{token}:{json.dumps(piece, ensure_ascii=False)}" for token, piece in zip(tokens, pieces))
        found |= {"tokens": tokens, "text": f"{len(tokens)} tokens: {shown}"}
    return found


def write_trajectories(requests: Any, turns: UserTurns, completions: Path, output: Path | None, as_json: bool) -> dict[str, Any]:
    """Write the rows that are kept, and print the number of requests by outcome; returns {rows, outcomes, output}."""
    from rlsys.data.readers import strict_rows
    from rlsys.serving.batch_file import Trajectories, read_answers

    found = Trajectories(requests, turns)
    answers = read_answers(strict_rows(completions, lines=True), str(completions))
    kept = list(found.rows(answers))
    write_lines([json.dumps(line, ensure_ascii=False) for line in kept], output, as_json)
    console = to_stderr() if output is None or as_json else to_stdout()
    table = Table("answers", "")
    for outcome, count in found.outcomes.most_common():
        table.add_row(outcome, f"{count:,}")
    console.print(table)
    if not kept:
        print_text(console, "no answer was kept, so there is nothing to learn", "yellow")
    rows = {"rows": kept} if output is None else {}
    return rows | {"outcomes": dict(found.outcomes), "output": None if output is None else str(output)}
