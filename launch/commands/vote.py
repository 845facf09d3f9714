"""`rlsys vote`: aggregate judgements that were sampled before."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, to_stderr
from launch.options import AsJson
from rlsys.data.accounts import RowCounts
from rlsys.io.files import atomic_output
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.judging.voting import SampleTable


def vote(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of {id, order, scores, ...}, or the output of `rlsys judge`.")],
    strategy: Annotated[str, typer.Option("--strategy", "-s", metavar="NAME", help="See above; FILE.py:NAME for your own.")] = "vote",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Use the first K samples of each id. Default: all.")] = None,
    k_meta: Annotated[int | None, typer.Option("--k-meta", help="meta: samples kept. Default: half of k.")] = None,
    power: Annotated[float, typer.Option(help="borda: rank r of N has (N - r + 1)^power votes.")] = 1.0,
    error_rate: Annotated[float, typer.Option(help="adaptive: probability of stopping early for a wrong winner.")] = 0.05,
    round_size: Annotated[int, typer.Option(help="adaptive: samples between two looks.")] = 2,
    margin: Annotated[float, typer.Option(help="abstain: smallest lead, in points of the mean score.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Breaks ties, together with the id.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL rows here instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate sampled judgements into one verdict per id.

    FILE holds one JSON object per line: id, source (where ids are unique within one only), order (place by place, the index of the
    response that was shown there), scores (as shown; null where the text did not parse), and what the strategy needs of meta_reward,
    logprob, certainty and tokens. The samples of an id need not be neighbours; two lines of one source and id that each hold all samples
    of a record are refused. For each id the command writes {id, source, totals, best, tied, abstained, samples, parsed, tokens}, totals in
    the record's own order. The summary goes to stderr.

    Strategies: vote, mean, majority, meta, meta_weighted, rpc, borda, adaptive, abstain, synthesis.

    Example: rlsys vote samples.jsonl --strategy meta --k 8 --k-meta 4
    """
    from rlsys.judging.voting import Options, SampleTable, decide, find_strategy

    chosen = find_strategy(strategy)
    options = Options(k_meta=k_meta, power=power, error_rate=error_rate, round_size=round_size, margin=margin)
    with only_json(as_json) as write_json, ExitStack() as stack:
        table = SampleTable(chosen.needs)
        account = read_samples(file, table)
        sink = None
        if output is not None:
            sink = stack.enter_context(stack.enter_context(atomic_output(output)).open("w", encoding="utf-8"))
        elif not as_json:
            sink = sys.stdout
        rows: list[dict[str, Any]] = []
        summary = dict.fromkeys(("ids", "samples", "parsed", "tokens", "nothing_parsed", "abstained", "tied"), 0)
        try:
            for row in decide(table, chosen, options, k, seed):
                _add(summary, row)
                if as_json:
                    rows.append(row)
                if sink is not None:
                    sink.write(json.dumps(row) + "\n")
        except ValueError as error:
            raise UserError(f"{file}: {error}") from error
        summary = {"strategy": strategy, "account": account.to_json(), "available": len(table), **summary}
        write_json({"rows": rows, "summary": summary})
        if not as_json:
            sys.stdout.flush()
            _print(summary, account)


def read_samples(file: Path, table: SampleTable) -> RowCounts:
    """Add every row of a file to the table, empty lines apart, and those that `rlsys judge` set aside.

    Raises:
        DataError: the file cannot be read or is empty, or a row is no sample. It says where, by file and row number (from 1).
        UserError: `rlsys judge` could ask none of the rows.
    """
    from rlsys.data.readers import DataError, strict_rows
    from rlsys.judging.results import row_status

    account = RowCounts()
    for number, row in strict_rows(file):
        account.rows += 1
        if "skipped" in row:
            account.aside[str(row_status(row))] += 1
            continue
        try:
            table.add(row)
        except DataError as error:
            raise error.at(str(file), number) from error
        account.used += 1
    if not table.ids:
        raise UserError(f"{file}: `rlsys judge` could ask none of its rows ({account}).")
    return account


def _add(summary: dict[str, int | None], row: dict[str, Any]) -> None:
    summary["ids"] += 1
    summary["samples"] += row["samples"]
    summary["parsed"] += row["parsed"]
    summary["tokens"] = None if None in (summary["tokens"], row["tokens"]) else summary["tokens"] + row["tokens"]
    summary["nothing_parsed"] += row["totals"] is None
    summary["abstained"] += row["abstained"]
    summary["tied"] += row["tied"]


WORDS = {
    "strategy": "strategy",
    "ids": "ids",
    "available": "samples in the file",
    "samples": "samples spent",
    "parsed": "of these, parsed",
    "tokens": "tokens spent",
    "nothing_parsed": "no verdict: nothing parsed",
    "abstained": "no verdict: abstained",
    "tied": "ties at the top",
}


def _print(summary: dict[str, Any], account: RowCounts) -> None:
    table = Table("votes", "")
    table.add_row("rows in the file", f"{account.rows:,}")
    for reason, count in account.aside.most_common():
        table.add_row(f"  set aside by `rlsys judge`: {reason}", f"{count:,}")
    for key, words in WORDS.items():
        table.add_row(words, "unknown" if summary[key] is None else str(summary[key]))
    to_stderr().print(table)
