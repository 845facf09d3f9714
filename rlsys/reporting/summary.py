"""The summary printed at the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group
from rich.text import Text

from rlsys.data.accounts import RowCounts
from rlsys.documents.core import Interval
from rlsys.documents.runs import RunSummary, Stage
from rlsys.evaluation.statistics import TOO_FEW
from rlsys.system.printable import printable
from rlsys.system.terminal import Table

STAGES = {
    "base": "base model",
    "cold_start": "after the cold start",
    "rft": "after rejective fine-tuning",
    "rl": "after RL",
}


def summary_table(summary: RunSummary) -> Group:
    """Return held-out results by stage with 95% intervals, baselines, paired differences, families, and seconds by phase."""
    heldout = summary.heldout
    stages = [stage for stage in STAGES if stage in heldout]
    parts: list[Any] = [_results(summary, stages)] if stages else []
    for name, pair in summary.paired.items():
        after, _, before = name.partition("_minus_")
        line = f"{STAGES[after]} minus {STAGES[before]}, paired: reward {_with_interval(pair.mean, pair.ci95, '{:+.3f}')}"
        if (parsed := pair.accuracy_parsed) is not None:
            line += f"; accuracy where both parsed {_with_interval(parsed.mean, parsed.ci95, '{:+.1%}')}"
        parts.append(Text(line))
    if summary.teacher:
        parts.append(Text(f"cold start's teacher: {summary.teacher}"))
    for side, words in (("train", "training rows"), ("heldout", "held-out rows")):
        for name, source in summary.rows.get(side, {}).items():
            account = RowCounts(source.rows, source.used, Counter(source.set_aside))
            parts.append(Text(printable(f"{words}, {name}: {account}")))
    if stages and len(heldout[stages[0]].families) > 1:
        parts.append(_families(heldout, stages))
    seconds = Table(title="Seconds by phase")
    for name in summary.seconds:
        seconds.add_column(name, justify="right")
    seconds.add_row(*(f"{value:.0f}" for value in summary.seconds.values()))
    parts.append(seconds)
    return Group(*parts)


def _results(summary: RunSummary, stages: list[str]) -> Table:
    first = summary.heldout[stages[0]]
    results = Table(title=f"Held-out: {first.n} rows, 95% intervals")
    results.add_column("stage")
    for column in ("reward", "accuracy", "accuracy on parsed", "parse failures"):
        results.add_column(column, justify="right")
    for stage in stages:
        row = summary.heldout[stage]
        results.add_row(
            STAGES[stage],
            _with_interval(row.reward, row.reward_ci95, "{:+.3f}"),
            _with_interval(row.accuracy, row.accuracy_ci95, "{:.1%}"),
            _with_interval(row.accuracy_parsed, row.accuracy_parsed_ci95, "{:.1%}"),
            ", ".join(f"{reason} {count}" for reason, count in sorted(row.parse_failures.items()))
            + (f"; {row.cut_off} cut off" if row.cut_off else "")
            or "none",
        )
    results.add_section()
    base = summary.baselines
    pairs = f"over {base.pairs_n} rows of 2 or more"
    for name, accuracy, note in (("chance", base.chance, ""), ("first position", base.first, pairs), ("longer wins", base.longer, pairs)):
        if accuracy is not None:
            results.add_row(f"baseline: {name}", "", f"{accuracy:.1%}", "", note)
    return results


def _families(heldout: dict[str, Stage], stages: list[str]) -> Table:
    table = Table(title="Accuracy by family")
    table.add_column("family")
    table.add_column("rows", justify="right")
    for stage in stages:
        table.add_column(STAGES[stage], justify="right")
    for family, row in heldout[stages[0]].families.items():
        accuracies = [heldout[stage].families.get(family) for stage in stages]
        table.add_row(family, str(row.n), *(f"{entry.accuracy:.0%}" if entry else "" for entry in accuracies))
    return table


def _with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None:
        return "none"
    if interval is None:
        return f"{form.format(value)} ({TOO_FEW})"
    return f"{form.format(value)} ({form.format(interval[0])} to {form.format(interval[1])})"
