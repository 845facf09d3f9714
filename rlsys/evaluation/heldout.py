"""Results of a held-out evaluation: reward, accuracy and parse failures with confidence intervals, by family, and baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import pyarrow as pa

from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.trajectories import RowKey, read_trajectories, row_keys
from rlsys.documents.core import Interval
from rlsys.documents.runs import Family, Paired, ParsedDifference, RunBaselines, Stage
from rlsys.evaluation.advice import describe_failures
from rlsys.evaluation.statistics import TOO_FEW, mean_ci, paired_difference


def per_row_reward(table: pa.Table, by_group: bool = False) -> dict[RowKey, float]:
    """Return the mean reward in [-1, 1] of each row's samples in a trajectory table, by `row_keys`."""
    totals: dict[RowKey, list[float]] = {}
    for key, reward in zip(row_keys(table, by_group), table["reward"].to_pylist(), strict=True):
        totals.setdefault(key, []).append(reward)
    return {key: sum(rewards) / len(rewards) for key, rewards in totals.items()}


COLUMNS = ("prompt_id", "family", "parse_failure", "correct", "reward", "token_count")
"""Columns of `rlsys.data.trajectories.TRAJECTORIES` that a summary needs."""
NEVER_NULL = ("prompt_id", "correct", "reward", "token_count")


def read(path: Path) -> Stage:
    """Summarise the held-out rows in a file.

    Raises:
        DataError: it is not a table of trajectories, or has no rows.
    """
    table = read_trajectories(path, COLUMNS, NEVER_NULL)
    if not table.num_rows:
        raise DataError(f"{path}: no rows; expected the trajectories of a held-out evaluation.")
    return summarise(table)


def summarise(table: pa.Table) -> Stage:
    """Summarise a trajectory table of held-out rows."""
    correct: list[bool] = table["correct"].to_pylist()
    failures: list[str | None] = table["parse_failure"].to_pylist()
    rows = per_row_reward(table)
    parsed = [c for c, failure in zip(correct, failures, strict=True) if failure is None]
    accuracy = sum(correct) / len(correct)
    accuracy_ci = _interval(table, [True] * len(correct))
    return Stage(
        n=len(rows),
        samples=len(correct),
        # The reward is +1 or -1 by correctness (Eq. 11), so its mean and interval are a linear map of the accuracy's.
        reward=2 * accuracy - 1,
        reward_ci95=accuracy_ci and (2 * accuracy_ci[0] - 1, 2 * accuracy_ci[1] - 1),
        accuracy=accuracy,
        accuracy_ci95=accuracy_ci,
        accuracy_parsed=sum(parsed) / len(parsed) if parsed else None,
        accuracy_parsed_ci95=_interval(table, [failure is None for failure in failures]),
        parse_failures=dict(Counter(failure for failure in failures if failure is not None)),
        cut_off=_cut_off(table),
        families=_by_family(table),
        mean_tokens=sum(table["token_count"].to_pylist()) / len(correct),
    )


def describe(stage: str, result: Stage) -> str:
    """Format the result of `summarise` as one line for the terminal."""
    interval = result.accuracy_ci95
    bounds = TOO_FEW if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"
    return f"held-out {stage}: reward {result.reward:+.3f}, accuracy {result.accuracy:.1%} ({bounds}), " + describe_failures(
        result.parse_failures, result.samples, result.cut_off
    )


def _cut_off(table: pa.Table) -> int:
    """Count parse failures that ended at the token limit."""
    if "finish_reason" not in table.column_names:
        return 0
    ended = zip(table["parse_failure"].to_pylist(), table["finish_reason"].to_pylist(), strict=True)
    return sum(failure is not None and reason == "length" for failure, reason in ended)


def _interval(table: pa.Table, included: Sequence[bool]) -> Interval | None:
    """Return the interval of the accuracy over the included samples, clustered by row."""
    judged = zip(row_keys(table), table["correct"].to_pylist(), included, strict=True)
    chosen = [(key, correct) for key, correct, include in judged if include]
    return clustered_accuracy_ci([key for key, _ in chosen], [correct for _, correct in chosen])


def clustered_accuracy_ci(keys: Sequence[Hashable], correct: Sequence[bool]) -> Interval | None:
    """Return the interval of the accuracy of samples; those with the same key belong to one row. None if there are too few rows."""
    rows: dict[Hashable, list[bool]] = {}
    for key, right in zip(keys, correct, strict=True):
        rows.setdefault(key, []).append(right)
    sizes = [len(row) for row in rows.values()]
    return mean_ci([sum(row) / len(row) for row in rows.values()], sizes, binary=set(sizes) == {1})


def _by_family(table: pa.Table) -> dict[str, Family]:
    names = [family or "all" for family in table["family"].to_pylist()]
    sources = table["source"].to_pylist() if "source" in table.column_names else [None] * len(names)
    several = Counter(family for family, _ in set(zip(names, sources)))
    families: dict[str, list[tuple[bool, bool]]] = {}
    judged = (table["correct"].to_pylist(), table["parse_failure"].to_pylist())
    for family, source, correct, failure in zip(names, sources, *judged, strict=True):
        # Families of the same name from different sources are kept apart.
        name = f"{family} ({source})" if several[family] > 1 else family
        families.setdefault(name, []).append((correct, failure is None))
    return {
        family: Family(n=len(rows), accuracy=sum(c for c, _ in rows) / len(rows), parsed=sum(p for _, p in rows) / len(rows))
        for family, rows in sorted(families.items())
    }


def paired(after: pa.Table, before: pa.Table) -> Paired:
    """Return the paired difference of the mean reward and, over rows parsed in both, of the accuracy.

    Rows are paired by source and id, or by number and id if a table predates the source column.
    """
    by_group = not all("source" in table.column_names for table in (after, before))
    rewards_after, rewards_before = per_row_reward(after, by_group), per_row_reward(before, by_group)
    ids = sorted(rewards_after.keys() & rewards_before.keys())
    reward = paired_difference([rewards_after[i] for i in ids], [rewards_before[i] for i in ids], largest=2.0)
    parsed_after, parsed_before = _parsed_accuracy(after, by_group), _parsed_accuracy(before, by_group)
    both = sorted(parsed_after.keys() & parsed_before.keys())
    if not both:
        return Paired(**dict(reward))
    difference = paired_difference([parsed_after[i] for i in both], [parsed_before[i] for i in both])
    return Paired(**dict(reward), accuracy_parsed=ParsedDifference(**dict(difference), n=len(both)))


def _parsed_accuracy(table: pa.Table, by_group: bool) -> dict[RowKey, float]:
    parsed: dict[RowKey, list[bool]] = {}
    columns = (row_keys(table, by_group), table["correct"].to_pylist(), table["parse_failure"].to_pylist())
    for key, correct, failure in zip(*columns, strict=True):
        if failure is None:
            parsed.setdefault(key, []).append(correct)
    return {key: sum(values) / len(values) for key, values in parsed.items()}


def chance(responses: int) -> float:
    """Return the accuracy of random scores: a single response is right or wrong."""
    return 1 / responses if responses > 1 else 0.5


def baselines(records: Sequence[Record]) -> RunBaselines:
    """Return the accuracy of trivial judges: random, always the first response in the file, always the longest (ties shared).

    `first` and `longer` are over the `pairs_n` rows with at least two responses.
    """
    multiple = [record for record in records if record.n > 1]
    by_chance = sum(chance(record.n) for record in records) / len(records)
    first = [float(record.best == 0) for record in multiple]
    longer = []
    for record in multiple:
        lengths = [len(response) for response in record.responses]
        longest = [i for i, length in enumerate(lengths) if length == max(lengths)]
        longer.append((record.best in longest) / len(longest))
    return RunBaselines(
        chance=by_chance,
        first=sum(first) / len(first) if first else None,
        longer=sum(longer) / len(longer) if longer else None,
        pairs_n=len(multiple),
    )
