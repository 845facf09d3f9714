"""`rlsys rft` and `rlsys filter`: learn from one's own right answers, and find the rows that have nothing left to teach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import print_text, to_stdout
from launch.options import ConfigFile, OnlyCheck, Overrides


def rft(config: ConfigFile, overrides: Overrides = None, check: OnlyCheck = False) -> None:
    """Rejective fine-tuning: sample rows with and without a hint, reject, tune on what is kept.

    Of rft.samples samples without a hint the incorrect ones are rejected, and all where none is; of one sample with the ground truth in
    the prompt, the incorrect one. What is kept is learned without the hint, mixed with rft.instruction_data. rft.rounds repeats it.
    RUN/trajectories/rft_round_1.parquet holds every sample and why it was kept or not, RUN/model the result, from which `rlsys train`
    goes on (model.path=RUN). A folder that already holds a run is resumed where it stopped.

    Example: rlsys rft launch/configs/quickstart.yaml model.path=runs/cold-start rft.rows=1024 run.dir=runs/rft
    """
    from launch.check import checked_config

    settings = checked_config("rft", config, overrides, check)
    from actors.loops.rft import rejective_fine_tuning

    rejective_fine_tuning(settings, console=to_stdout())


def filter_rows(
    config: ConfigFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write, a line per row.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="N: a row is easy when all of so many samples are right.")] = 3,
    rows: Annotated[int | None, typer.Option(min=1, help="Look at so many rows of data.train, in a run's order; default: all.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, whatever OUTPUT holds.")] = False,
    check: OnlyCheck = False,
) -> None:
    """Mark the rows of data.train that model.path gets right N times of N: RL has nothing to learn from them.

    A line is {id, source, right, samples, easy, failures}. Give the file to a run as data.exclude, and its easy rows are left out. A
    command that was killed goes on after the last line when it is started again.

    Example: rlsys filter launch/configs/quickstart.yaml --rows 2000 --output easy.jsonl
    """
    from launch.check import checked_config

    settings = checked_config("filter", config, overrides, check, files=(str(output),))
    from actors.loops.judge import running_judge, write_rows
    from rlsys.algorithms.rejection import correct
    from rlsys.data.mixtures import open_mixture
    from rlsys.data.records import Record
    from rlsys.io.resumable import ResumableRows
    from rlsys.judging.requests import ask
    from rlsys.judging.results import as_before

    console = to_stdout()
    source = open_mixture(settings.data, "train", settings.seed)
    total = min(rows or len(source), len(source))

    def marked(left: Iterable[Record]) -> Iterator[dict[str, Any]]:
        with running_judge(settings, console) as judge:
            asks = (ask(record, samples, "filter", settings.seed) for record in left)
            for answer in judge.answer(asks, settings.rollout.temperature):
                record = answer.question.ask.record
                right = sum(correct(sample, record) for sample in answer.samples)
                yield {
                    "id": record.id,
                    "source": record.source,
                    "right": right,
                    "samples": len(answer.samples),
                    "easy": bool(answer.samples) and right == len(answer.samples),
                    "failures": sum(sample["scores"] is None for sample in answer.samples),
                    "tokens": sum(sample["tokens"] for sample in answer.samples),
                    **({"skipped": answer.question.skipped} if answer.question.skipped else {}),
                }

    about = {"samples": samples, "rows": rows, "config": settings.model_dump(mode="json", exclude={"run"})}
    with ResumableRows(output, about, again) as file:
        if not file.complete:
            records = as_before(islice(source.once(), total), islice(file.rows(), file.done))
            write_rows(file, total, records, marked, console, "filtering the training rows")
            aside = {reason: count for reason, count in source.account.aside.items() if count}
            if aside:
                print_text(
                    console, f"no record to ask about in {', '.join(f'{count:,} rows ({reason})' for reason, count in aside.items())}"
                )
        found = list(file.rows())
    easy, long = sum(row["easy"] for row in found), sum("skipped" in row for row in found)
    if long:
        print_text(
            console, f"{long:,} of {len(found):,} rows were not asked about: their prompt is longer than prompt.max_tokens", "yellow"
        )
    print_text(
        console, f"{output}: {len(found):,} rows, {easy:,} right {samples} times of {samples}; data.exclude={output} leaves those out"
    )
