"""The strategies that look at all samples at once. `added`, `weighted` and `winners` are what they share.

With one exception, none depends on the order of the samples: where two of them tie for a place, they share it. The exception is
`synthesis`, whose last sample is not like the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import rankdata

from rlsys.judging.voting.samples import Bools, Floats, Samples
from rlsys.judging.voting.strategy import Options, Outcome, strategy
from rlsys.judging.voting.verdict import margin


def weighted(weights: Floats | float, values: Floats, parsed: Bools) -> Floats:
    """[..., n]: sum over the parsed samples of weights [..., k] times values [..., k, n]; NaN where none parsed."""
    weights = np.where(parsed, weights, 0.0)
    totals = np.einsum("...k,...kn->...n", weights, np.where(parsed[..., None], values, 0.0))
    return np.where(parsed.any(axis=-1, keepdims=True), totals, np.nan)


def added(weights: Floats | float, values: Floats, parsed: Bools) -> Outcome:
    """The outcome whose totals are `weighted`: all samples spent, no abstention."""
    totals = weighted(weights, values, parsed)
    weight = np.where(parsed, weights, 0.0).sum(axis=-1)
    return Outcome(totals, np.ones(parsed.shape, bool), np.zeros(parsed.shape[:-1], bool), weight)


def winners(scores: Floats) -> Floats:
    """[..., k, n]: each sample's one vote for its highest score, split evenly in a tie; zeros where the sample did not parse."""
    top = scores == scores.max(axis=-1, keepdims=True)
    return top / np.maximum(top.sum(axis=-1, keepdims=True), 1)


@strategy("vote", source="arXiv 2504.02495, Eq. 14")
def vote(samples: Samples, options: Options) -> Outcome:
    """Sum of the scores."""
    return added(1.0, samples.scores, samples.parsed)


@strategy("mean", source="arXiv 2504.02495, Eq. 14, divided by the parsed samples")
def mean(samples: Samples, options: Options) -> Floats:
    """Mean of the scores: wins as `vote` does, and compares between rows of which different numbers of samples parsed."""
    return added(1.0, samples.scores, samples.parsed).levels


@strategy("majority", source="self-consistency, arXiv 2203.11171", counts="winners")
def majority(samples: Samples, options: Options) -> Outcome:
    """Number of samples that each response won; a tie within a sample splits its vote."""
    return added(1.0, winners(samples.scores), samples.parsed)


@strategy("meta", source="arXiv 2504.02495, voting guided by a meta RM", needs=("meta_reward",))
def meta(samples: Samples, options: Options) -> Outcome:
    """Sum of the scores of the k_meta samples with the highest meta reward.

    A sample that did not parse cannot be kept; where fewer than k_meta parsed, all of those are. Samples of equal meta reward at the
    cut share the places that are left, which is the mean over all ways to break the tie.

    Raises:
        ValueError: k_meta > k.
    """
    parsed, k = samples.parsed, samples.scores.shape[-2]
    keep = max(1, k // 2) if options.k_meta is None else options.k_meta
    if keep > k:
        raise ValueError(f"k_meta = {keep}: expected at most k = {k}.")
    reward = np.where(parsed, samples.meta_reward, -np.inf)
    cut = np.partition(reward, k - keep, axis=-1)[..., k - keep, None]
    above, level = reward > cut, reward == cut
    share = (keep - above.sum(axis=-1, keepdims=True)) / level.sum(axis=-1, keepdims=True)
    return added(above + level * share, samples.scores, parsed)


@strategy("meta_weighted", source="as meta, with weights for the cut", needs=("meta_reward",))
def meta_weighted(samples: Samples, options: Options) -> Floats:
    """Mean of the scores, each sample weighted by sigmoid(meta reward).

    The meta RM is trained by binary cross-entropy on whether a judgement is correct (Eq. 10), so its sigmoid is the probability of
    that. A softmax would use the odds instead, which one overconfident sample of many can carry alone.
    """
    weights = _relative(-np.logaddexp(0.0, -_known(samples.meta_reward, samples.parsed)), samples.parsed)
    return weighted(weights, samples.scores, samples.parsed) / np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)


@strategy("rpc", source="perplexity consistency and reasoning pruning, arXiv 2502.00511", needs=("logprob", "tokens"), counts="winners")
def rpc(samples: Samples, options: Options) -> Floats:
    """Share of the probability, pruned, of the samples that each response won: in [0, 1], sum 1.

    The probability of a sample is 1 / its perplexity, exp(logprob / tokens), as in the authors' code: that of the whole text would
    leave the choice to the shortest. The answers that samples agree on are the winners: score vectors hardly ever repeat.

    Pruned is a sample that belongs to the low class and lies below the mean probability. The paper finds the classes by a mixture of
    two Weibull distributions, five parameters that a handful of samples does not determine; here they are the split with the greatest
    variance between classes (Otsu, 1979), which is exact for any k.
    """
    parsed = samples.parsed
    logprob = _known(samples.logprob, parsed) / np.maximum(_known(samples.tokens, parsed), 1.0)
    probability = _relative(logprob, parsed)
    weights = np.where(_low(probability, parsed), 0.0, probability)
    return weighted(weights, winners(samples.scores), parsed) / np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)


@strategy("borda", source="self-certainty with Borda voting, arXiv 2502.18581", needs=("certainty",), counts="winners")
def borda(samples: Samples, options: Options) -> Outcome:
    """Votes for each sample's winner: the sample of rank r by self-certainty among the N that parsed has (N - r + 1)^power of them.

    Samples of equal certainty share the votes of their ranks.
    """
    parsed, k = samples.parsed, samples.scores.shape[-2]
    certainty = np.where(parsed, samples.certainty, -np.inf)
    failed = (~parsed).sum(axis=-1, keepdims=True)
    # Counted from below, rank r of N is place N - r + 1; equal samples hold the places below + 1 .. up_to.
    below = np.maximum(rankdata(certainty, method="min", axis=-1).astype(int) - 1 - failed, 0)
    up_to = np.maximum(rankdata(certainty, method="max", axis=-1).astype(int) - failed, 1)
    votes = np.concatenate([[0.0], np.cumsum(np.arange(1.0, k + 1) ** options.power)])
    return added((votes[up_to] - votes[below]) / np.maximum(up_to - below, 1), winners(samples.scores), parsed)


@strategy("abstain", source="arXiv 2504.02495, Eq. 14; a reject option as in arXiv 1705.08500")
def abstain(samples: Samples, options: Options) -> Outcome:
    """`vote`, but no verdict where the winner's mean score leads the runner-up's by less than `margin` points."""
    outcome = vote(samples, options)
    return replace(outcome, abstained=margin(outcome.levels) < options.margin)


@strategy("synthesis", source="generative self-aggregation, arXiv 2503.04104")
def synthesis(samples: Samples, options: Options) -> Floats:
    """The scores of the last sample, which the model wrote with the others before it: it replaces their vote.

    A synthesis that did not parse is a parse failure, whatever the others said.
    """
    return samples.scores[..., -1, :]


def _known(values: Floats, parsed: Bools) -> Floats:
    """`values` with a harmless number where the sample did not parse, so that arithmetic on it is quiet."""
    return np.where(parsed, values, 0.0)


def _relative(logs: Floats, parsed: Bools) -> Floats:
    """[..., k]: exp(logs), scaled so that each row's largest is 1 and none underflows for want of scale; 0 where not parsed."""
    logs = np.where(parsed, logs, -np.inf)
    highest = logs.max(axis=-1, keepdims=True)
    return np.exp(logs - np.where(np.isneginf(highest), 0.0, highest))


def _low(values: Floats, parsed: Bools) -> Bools:
    """[..., k]: below the mean, and in the lower of the two classes of values >= 0 that Otsu's method makes of the parsed ones."""
    k = values.shape[-1]
    number = parsed.sum(axis=-1, keepdims=True)
    ordered = np.sort(np.where(parsed, values, np.inf), axis=-1)
    sums = np.cumsum(np.where(np.isinf(ordered), 0.0, ordered), axis=-1)
    size = np.arange(1, k + 1)  # of the lower class
    gap = (sums[..., -1:] - sums) / np.maximum(number - size, 1) - sums / size
    between = np.where(size < number, size * (number - size) * gap**2, 0.0)
    upper = np.minimum(between.argmax(axis=-1, keepdims=True) + 1, k - 1)
    cut = np.take_along_axis(ordered, upper, axis=-1)
    return parsed & (values < cut) & (values < sums[..., -1:] / np.maximum(number, 1))
