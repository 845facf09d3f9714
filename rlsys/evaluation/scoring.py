"""Compute a benchmark's figures from the rows of its files. Start reading at `score_benchmark`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from rlsys.data.records import Record
from rlsys.documents.core import Estimate, finite
from rlsys.documents.evaluation import (
    Baseline,
    BenchmarkBaselines,
    BenchmarkReport,
    Example,
    Figures,
    ParseFailures,
    Point,
    Position,
    Tokens,
)
from rlsys.evaluation import biases
from rlsys.evaluation.benchmarks import SCORES, Benchmark, Item, baselines, interval, score
from rlsys.evaluation.benchmarks.schemes import OVERALL, RocAuc
from rlsys.evaluation.passes import Row
from rlsys.judging.voting import Options, SampleTable, Strategy, find_strategy, subsets, take
from rlsys.judging.voting.table import CELLS
from rlsys.prompts.rendering import seed_for
from rlsys.rewards.rules import single_is_correct

EXAMPLES = 3
"""Number of correct, and of incorrect, critiques to include."""
DECIMALS = 9
"""Rounding of strategy outputs before they are compared."""
NAMED = 20
"""Maximum number of skipped items listed by id."""


def unsupported_reason(
    strategy: Strategy, benchmark: Benchmark, meta_rm: bool, certainty: bool = False, logprob: bool = True
) -> str | None:
    """Return why a strategy cannot be applied to a benchmark, or None if it can.

    Args:
        meta_rm: whether the samples have meta rewards.
        certainty: whether the samples have self-certainties.
        logprob: whether they have log-probabilities.
    """
    if "logprob" in strategy.needs and not logprob:
        return "it needs each sample's log-probability, which an endpoint does not give"
    if "certainty" in strategy.needs and not logprob:
        return "it needs each sample's self-certainty, which an endpoint does not give"
    if "certainty" in strategy.needs and not certainty:
        return "it needs each sample's self-certainty: set rollout.self_certainty=true"
    if "meta_reward" in strategy.needs and not meta_rm:
        return "it needs the meta reward of each sample: name a model with --meta-rm"
    if strategy.name == "synthesis":
        return "it needs a synthesis as the last sample, which an evaluation does not generate"
    if strategy.counts == "winners" and any(item.record.n == 1 for item in benchmark.items):
        return "it counts winners, and a single response has nothing to compete with"
    return None


def score_benchmark(
    benchmark: Benchmark,
    rows: dict[str, Iterable[Row]],
    strategies: Sequence[Strategy],
    ks: Sequence[int],
    resamples: int,
    seed: int,
    limits: tuple[int, int] = SCORES,
) -> BenchmarkReport:
    """Compute all figures of a benchmark.

    For each k, strategies are applied to `resamples` random subsets of the samples, the same for all items and strategies; the subset for
    a smaller k is a prefix of that for a larger k. A figure is the mean over resamples, with its interval over the benchmark's clusters.

    Args:
        rows: for `samples`, `greedy` and optionally `swapped`, as returned by `EvalPass.row`.
        ks: increasing; every item has at least the last k samples.
        seed: for the subsets and the shuffles that break ties.
        limits: lowest and highest score.

    Raises:
        DataError: a row is malformed, or an item has too few samples.
    """
    sampled, greedy, swapped = (_load_rows(rows.get(name, ()), name != "samples") for name in ("samples", "greedy", "swapped"))
    samples, single = _Table(benchmark, sampled, ks[-1]), _Table(benchmark, greedy, 1)
    points: dict[str, dict[int, Point]] = {}
    for strategy in strategies:
        points[strategy.name] = {k: samples.point(strategy, subsets(ks[-1], k, resamples, seed), seed) for k in ks}
    by_record = _by_record(benchmark, sampled)
    both = _by_record(benchmark, greedy, swapped)
    records = [record for record, _ in by_record]
    of_samples, of_greedy = [row for _, row in by_record], [row for _, row in both]
    skipped = [row["id"] for row in greedy if "skipped" in row]
    return BenchmarkReport(
        path=benchmark.report.file,
        rows=benchmark.rows,
        units=len(benchmark.clusters),
        items=len(benchmark.items),
        metric="roc_auc" if isinstance(benchmark.scheme, RocAuc) else "accuracy",
        skipped=len(skipped),
        skipped_ids=skipped[:NAMED],
        baselines=_baselines(benchmark, seed),
        # Repeating the one sample averages over random tie-breaking.
        greedy=single.point(find_strategy("vote"), np.zeros((resamples, 1), np.int64), seed),
        strategies=points,
        position=_position(of_greedy).model_copy(update={"samples": _position(of_samples)}),
        length=biases.length_bias(of_samples, [record.responses for record in records], [_best(record) for record in records]),
        parse_failures=_with_greedy(biases.parse_failures, of_samples, greedy),
        tokens=_with_greedy(biases.tokens_spent, [row["samples"] for row in sampled], greedy),
        examples=_examples(benchmark.items, greedy, seed, limits),
    )


Measured = TypeVar("Measured", ParseFailures, Tokens)


def _with_greedy(measure: Callable[[biases.Rows], Measured], samples: biases.Rows, greedy: Sequence[Row]) -> Measured:
    """Measure the k samples and the greedy ones."""
    return measure(samples).model_copy(update={"greedy": measure([row["samples"] for row in greedy])})


def _baselines(benchmark: Benchmark, seed: int) -> BenchmarkBaselines:
    found = baselines(benchmark, seed=seed)
    values = {name: Baseline(value=finite(float(score.overall.mean()))) if score else None for name, score in found.items()}
    return BenchmarkBaselines(**values)


def _load_rows(rows: Iterable[Row], text: bool) -> list[Row]:
    """Load the rows, dropping the texts as they are read unless `text`."""
    if text:
        return list(rows)
    return [row | {"samples": [{key: sample[key] for key in sample if key != "text"} for sample in row["samples"]]} for row in rows]


class _Table:
    """k samples of each item of a benchmark, aggregated over many resamples at once."""

    def __init__(self, benchmark: Benchmark, rows: Sequence[Row], k: int):
        self.benchmark, self.k = benchmark, k
        self.table = SampleTable()
        for row in rows:
            if row["samples"]:
                self.table.add(row)
        index = {item.id: number for number, item in enumerate(benchmark.items)}
        self.items = [index[str(name)] for _, name in self.table.ids]
        """Item index by position in the table, which excludes items without samples (those that could not be judged)."""

    def point(self, strategy: Strategy, index: np.ndarray, seed: int) -> Point:
        """Apply a strategy at one k; each resample aggregates the samples that a row of `index` [resamples, k] selects from every item."""
        resamples = len(index)
        totals = [np.full((resamples, item.record.n), np.nan) for item in self.benchmark.items]
        used = tokens = 0.0
        for positions, samples in self.table.groups(self.k):
            chunk = max(1, CELLS // (len(positions) * index.shape[1] * samples.scores.shape[-1]))
            for first in range(0, resamples, chunk):
                taken = take(samples, index[first : first + chunk])
                outcome = strategy(taken, Options())
                # AUC and margins compare rows with different numbers of parsed samples, so levels rather than totals. Rounding makes
                # levels equal that differ only by floating-point error.
                levels = np.where(outcome.abstained[..., None], np.nan, outcome.levels.round(DECIMALS))
                used += outcome.used.sum()
                tokens += np.where(outcome.used, taken.tokens, 0.0).sum() if taken.tokens is not None else np.nan
                for position, item_levels in zip(positions, levels):
                    totals[self.items[position]][first : first + chunk] = item_levels
        judged = max(1, resamples * len(self.items))
        verdicts = sum(np.isfinite(array[:, 0]).sum() for array in totals)
        return Point(
            **dict(_figures(self.benchmark, totals, seed)),
            samples_per_item=finite(float(used / judged)),
            tokens_per_item=finite(float(tokens / judged)),
            coverage=float(verdicts / (resamples * len(totals))),
        )


def _figures(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int) -> Figures:
    scored, intervals = score(benchmark, totals, seed=seed), interval(benchmark, totals, seed=seed)

    def figure(name: str, values: np.ndarray) -> Estimate:
        return Estimate(value=finite(float(values.mean())), ci95=intervals[name], n=scored.n[name])

    return Figures(
        overall=figure(OVERALL, scored.overall),
        groups={name: figure(name, values) for name, values in scored.groups.items()},
        others={name: finite(float(values.mean())) for name, values in scored.others.items()},
    )


def _by_record(benchmark: Benchmark, *files: Sequence[Row]) -> list[tuple[Record, list[dict[str, Any]]]]:
    """Return each record with all its samples; a benchmark that fixes both orders has an item for each, in the same cluster."""
    items = {item.id: item for item in benchmark.items}
    found: dict[tuple[int, str], tuple[Record, list[dict[str, Any]]]] = {}
    for rows in files:
        for row in rows:
            item = items[row["id"]]
            found.setdefault((item.cluster, item.record.id), (item.record, []))[1].extend(row["samples"])
    return list(found.values())


def _position(rows: biases.Rows) -> Position:
    return Position(**dict(biases.position_bias(rows)), **dict(biases.order_consistency(rows)))


def _best(record: Record) -> int | None:
    return record.best if record.n > 1 and record.has_truth else None


def _examples(items: Sequence[Item], greedy: Sequence[Row], seed: int, limits: tuple[int, int]) -> list[Example]:
    """Return random correct and incorrect critiques, preferring parsed incorrect ones over parse failures."""
    shown = [
        _example(item, row["samples"][0], limits)
        for item, row in zip(items, greedy, strict=True)
        if row["samples"] and item.record.has_truth
    ]
    shown.sort(key=lambda example: (example.scores is None, seed_for("example", seed, str(example.id))))
    right, wrong = ([example for example in shown if example.correct is verdict] for verdict in (True, False))
    return right[:EXAMPLES] + wrong[:EXAMPLES]


def _example(item: Item, sample: dict[str, Any], limits: tuple[int, int]) -> Example:
    record, scores = item.record, sample["scores"]
    gold = int(record.rewards[0]) if record.n == 1 else record.best
    top = [] if scores is None else [response for response, given in zip(sample["order"], scores) if given == max(scores)]
    best = top[0] if len(top) == 1 and record.n > 1 else None
    if record.n == 1:
        correct = scores is not None and single_is_correct(scores[0], gold, limits)
    else:
        correct = best == gold
    return Example(
        id=item.id,
        query=record.context[-1]["content"],
        responses=list(record.responses),
        gold=gold,
        best=best,
        correct=correct,
        text=sample["text"],
        order=sample["order"],
        scores=scores,
    )
