"""Strategies that aggregate a fixed number of samples.

All but one are independent of the order of the samples: samples that tie for a rank share it. The exception is `synthesis`, whose last
sample was generated with the others in its prompt.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from rlsys.judging.voting.samples import Bools, Floats, Samples
from rlsys.judging.voting.strategy import Options, Outcome, strategy
from rlsys.judging.voting.verdict import margin


def weighted(weights: Floats | float, values: Floats, parsed: Bools) -> Floats:
    """[..., n]: sum over the parsed samples of weights [..., k] times values [..., k, n]; NaN if none parsed."""
    weights = np.where(parsed, weights, 0.0)
    totals = np.einsum("...k,...kn->...n", weights, np.where(parsed[..., None], values, 0.0))
    return np.where(parsed.any(axis=-1, keepdims=True), totals, np.nan)


def added(weights: Floats | float, values: Floats, parsed: Bools) -> Outcome:
    """Return the outcome with the totals of `weighted`: all samples used, no abstention."""
    totals = weighted(weights, values, parsed)
    weight = np.where(parsed, weights, 0.0).sum(axis=-1)
    return Outcome(totals, np.ones(parsed.shape, bool), np.zeros(parsed.shape[:-1], bool), weight)


def winners(scores: Floats) -> Floats:
    """[..., k, n]: each sample's vote for its highest score, split evenly in a tie; zeros for parse failures."""
    top: Bools = scores == scores.max(axis=-1, keepdims=True)
    tied: Floats = np.maximum(top.sum(axis=-1, keepdims=True), 1)
    return top / tied


@strategy("vote", source="arXiv 2504.02495, Eq. 14")
def vote(samples: Samples, options: Options) -> Outcome:
    """Sum the scores."""
    return added(1.0, samples.scores, samples.parsed)


@strategy("mean", source="arXiv 2504.02495, Eq. 14, divided by the parsed samples")
def mean(samples: Samples, options: Options) -> Floats:
    """Average the scores: the winner of `vote`, with totals that are comparable between rows with different numbers of parsed samples."""
    return added(1.0, samples.scores, samples.parsed).levels


@strategy("majority", source="self-consistency, arXiv 2203.11171", counts="winners")
def majority(samples: Samples, options: Options) -> Outcome:
    """Count the samples that each response won; a tie within a sample splits its vote."""
    return added(1.0, winners(samples.scores), samples.parsed)


@strategy("meta", source="arXiv 2504.02495, voting guided by a meta RM", needs=("meta_reward",))
def meta(samples: Samples, options: Options) -> Outcome:
    """Sum the scores of the k_meta samples with the highest meta reward.

    Parse failures are never kept; if fewer than k_meta samples parsed, all of those are kept. Samples of equal meta reward at the cutoff
    share the remaining places, which is the mean over all ways to break the tie.

    Raises:
        ValueError: k_meta > k.
    """
    parsed, k = samples.parsed, samples.scores.shape[-2]
    keep = max(1, k // 2) if options.k_meta is None else options.k_meta
    if keep > k:
        raise ValueError(f"k_meta = {keep}: expected at most k = {k}.")
    reward = _filled(samples.meta_reward, parsed, -np.inf)
    cut = np.partition(reward, k - keep, axis=-1)[..., k - keep, None]
    above, level = reward > cut, reward == cut
    share = (keep - above.sum(axis=-1, keepdims=True)) / level.sum(axis=-1, keepdims=True)
    return added(above + level * share, samples.scores, parsed)


@strategy("meta_weighted", source="as meta, with weights for the cut", needs=("meta_reward",))
def meta_weighted(samples: Samples, options: Options) -> Floats:
    """Average the scores, each sample weighted by sigmoid(meta reward).

    The meta RM is trained with binary cross-entropy on whether a judgement is correct (Eq. 10), so its sigmoid is that probability. A
    softmax would weight by odds instead, so that a single overconfident sample could dominate.
    """
    weights = _normalised(-np.logaddexp(0.0, -_filled(samples.meta_reward, samples.parsed)), samples.parsed)
    return weighted(weights, samples.scores, samples.parsed) / _sum(weights)


@strategy("rpc", source="perplexity consistency and reasoning pruning, arXiv 2502.00511", needs=("logprob", "tokens"), counts="winners")
def rpc(samples: Samples, options: Options) -> Floats:
    """Return each response's share, in [0, 1], of the probability of the samples that it won, after pruning.

    A sample's probability is 1 / its perplexity, exp(logprob / tokens), as in the authors' code: the probability of the whole text would
    favour the shortest. Samples agree if they have the same winner, as score vectors rarely repeat.

    A sample is pruned if it belongs to the low class and is below the mean probability. The paper separates the classes by a mixture of two
    Weibull distributions, whose five parameters cannot be estimated from few samples. Here the split maximises the variance between classes
    (Otsu, 1979), which is exact for any k.
    """
    parsed = samples.parsed
    logprob = _filled(samples.logprob, parsed) / np.maximum(_filled(samples.tokens, parsed), 1.0)
    probability = _normalised(logprob, parsed)
    weights = np.where(_low(probability, parsed), 0.0, probability)
    return weighted(weights, winners(samples.scores), parsed) / _sum(weights)


@strategy("borda", source="self-certainty with Borda voting, arXiv 2502.18581", needs=("certainty",), counts="winners")
def borda(samples: Samples, options: Options) -> Outcome:
    """Count weighted votes: of the N samples that parsed, the one of rank r by self-certainty has (N - r + 1)^power votes for its winner.

    Samples of equal certainty share the votes of their ranks.
    """
    parsed, k = samples.parsed, samples.scores.shape[-2]
    certainty = _filled(samples.certainty, parsed, -np.inf)
    failed = (~parsed).sum(axis=-1, keepdims=True)
    # From below, rank r of N is place N - r + 1; equal samples share the places below + 1 .. up_to.
    below = np.maximum(rankdata(certainty, method="min", axis=-1).astype(int) - 1 - failed, 0)
    up_to = np.maximum(rankdata(certainty, method="max", axis=-1).astype(int) - failed, 1)
    votes = np.concatenate([[0.0], np.cumsum(np.arange(1.0, k + 1) ** options.power)])
    return added((votes[up_to] - votes[below]) / np.maximum(up_to - below, 1), winners(samples.scores), parsed)


@strategy("abstain", source="arXiv 2504.02495, Eq. 14; a reject option as in arXiv 1705.08500")
def abstain(samples: Samples, options: Options) -> Outcome:
    """Apply `vote`, but abstain if the winner's mean score leads the runner-up's by less than `margin` points."""
    outcome = vote(samples, options)
    return replace(outcome, abstained=margin(outcome.levels) < options.margin)


@strategy("synthesis", source="generative self-aggregation, arXiv 2503.04104")
def synthesis(samples: Samples, options: Options) -> Floats:
    """Return the scores of the last sample, which was generated with the others in its prompt and replaces their vote.

    If the last sample is a parse failure, so is the result, whatever the others scored.
    """
    return samples.scores[..., -1, :]


def _filled(values: Floats | None, parsed: Bools, fill: float = 0.0) -> Floats:
    """Replace the values of parse failures, which may be NaN, by `fill`."""
    assert values is not None  # `Strategy` checks `needs`
    return np.where(parsed, values, fill)


def _sum(weights: Floats) -> Floats:
    """[..., 1]: the sum of the weights, or 1 if it is less (no sample parsed)."""
    total: Floats = weights.sum(axis=-1, keepdims=True)
    return np.maximum(total, 1.0)


def _normalised(logs: Floats, parsed: Bools) -> Floats:
    """[..., k]: exp(logs), scaled so that each row's largest value is 1, which avoids underflow; 0 for parse failures."""
    logs = np.where(parsed, logs, -np.inf)
    highest: Floats = logs.max(axis=-1, keepdims=True)
    scaled: Floats = logs - np.where(np.isneginf(highest), 0.0, highest)
    return np.exp(scaled)


def _low(values: Floats, parsed: Bools) -> Bools:
    """[..., k]: whether a parsed value is below the mean and in the lower class of Otsu's method; values are >= 0."""
    k = values.shape[-1]
    number = parsed.sum(axis=-1, keepdims=True)
    ordered = np.sort(np.where(parsed, values, np.inf), axis=-1)
    sums = np.cumsum(np.where(np.isinf(ordered), 0.0, ordered), axis=-1)
    size = np.arange(1, k + 1)  # of the lower class
    gap = (sums[..., -1:] - sums) / np.maximum(number - size, 1) - sums / size
    between = np.where(size < number, size * (number - size) * gap**2, 0.0)
    upper = np.minimum(between.argmax(axis=-1, keepdims=True) + 1, k - 1)
    cut: Floats = np.take_along_axis(ordered, upper, axis=-1)
    mean: Floats = sums[..., -1:] / np.maximum(number, 1)
    return parsed & (values < cut) & (values < mean)
