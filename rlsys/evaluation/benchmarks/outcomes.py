"""Per-cluster scores as each benchmark defines them: verdicts in, float64 [resamples, clusters] by figure name out.

A missing verdict always counts as wrong.
"""

from __future__ import annotations

import numpy as np

from rlsys.evaluation.benchmarks.schemes import OVERALL, Figures
from rlsys.evaluation.benchmarks.verdicts import Verdicts
from rlsys.judging.voting.verdict import NO_VERDICT


def all_right(verdicts: Verdicts) -> Figures:
    """Score RMB best-of-N as pairs: the best response must beat every other one (arXiv 2410.09893)."""
    return {OVERALL: verdicts.every(verdicts.right)}


def picked_reward(verdicts: Verdicts) -> Figures:
    """Score PPE best-of-K: the ground-truth score of the picked response (arXiv 2410.14872)."""
    return {OVERALL: verdicts.mean(verdicts.reward)}


def both_orders(verdicts: Verdicts) -> Figures:
    """Score LLMBar (LLMEvaluator/evaluate.py): the mean accuracy over the two orders.

    `both_right`: correct in both orders; `agreement`: the same verdict in both, the published positional agreement rate. As published,
    the response shown last wins a tie, which is correct in one of the two orders.
    """
    items = verdicts.benchmark.items
    last = np.array([item.order[-1] for item in items if item.order is not None])[:, None]
    best = np.array([item.record.best for item in items])[:, None]
    pick = np.where(verdicts.tied & (verdicts.pick != NO_VERDICT), last, verdicts.pick)
    return {
        OVERALL: verdicts.mean(pick == best),
        "both_right": verdicts.every(pick == best),
        "agreement": verdicts.agree(pick),
    }


def decided_orders(verdicts: Verdicts) -> Figures:
    """Score EvalBiasBench (run_bench.py): the mean accuracy over the two orders; a tie is wrong.

    `both_right`: correct in both orders; `agreement`: the same verdict in both, where a tie is a verdict.
    """
    right = verdicts.right & ~verdicts.tied
    return {
        OVERALL: verdicts.mean(right),
        "both_right": verdicts.every(right),
        "agreement": verdicts.agree(np.where(verdicts.tied, 2, verdicts.pick)),
    }


def style_matrix(verdicts: Verdicts) -> Figures:
    """Score RM-Bench (scripts/utils.py): the fraction of a row's nine (correct, incorrect) pairs whose correct response scores higher.

    `easy`, `normal`, `hard`: the same over the three pairs whose correct response has the more elaborate style, the same style, the less
    elaborate style. A tie is wrong.
    """
    beaten = _matrix(verdicts)
    rows, columns = np.indices(beaten.shape[-2:])
    parts = {"easy": rows > columns, "normal": rows == columns, "hard": rows < columns}
    return {OVERALL: beaten.mean(axis=(-2, -1))} | {name: beaten[..., cells].mean(axis=-1) for name, cells in parts.items()}


def _matrix(verdicts: Verdicts) -> np.ndarray:
    """Whether the correct response scores higher, bool [resamples, clusters, its style, the incorrect one's style]."""
    clusters = len(verdicts.benchmark.clusters)
    if verdicts.benchmark.items[0].record.n == 2:
        higher = verdicts.right & ~verdicts.tied
        beaten: np.ndarray = higher.T.reshape(verdicts.resamples, clusters, -1, round((len(higher) / clusters) ** 0.5))
        return beaten
    scores = np.concatenate(verdicts.totals, axis=1).reshape(verdicts.resamples, clusters, 2, -1)
    above: np.ndarray = scores[:, :, 0, :, None] > scores[:, :, 1, None, :]
    return above


def preference_graph(verdicts: Verdicts) -> Figures:
    """Score IF-RewardBench (metrics/analysis_overall_assessment.py): the fraction of a row's pairs whose better response scores higher.

    `kendall`: (concordant - discordant) / sqrt(decided x all), 0 if no pair is decided; ties and missing verdicts are undecided.
    """
    benchmark = verdicts.benchmark
    higher, lower, count = (np.zeros((len(benchmark.items), verdicts.resamples)) for _ in range(3))
    for index, (item, totals) in enumerate(zip(benchmark.items, verdicts.totals)):
        better, worse = np.array(item.pairs).T
        higher[index] = (totals[:, better] > totals[:, worse]).sum(axis=1)
        lower[index] = (totals[:, better] < totals[:, worse]).sum(axis=1)
        count[index] = len(better)
    kendall = (higher - lower) / np.maximum(np.sqrt((higher + lower) * count), 1)
    return {OVERALL: verdicts.mean(higher / count), "kendall": verdicts.mean(kendall)}


def judgebench(verdicts: Verdicts) -> Figures:
    """Score JudgeBench (utils/metrics.py): over the two orders, more verdicts must be right than wrong; ties and none are neither.

    `both_right`: correct in both orders; `agreement`: the same verdict in both, where a tie is a verdict.
    """
    right, decided = verdicts.right & ~verdicts.tied, (verdicts.pick != NO_VERDICT) & ~verdicts.tied
    balance = verdicts.mean(right.astype(np.float64) - (decided & ~right))
    return {
        OVERALL: (balance > 0).astype(np.float64),
        "both_right": verdicts.every(right),
        "agreement": verdicts.agree(np.where(verdicts.tied, 2, verdicts.pick)),
    }


def pandalm(verdicts: Verdicts) -> Figures:
    """Score PandaLM (data/compute_metrics.py): agreement with the annotators' majority on first, second or tie."""
    truth, predicted = _classes(verdicts)
    return {OVERALL: (predicted == truth).astype(np.float64)}


def pandalm_macro(verdicts: Verdicts) -> Figures:
    """Return macro-averaged precision, recall and F1 over tie, first and second, [resamples]; 0 / 0 is 0."""
    truth, predicted = _classes(verdicts)
    sums: dict[str, np.ndarray] = dict.fromkeys(("precision", "recall", "f1"), np.zeros(verdicts.resamples))
    for label in (0, 1, 2):
        hits = ((predicted == label) & (truth == label)).sum(axis=1)
        predictions, labels = (predicted == label).sum(axis=1), (truth == label).sum()
        # 2PR / (P + R) = 2 hits / (predictions + labels): both are 0 if there are no hits.
        for name, numerator, denominator in (
            ("precision", hits, predictions),
            ("recall", hits, labels),
            ("f1", 2 * hits, predictions + labels),
        ):
            sums[name] = sums[name] + numerator / np.maximum(denominator, 1)
    return {name: total / 3 for name, total in sums.items()}


def _classes(verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """Return (true classes [clusters], the judge's [resamples, clusters]): 0 tie, 1 first response, 2 second, or NO_VERDICT."""
    truth = np.array([0 if len(set(rewards)) == 1 else 1 + int(np.argmax(rewards)) for rewards in _rewards(verdicts)])
    predicted = np.where(verdicts.tied, 0, np.where(verdicts.pick == NO_VERDICT, NO_VERDICT, verdicts.pick + 1))
    return truth, predicted.T


def _rewards(verdicts: Verdicts) -> list[tuple[float, ...]]:
    return [item.record.rewards for item in verdicts.benchmark.items]


TIES = "Ties"
"""The Reward Bench 2 subset that is scored by margins."""


def rewardbench2(verdicts: Verdicts) -> Figures:
    """Score Reward Bench 2 (arXiv 2506.01937; rewardbench/utils.py): the best of four or, in Ties, `ties_value` of each prompt.

    A Ties cluster holds the rows `ref:N` (one correct response) and `tied:N` (several) of prompt N, as one item each or one per response.
    """
    benchmark = verdicts.benchmark
    values = verdicts.mean(verdicts.right)
    for index, cluster in enumerate(benchmark.clusters):
        if cluster.subset == TIES:
            rows: dict[str, list[int]] = {"ref": [], "tied": []}
            for item in range(benchmark.starts[index], len(benchmark.items)):
                if benchmark.items[item].cluster != index:
                    break
                rows[benchmark.items[item].record.id.partition(":")[0]].append(item)
            values[:, index] = ties_value(*(_joined(verdicts, rows[kind]) for kind in ("ref", "tied")))
    return {OVERALL: values}


def _joined(verdicts: Verdicts, items: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a row's items concatenated: (totals [resamples, n], whether correct [n])."""
    right = np.concatenate([np.array(verdicts.benchmark.items[item].record.rewards) == 1 for item in items])
    return np.concatenate([verdicts.totals[item] for item in items], axis=1), right


def ties_value(ref: tuple[np.ndarray, np.ndarray], tied: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the Ties score of one prompt, float64 [resamples] in [-0.01, 1.01].

    0.3 if every correct response of the tied row outscores every incorrect one, 0.3 for the same in the ref row, 0.2 if the tied row's
    margin between correct and incorrect exceeds the spread of its correct responses, 0.2 if the smaller of the two rows' margins does,
    and 0.01 times the tie-breaking term tanh(smaller margin / spread - 1).

    Args:
        ref, tied: (totals float64 [resamples, n], which responses are correct [n]); totals with NaN mean no verdict.
    """
    margin, _ = _margin(*ref)
    tied_margin, spread = _margin(*tied)
    smaller = np.minimum(margin, tied_margin)
    with np.errstate(divide="ignore", invalid="ignore"):
        term = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    # Comparisons with NaN are False, so a missing verdict scores 0 plus the term's minimum.
    term = np.where(np.isnan(smaller), -1.0, term)
    correct = 0.3 * (tied_margin > 0) + 0.3 * (margin > 0)
    value: np.ndarray = correct + 0.2 * (tied_margin > spread) + 0.2 * (smaller > spread) + 0.01 * term
    return value


def _margin(totals: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (lowest correct - highest incorrect, highest correct - lowest correct), each [resamples]."""
    lowest = totals[:, right].min(axis=1)
    missing = np.where(np.isnan(totals).any(axis=1), np.nan, 0.0)
    return lowest - totals[:, ~right].max(axis=1) + missing, totals[:, right].max(axis=1) - lowest + missing
