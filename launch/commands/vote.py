"""`rlsys vote`: aggregate sampled judgements."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, only_json, row_output, to_stderr
from launch.options import AsJson
from rlsys.data.accounts import RowCounts
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from rlsys.judging.voting import SampleTable


def vote(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL of {id, order, scores, ...}, or the output of `rlsys judge`.")],
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", metavar="NAME", help="One of those above, or FILE.py:NAME for a strategy of your own.")
    ] = "vote",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Use only the first K samples of each id. Default: all.")] = None,
    k_meta: Annotated[int | None, typer.Option("--k-meta", help="With meta: samples kept. Default: half of k.")] = None,
    power: Annotated[float, typer.Option(help="With borda: rank r of N gets (N - r + 1)^power votes.")] = 1.0,
    error_rate: Annotated[float, typer.Option(help="With adaptive: probability of stopping early at a wrong winner.")] = 0.05,
    round_size: Annotated[int, typer.Option(help="With adaptive: samples per round.")] = 2,
    margin: Annotated[float, typer.Option(help="With abstain: smallest lead of the winner, in points of the mean score.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of tie-breaking, combined with the id.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSONL rows here instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate sampled judgements into one verdict per id.

    FILE holds one JSON object per line: id, source (required if ids are unique only within a source), order (the original index of the
    response shown at each place), scores (as shown; null after a parse failure), and those of meta_reward, logprob, certainty and tokens
    that the strategy needs. The samples of an id may be on any lines; two lines of one source and id that each hold all samples of a
    record are an error. For each id the command writes {id, source, totals, best, tied, abstained, samples, parsed, tokens}, with totals in
    the record's own order. The summary goes to stderr.

    Strategies: vote, mean, majority, meta, meta_weighted, rpc, borda, adaptive, abstain, synthesis.

    Example: rlsys vote samples.jsonl --strategy meta --k 8 --k-meta 4
    """
    from rlsys.judging.voting import Options, SampleTable, decide, find_strategy

    chosen = find_strategy(strategy)
    options = Options(k_meta=k_meta, power=power, error_rate=error_rate, round_size=round_size, margin=margin)
    table = SampleTable(chosen.needs)
    with only_json(as_json) as write_json:
        account = read_samples(file, table)
        rows: list[dict[str, Any]] = []
        counts: dict[str, int | None] = dict.fromkeys(("ids", "samples", "parsed", "tokens", "nothing_parsed", "abstained", "tied"), 0)
        with row_output(output, as_json) as rows_file:
            try:
                for row in decide(table, chosen, options, k, seed):
                    _add(counts, row)
                    if as_json:
                        rows.append(row)
                    if rows_file is not None:
                        rows_file.write(json.dumps(row) + "\n")
            except ValueError as error:
                raise UserError(f"{file}: {error}") from error
        summary = {"strategy": strategy, "account": account.to_json(), "available": len(table), **counts}
        write_json({"rows": rows, "summary": summary})
        if not as_json:
            sys.stdout.flush()
            _print(summary, account)


def read_samples(file: Path, table: SampleTable) -> RowCounts:
    """Add the rows of a file to the table, except those that `rlsys judge` set aside; blank lines are skipped.

    Raises:
        DataError: the file cannot be read or is empty, or a row is not a valid sample; the message names file and row number (from 1).
        UserError: `rlsys judge` set all rows aside.
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
        raise UserError(f"{file}: `rlsys judge` set all of its rows aside ({account}).")
    return account


def _add(counts: dict[str, int | None], row: dict[str, Any]) -> None:
    """Add an output row to the counts; `tokens` becomes None if any row's is unknown."""
    added = {
        "ids": 1,
        "samples": row["samples"],
        "parsed": row["parsed"],
        "tokens": row["tokens"],
        "nothing_parsed": row["totals"] is None,
        "abstained": row["abstained"],
        "tied": row["tied"],
    }
    for name, more in added.items():
        count = counts[name]
        counts[name] = None if count is None or more is None else count + more


LABELS = {
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
    for key, label in LABELS.items():
        table.add_row(label, "unknown" if summary[key] is None else str(summary[key]))
    to_stderr().print(table)
