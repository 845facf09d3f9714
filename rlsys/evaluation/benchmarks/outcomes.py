"""What a unit is worth, as each benchmark published it: float64 [draws, units] by figure name, from verdicts.

Everywhere: no verdict is wrong.
"""

from __future__ import annotations

import numpy as np

from rlsys.evaluation.benchmarks.schemes import OVERALL, Figures
from rlsys.evaluation.benchmarks.verdicts import Verdicts
from rlsys.judging.voting.verdict import NO_VERDICT


def all_right(verdicts: Verdicts) -> Figures:
    """RMB best-of-N in pairs: the best response must beat each of the others (arXiv 2410.09893)."""
    return {OVERALL: verdicts.every(verdicts.right)}


def picked_reward(verdicts: Verdicts) -> Figures:
    """PPE best-of-K: the ground-truth score of the response picked (arXiv 2410.14872)."""
    return {OVERALL: verdicts.mean(verdicts.reward)}


def both_orders(verdicts: Verdicts) -> Figures:
    """LLMBar (LLMEvaluator/evaluate.py): the mean accuracy of the two orders.

    `both_right`: in both orders; `agreement`: the same verdict in both, the published positional agreement rate. Of equal scores the
    response that was shown last wins, as published: right in one of the two orders.
    """
    items = verdicts.benchmark.items
    last, best = np.array([item.order[-1] for item in items])[:, None], np.array([item.record.best for item in items])[:, None]
    pick = np.where(verdicts.tied & (verdicts.pick != NO_VERDICT), last, verdicts.pick)
    return {
        OVERALL: verdicts.mean(pick == best),
        "both_right": verdicts.every(pick == best),
        "agreement": verdicts.agree(pick),
    }


def decided_orders(verdicts: Verdicts) -> Figures:
    """EvalBiasBench (run_bench.py): the mean accuracy of the two orders, a tie being wrong.

    `both_right`: in both orders; `agreement`: the same verdict in both, a tie being a verdict.
    """
    right = verdicts.right & ~verdicts.tied
    return {
        OVERALL: verdicts.mean(right),
        "both_right": verdicts.every(right),
        "agreement": verdicts.agree(np.where(verdicts.tied, 2, verdicts.pick)),
    }


def style_matrix(verdicts: Verdicts) -> Figures:
    """RM-Bench (scripts/utils.py): the share of the nine pairs of a row, right against wrong, in which the right response scores higher.

    `easy`, `normal`, `hard`: of the three pairs each in which the style of the right response is the more elaborate one, the same, the
    less elaborate one. A tie is wrong.
    """
    beaten = _matrix(verdicts)
    rows, columns = np.indices(beaten.shape[-2:])
    parts = {"easy": rows > columns, "normal": rows == columns, "hard": rows < columns}
    return {OVERALL: beaten.mean(axis=(-2, -1))} | {name: beaten[..., cells].mean(axis=-1) for name, cells in parts.items()}


def _matrix(verdicts: Verdicts) -> np.ndarray:
    """bool [draws, units, styles of the right response, styles of the wrong one]: the first scores higher; False without a verdict."""
    units = len(verdicts.benchmark.units)
    if verdicts.benchmark.items[0].record.n == 2:
        higher = verdicts.right & ~verdicts.tied
        return higher.T.reshape(verdicts.draws, units, -1, round((len(higher) / units) ** 0.5))
    scores = np.concatenate(verdicts.totals, axis=1).reshape(verdicts.draws, units, 2, -1)
    return scores[:, :, 0, :, None] > scores[:, :, 1, None, :]


def preference_graph(verdicts: Verdicts) -> Figures:
    """IF-RewardBench (metrics/analysis_overall_assessment.py): the share of a row's pairs in which the better response scores higher.

    `kendall`: (concordant - discordant) / sqrt(decided x all), 0 where nothing is decided; a tie or no verdict decides nothing.
    """
    benchmark = verdicts.benchmark
    higher, lower, count = (np.zeros((len(benchmark.items), verdicts.draws)) for _ in range(3))
    for index, (item, totals) in enumerate(zip(benchmark.items, verdicts.totals)):
        better, worse = np.array(item.pairs).T
        higher[index] = (totals[:, better] > totals[:, worse]).sum(axis=1)
        lower[index] = (totals[:, better] < totals[:, worse]).sum(axis=1)
        count[index] = len(better)
    kendall = (higher - lower) / np.maximum(np.sqrt((higher + lower) * count), 1)
    return {OVERALL: verdicts.mean(higher / count), "kendall": verdicts.mean(kendall)}


def judgebench(verdicts: Verdicts) -> Figures:
    """JudgeBench (utils/metrics.py): of the verdicts in the two orders, more must be right than wrong; a tie or none at all is neither.

    `both_right`: in both orders; `agreement`: the same verdict in both, a tie being a verdict.
    """
    right, decided = verdicts.right & ~verdicts.tied, (verdicts.pick != NO_VERDICT) & ~verdicts.tied
    balance = verdicts.mean(right.astype(np.float64) - (decided & ~right))
    return {
        OVERALL: (balance > 0).astype(np.float64),
        "both_right": verdicts.every(right),
        "agreement": verdicts.agree(np.where(verdicts.tied, 2, verdicts.pick)),
    }


def pandalm(verdicts: Verdicts) -> Figures:
    """PandaLM (data/compute_metrics.py): agreement with the annotators' majority on first, second or tie."""
    truth, predicted = _classes(verdicts)
    return {OVERALL: (predicted == truth).astype(np.float64)}


def pandalm_macro(verdicts: Verdicts, counts: np.ndarray) -> Figures:
    """Precision, recall and F1, each the unweighted mean over tie, first and second, a quotient by 0 being 0; [draws]."""
    truth, predicted = _classes(verdicts)
    sums: dict[str, np.ndarray] = dict.fromkeys(("precision", "recall", "f1"), np.zeros(verdicts.draws))
    for label in (0, 1, 2):
        hits = ((predicted == label) & (truth == label)) @ counts
        said, is_label = (predicted == label) @ counts, counts[truth == label].sum()
        # 2PR / (P + R) = 2 hits / (said + is_label): both are 0 where there are no hits.
        for name, numerator, denominator in (("precision", hits, said), ("recall", hits, is_label), ("f1", 2 * hits, said + is_label)):
            sums[name] = sums[name] + numerator / np.maximum(denominator, 1)
    return {name: total / 3 for name, total in sums.items()}


def _classes(verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """(the true class [units], the judge's [draws, units]): 0 a tie, 1 the first response, 2 the second, NO_VERDICT."""
    truth = np.array([0 if len(set(rewards)) == 1 else 1 + int(np.argmax(rewards)) for rewards in _rewards(verdicts)])
    predicted = np.where(verdicts.tied, 0, np.where(verdicts.pick == NO_VERDICT, NO_VERDICT, verdicts.pick + 1))
    return truth, predicted.T


def _rewards(verdicts: Verdicts) -> list[tuple[float, ...]]:
    return [item.record.rewards for item in verdicts.benchmark.items]


TIES = "Ties"
"""The subset of Reward Bench 2 that is scored by margins."""


def rewardbench2(verdicts: Verdicts) -> Figures:
    """Reward Bench 2 (arXiv 2506.01937; rewardbench/utils.py): the best of four; in Ties, `ties_value` of each prompt.

    A Ties unit holds the rows `ref:N` (one right response) and `tied:N` (several) of prompt N, each in one item or an item a response.
    """
    benchmark = verdicts.benchmark
    values = verdicts.mean(verdicts.right)
    for index, unit in enumerate(benchmark.units):
        if unit.subset == TIES:
            rows: dict[str, list[int]] = {"ref": [], "tied": []}
            for item in range(benchmark.starts[index], len(benchmark.items)):
                if benchmark.items[item].unit != index:
                    break
                rows[benchmark.items[item].record.id.partition(":")[0]].append(item)
            values[:, index] = ties_value(*(_joined(verdicts, rows[kind]) for kind in ("ref", "tied")))
    return {OVERALL: values}


def _joined(verdicts: Verdicts, items: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(totals [draws, n], whether right [n]) of a row's items side by side."""
    right = np.concatenate([np.array(verdicts.benchmark.items[item].record.rewards) == 1 for item in items])
    return np.concatenate([verdicts.totals[item] for item in items], axis=1), right


def ties_value(ref: tuple[np.ndarray, np.ndarray], tied: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The Ties score of one prompt, float64 [draws] in [-0.01, 1.01].

    0.3 if all right responses of the tied row outscore all wrong ones, 0.3 for the same in the ref row, 0.2 if the tied row's margin
    between right and wrong is larger than the spread of its right responses, 0.2 if the smaller of both rows' margins is, and 0.01 times
    the tie-breaking term tanh(smaller margin / spread - 1).

    Args:
        ref, tied: (totals float64 [draws, n], which responses are right [n]); a row of totals with NaN is no verdict.
    """
    margin, _ = _margin(*ref)
    tied_margin, spread = _margin(*tied)
    smaller = np.minimum(margin, tied_margin)
    with np.errstate(divide="ignore", invalid="ignore"):
        term = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    # A comparison with NaN is False: what has no verdict earns nothing, and the term's lowest value.
    term = np.where(np.isnan(smaller), -1.0, term)
    return 0.3 * (tied_margin > 0) + 0.3 * (margin > 0) + 0.2 * (tied_margin > spread) + 0.2 * (smaller > spread) + 0.01 * term


def _margin(totals: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lowest right - highest wrong, highest right - lowest right), [draws]."""
    lowest = totals[:, right].min(axis=1)
    missing = np.where(np.isnan(totals).any(axis=1), np.nan, 0.0)
    return lowest - totals[:, ~right].max(axis=1) + missing, totals[:, right].max(axis=1) - lowest + missing
