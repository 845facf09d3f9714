"""Spend samples until the winner is clear: a sequential test that may be looked at as often as one likes.

Samples are taken to be independent draws. Each has one vote, split among its winners (`strategies.winners`). For responses i and j let
d = vote(i) - vote(j), in [-1, 1].
Against the hypothesis E[d] <= 0 one can bet a share b in [0, 1] of one's capital on every sample: the capital, the product of
1 + b d, is a supermartingale, and so is its mean over any prior of b. By Ville's inequality it ever reaches c with probability at
most 1 / c (testing by betting: Waudby-Smith and Ramdas, arXiv 2010.09686). As 1 + b d >= (1 + b)^d for d >= 0 and (1 - b)^-d for
d < 0, the sums a of the positive and z of the negative parts of d suffice, and with b = 2 q - 1 and Jeffreys' prior of q, cut to
[1/2, 1], the capital is at least

    2^(a + z) * integral of q^a (1 - q)^z over the prior = 2^(1 + a + z) B(a + 1/2, z + 1/2) I_1/2(z + 1/2, a + 1/2) / pi,

B and I the beta function and the regularised incomplete one: `e_value`. A response is decided on once its e-value against each of the
n - 1 others reaches (n - 1) / error_rate. To stop for a wrong one, it must have done so against the likeliest winner, and there are
n - 1 wrong ones, so the probability of that is at most error_rate, however many looks there are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from rlsys.judging.voting.samples import Bools, Floats, Samples
from rlsys.judging.voting.strategies import added, winners
from rlsys.judging.voting.strategy import Options, Outcome, strategy


def e_value(wins: Floats, losses: Floats) -> Floats:
    """Natural logarithm of the evidence that a response wins more often than another: the formula above, elementwise.

    Args:
        wins, losses: at least 0; sums of the positive and of the negative parts of d over the samples so far.
    """
    a, z = np.asarray(wins) + 0.5, np.asarray(losses) + 0.5
    with np.errstate(divide="ignore"):  # far on the losing side I underflows to 0: no evidence, -inf
        return (a + z) * np.log(2.0) + betaln(a, z) + np.log(betainc(z, a, 0.5)) - np.log(np.pi)


@strategy("adaptive", source="Ville's inequality, arXiv 2010.09686; the idea: adaptive-consistency, arXiv 2305.11860", counts="winners")
def adaptive(samples: Samples, options: Options) -> Outcome:
    """`majority` over the first rounds of samples, up to the one that decides it; all k where none does.

    The probability of stopping early for a response whose expected share of the vote is not the highest is at most `error_rate`.
    The samples count in the order in which they were drawn.
    """
    votes, parsed = winners(samples.scores), samples.parsed
    k = parsed.shape[-1]
    looks = np.append(np.arange(options.round_size, k, options.round_size), k)
    stop = _decisive(votes, looks, options.error_rate)
    stop[..., -1] = True
    used = np.arange(k) < looks[stop.argmax(axis=-1)][..., None]
    return replace(added(1.0, votes, parsed & used), used=used)


def is_decided(samples: Samples, options: Options) -> Bools:
    """[...]: whether `adaptive` stops within the samples drawn so far; for the one who draws them, to ask after each round."""
    looks = np.arange(options.round_size, samples.scores.shape[-2] + 1, options.round_size)
    return _decisive(winners(samples.scores), looks, options.error_rate).any(axis=-1)


def _decisive(votes: Floats, looks: NDArray[np.int64], error_rate: float) -> Bools:
    """[..., looks]: whether the first so many of the votes [..., k, n] decide for any response."""
    n = votes.shape[-1]
    decisive = np.zeros((*votes.shape[:-2], looks.size), bool)
    for response in range(n):
        d = votes[..., response, None] - votes
        wins = np.cumsum(np.maximum(d, 0.0), axis=-2)[..., looks - 1, :]
        losses = np.cumsum(np.maximum(-d, 0.0), axis=-2)[..., looks - 1, :]
        evidence = np.delete(e_value(wins, losses), response, axis=-1)
        voted = np.cumsum(votes[..., response], axis=-1)[..., looks - 1] > 0
        decisive |= voted & (evidence >= np.log(max(n - 1, 1) / error_rate)).all(axis=-1)
    return decisive
