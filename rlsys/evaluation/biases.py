"""Diagnostics beyond accuracy: position bias, length bias, parse failures and tokens. Pure functions over the samples of judged rows.

A row is a list of samples, each a mapping as written by `rlsys judge`: order (order[p]: index of the response shown at position p), scores
(by position, None after a parse failure), failure, tokens. Bias is measured on parsed samples of at least two responses. Responses
that tie for the highest score share the win. Fractions are None if there is nothing to average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from rlsys.documents.evaluation import LengthBias, OrderConsistency, ParseFailures, PositionBias, Tokens

Sample = Mapping[str, Any]
Rows = Sequence[Sequence[Sample]]


def position_bias(rows: Rows) -> PositionBias:
    """Measure which positions win."""
    wins: list[float] = []
    shown: list[int] = []
    expected = 0.0
    samples = _parsed(sample for row in rows for sample in row)
    for sample in samples:
        scores = np.asarray(sample["scores"])
        top = scores == scores.max()
        missing = len(scores) - len(wins)
        wins, shown = wins + [0.0] * missing, shown + [0] * missing
        for place, share in enumerate(top / top.sum()):
            wins[place] += float(share)
            shown[place] += 1
        expected += 1 / len(scores)
    places = [won / count for won, count in zip(wins, shown, strict=True)]
    return PositionBias(
        first=places[0] if places else None,
        first_expected=expected / len(samples) if samples else None,
        places=places,
        n=len(samples),
    )


def order_consistency(rows: Rows) -> OrderConsistency:
    """Measure how often two samples of a row agree: the same response, or the same set of tied responses, has the highest score."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        samples = _parsed(row)
        orders = [tuple(sample["order"]) for sample in samples]
        winners = [_winners(sample) for sample in samples]
        pairs: dict[bool, list[bool]] = {True: [], False: []}
        for i in range(len(samples)):
            for j in range(i):
                pairs[orders[i] == orders[j]].append(winners[i] == winners[j])
        for same, agreements in pairs.items():
            if agreements:
                shares[same].append(sum(agreements) / len(agreements))
    return OrderConsistency(other_order=_mean(shares[False]), same_order=_mean(shares[True]), rows=len(shares[False]))


def length_bias(rows: Rows, responses: Sequence[Sequence[str]], best: Sequence[int | None] | None = None) -> LengthBias:
    """Measure whether longer responses are preferred; the correlation is over all pairs of responses in all samples.

    Args:
        responses: each row's texts, in the record's own order.
        best: each row's best response by ground truth (None: unknown); required for `longest_is_best`.
    """
    won: list[float] = []
    deserved: list[float] = []
    expected: list[float] = []
    gains: list[float] = []
    growths: list[float] = []
    for index, row in enumerate(rows):
        lengths = np.array([len(text) for text in responses[index]], dtype=np.float64)
        logs = np.log(np.maximum(lengths, 1))  # a response may be empty
        longest = (lengths == lengths.max()) / (lengths == lengths.max()).sum()
        for sample in _parsed(row):
            scores = np.empty(len(lengths))
            scores[list(sample["order"])] = sample["scores"]
            top = scores == scores.max()
            won.append(float(longest @ top / top.sum()))
            expected.append(1 / len(scores))
            if best is not None and best[index] is not None:
                deserved.append(float(longest[best[index]]))
            first, second = np.triu_indices(len(scores), k=1)
            gains.extend(scores[first] - scores[second])
            growths.extend(logs[first] - logs[second])
    varied = len(set(gains)) > 1 and len(set(growths)) > 1
    return LengthBias(
        longest_wins=_mean(won),
        longest_expected=_mean(expected),
        longest_is_best=_mean(deserved),
        correlation=float(spearmanr(gains, growths).statistic) if varied else None,
        n=len(won),
    )


def parse_failures(rows: Rows) -> ParseFailures:
    """Count parse failures, the most frequent reason first."""
    samples = [sample for row in rows for sample in row]
    failed = [sample for sample in samples if sample["scores"] is None]
    reasons = Counter(str(sample.get("failure") or "unknown") for sample in failed)
    cut_off = sum(bool(sample.get("truncated")) for sample in failed)
    return ParseFailures(samples=len(samples), failed=len(failed), cut_off=cut_off, reasons=dict(reasons.most_common()))


def tokens_spent(rows: Rows) -> Tokens:
    """Count generated tokens, including parse failures."""
    counts = [[sample["tokens"] for sample in row if sample.get("tokens") is not None] for row in rows]
    sums = [float(sum(row)) for row in counts if row]
    return Tokens(
        total=int(sum(sums)),
        per_row=_mean(sums),
        per_sample=_mean([float(count) for row in counts for count in row]),
    )


def _parsed(samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample["scores"] is not None and len(sample["scores"]) > 1]


def _winners(sample: Sample) -> frozenset[int]:
    """Return the responses with the highest score, as indices in the record's own order."""
    return frozenset(response for response, score in zip(sample["order"], sample["scores"], strict=True) if score == max(sample["scores"]))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
