"""From the rows of the three files to the figures of a benchmark. Read `evaluation` first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlsys.data.records import Record
from rlsys.evaluation import biases
from rlsys.evaluation.benchmarks import SCORES, Benchmark, Item, baselines, interval, score
from rlsys.evaluation.benchmarks.schemes import OVERALL, RocAuc
from rlsys.evaluation.passes import Row
from rlsys.judging.voting import Options, SampleTable, Strategy, find_strategy, subsets, take
from rlsys.judging.voting.table import CELLS
from rlsys.prompts.rendering import seed_for
from rlsys.rewards.rules import single_is_correct

EXAMPLES = 3
"""Right critiques, and wrong ones, that are shown."""
DECIMALS = 9
"""Of the levels that are compared: scores and shares."""
NAMED = 20
"""Items that are named where many may have to be."""


def unsupported_reason(strategy: Strategy, benchmark: Benchmark, meta_rm: bool, certainty: bool = False) -> str | None:
    """Why a strategy says nothing on a benchmark, in words; None: it does.

    Args:
        meta_rm: whether the samples have meta rewards.
        certainty: whether they have self-certainties.
    """
    if "certainty" in strategy.needs and not certainty:
        return "it needs each sample's self-certainty: set rollout.self_certainty=true"
    if "meta_reward" in strategy.needs and not meta_rm:
        return "it needs the meta reward of each sample: name a model with --meta-rm"
    if strategy.name == "synthesis":
        return "it needs a synthesis as the last sample, which is not drawn"
    if strategy.counts == "winners" and any(item.record.n == 1 for item in benchmark.items):
        return "it counts winners, and a single response has no rival"
    return None


def score_benchmark(
    benchmark: Benchmark,
    rows: dict[str, Iterable[Row]],
    strategies: Sequence[Strategy],
    ks: Sequence[int],
    draws: int,
    seed: int,
    limits: tuple[int, int] = SCORES,
) -> dict[str, Any]:
    """BENCHMARK of eval.json (see `rlsys.evaluation`).

    For each k, `draws` random subsets of the samples, the same for all items and strategies; the subset of a smaller k opens that of a
    larger one. A figure is the mean over the draws, and its interval that mean's over the benchmark's units.

    Args:
        rows: of `samples`, `greedy` and, if there are any, `swapped`, as `EvalPass.row` writes them.
        ks: increasing; the samples of an item are at least as many as the last.
        seed: of the subsets, and of the shuffles that break ties.
        limits: lowest and highest score.

    Raises:
        DataError: a row is no such thing, or an item has fewer samples.
    """
    drawn, greedy, swapped = (_light(rows.get(name, ()), name != "samples") for name in ("samples", "greedy", "swapped"))
    samples, single = _Table(benchmark, drawn, ks[-1]), _Table(benchmark, greedy, 1)
    points: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        points[strategy.name] = {str(k): samples.point(strategy, subsets(ks[-1], k, draws, seed), seed) for k in ks}
    by_record = _by_record(benchmark, drawn)
    both = _by_record(benchmark, greedy, swapped)
    records = [record for record, _ in by_record]
    of_samples, of_greedy = [row for _, row in by_record], [row for _, row in both]
    skipped = [row["id"] for row in greedy if "skipped" in row]
    plain = baselines(benchmark, seed=seed)
    return {
        "path": benchmark.report.file,
        "rows": asdict(benchmark.rows),
        "units": len(benchmark.clusters),
        "items": len(benchmark.items),
        "metric": "roc_auc" if isinstance(benchmark.scheme, RocAuc) else "accuracy",
        "skipped": len(skipped),
        "skipped_ids": skipped[:NAMED],
        "baselines": {name: found and {"value": float(found.overall.mean())} for name, found in plain.items()},
        # As many draws of the one sample share out the ties at the top.
        "greedy": single.point(find_strategy("vote"), np.zeros((draws, 1), np.int64), seed),
        "strategies": points,
        "position": _position(of_greedy) | {"samples": _position(of_samples)},
        "length": biases.length_bias(of_samples, [record.responses for record in records], [_best(record) for record in records]),
        "parse_failures": biases.parse_failures(of_samples) | {"greedy": biases.parse_failures([row["samples"] for row in greedy])},
        "tokens": biases.tokens_spent([row["samples"] for row in drawn])
        | {"greedy": biases.tokens_spent([row["samples"] for row in greedy])},
        "examples": _examples(benchmark.items, greedy, seed, limits),
    }


def _light(rows: Iterable[Row], text: bool) -> list[Row]:
    """The rows; without `text`, what is large and not needed is let go of as they are read."""
    if text:
        return list(rows)
    return [row | {"samples": [{key: sample[key] for key in sample if key != "text"} for sample in row["samples"]]} for row in rows]


class _Table:
    """The samples of a benchmark's items, k of each, to be aggregated over many draws at once."""

    def __init__(self, benchmark: Benchmark, rows: Sequence[Row], k: int):
        self.benchmark, self.k = benchmark, k
        self.table = SampleTable()
        for row in rows:
            if row["samples"]:
                self.table.add(row)
        index = {item.id: number for number, item in enumerate(benchmark.items)}
        self.items = [index[name] for _, name in self.table.ids]
        """By position in the table: the item's index. An item that could not be asked has no samples and is not there."""

    def point(self, strategy: Strategy, index: np.ndarray, seed: int) -> dict[str, Any]:
        """POINT of eval.json; in each draw, a row of `index` [draws, k], the samples of all items at these places are aggregated."""
        draws = len(index)
        totals = [np.full((draws, item.record.n), np.nan) for item in self.benchmark.items]
        used = tokens = 0.0
        for positions, samples in self.table.groups(self.k):
            at_once = max(1, CELLS // (len(positions) * index.shape[1] * samples.scores.shape[-1]))
            for first in range(0, draws, at_once):
                taken = take(samples, index[first : first + at_once])
                outcome = strategy(taken, Options())
                # Areas and margins compare rows, and not of every row the same number of samples parsed. Equal levels may differ in their
                # last bits, as sums of other terms.
                given = np.where(outcome.abstained[..., None], np.nan, outcome.levels.round(DECIMALS))
                used += outcome.used.sum()
                tokens += np.where(outcome.used, taken.tokens, 0.0).sum() if taken.tokens is not None else np.nan
                for position, of_item in zip(positions, given):
                    totals[self.items[position]][first : first + at_once] = of_item
        asked = max(1, draws * len(self.items))
        verdicts = sum(np.isfinite(array[:, 0]).sum() for array in totals)
        return _figures(self.benchmark, totals, seed) | {
            "samples_per_item": float(used / asked),
            "tokens_per_item": float(tokens / asked),
            "coverage": float(verdicts / (draws * len(totals))),
        }


def _figures(benchmark: Benchmark, totals: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """FIGURES of eval.json."""
    found, bounds = score(benchmark, totals, seed=seed), interval(benchmark, totals, seed=seed)

    def figure(name: str, values: np.ndarray) -> dict[str, Any]:
        return {"value": float(values.mean()), "ci95": bounds[name], "n": found.n[name]}

    return {
        "overall": figure(OVERALL, found.overall),
        "groups": {name: figure(name, values) for name, values in found.groups.items()},
        "others": {name: float(values.mean()) for name, values in found.others.items()},
    }


def _by_record(benchmark: Benchmark, *files: Sequence[Row]) -> list[tuple[Record, list[dict[str, Any]]]]:
    """Each record with all its samples. A benchmark that fixes both orders has an item for each, in the same unit."""
    items = {item.id: item for item in benchmark.items}
    found: dict[tuple[int, str], tuple[Record, list[dict[str, Any]]]] = {}
    for rows in files:
        for row in rows:
            item = items[row["id"]]
            found.setdefault((item.cluster, item.record.id), (item.record, []))[1].extend(row["samples"])
    return list(found.values())


def _position(rows: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    return biases.position_bias(rows) | biases.order_consistency(rows)


def _best(record: Record) -> int | None:
    return record.best if record.n > 1 and record.has_truth else None


def _examples(items: Sequence[Item], greedy: Sequence[Row], seed: int, limits: tuple[int, int]) -> list[dict[str, Any]]:
    """Right critiques and wrong ones, at random; a wrong one that says something before one that did not parse."""
    shown = [
        _example(item, row["samples"][0], limits)
        for item, row in zip(items, greedy, strict=True)
        if row["samples"] and item.record.has_truth
    ]
    shown.sort(key=lambda example: (example["scores"] is None, seed_for("example", seed, example["id"])))
    right, wrong = ([example for example in shown if example["correct"] is verdict] for verdict in (True, False))
    return right[:EXAMPLES] + wrong[:EXAMPLES]


def _example(item: Item, sample: dict[str, Any], limits: tuple[int, int]) -> dict[str, Any]:
    record, scores = item.record, sample["scores"]
    gold = int(record.rewards[0]) if record.n == 1 else record.best
    top = [] if scores is None else [response for response, given in zip(sample["order"], scores) if given == max(scores)]
    best = top[0] if len(top) == 1 and record.n > 1 else None
    if record.n == 1:
        correct = scores is not None and single_is_correct(scores[0], gold, limits)
    else:
        correct = best == gold
    return {
        "id": item.id,
        "query": record.context[-1]["content"],
        "responses": list(record.responses),
        "gold": gold,
        "best": best,
        "correct": correct,
        "text": sample["text"],
        "order": sample["order"],
        "scores": scores,
    }
