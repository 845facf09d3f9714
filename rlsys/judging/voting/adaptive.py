"""Adaptive number of samples: an anytime-valid sequential test that stops when the winner is clear.

Samples are assumed to be independent. Each has one vote, split among its winners (`strategies.winners`). For responses i and j let
d = vote(i) - vote(j), in [-1, 1].
To test the hypothesis E[d] <= 0, bet a share b in [0, 1] of a capital on every sample: the capital, the product of 1 + b d, is a
supermartingale, and so is its mean over any prior of b. By Ville's inequality, the probability that it ever reaches c is at most 1 / c
(testing by betting: Waudby-Smith and Ramdas, arXiv 2010.09686). As 1 + b d >= (1 + b)^d for d >= 0 and (1 - b)^-d for d < 0, the sums a of
the positive and z of the negative parts of d suffice. With b = 2 q - 1 and Jeffreys' prior of q, truncated to [1/2, 1], the capital is at
least

    2^(a + z) * integral of q^a (1 - q)^z over the prior = 2^(1 + a + z) B(a + 1/2, z + 1/2) I_1/2(z + 1/2, a + 1/2) / pi,

where B is the beta function and I the regularised incomplete beta function: `e_value`. Sampling stops once the e-values of a response
against each of the n - 1 others reach (n - 1) / error_rate. To stop for a wrong response, its e-value against the likeliest winner must
reach that bound; as there are n - 1 wrong responses, the probability is at most error_rate, however often the test is evaluated.
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
    """Return the natural logarithm of the e-value that one response wins more often than another, elementwise (see the module docstring).

    Args:
        wins, losses: sums of the positive and of the negative parts of d over the samples so far; at least 0.
    """
    a, z = np.asarray(wins) + 0.5, np.asarray(losses) + 0.5
    with np.errstate(divide="ignore"):  # with many losses I underflows to 0, and the result is -inf
        value: Floats = (a + z) * np.log(2.0) + betaln(a, z) + np.log(betainc(z, a, 0.5)) - np.log(np.pi)
    return value


@strategy("adaptive", source="Ville's inequality, arXiv 2010.09686; the idea: adaptive-consistency, arXiv 2305.11860", counts="winners")
def adaptive(samples: Samples, options: Options) -> Outcome:
    """Apply `majority` to the samples up to the first decisive round; to all k if there is none.

    The probability of stopping early for a response whose expected share of the vote is not the highest is at most `error_rate`.
    Samples count in the order in which they were generated.
    """
    votes, parsed = winners(samples.scores), samples.parsed
    k = parsed.shape[-1]
    looks = np.append(np.arange(options.round_size, k, options.round_size), k)
    stop = _decisive(votes, looks, options.error_rate)
    stop[..., -1] = True
    used = np.arange(k) < looks[stop.argmax(axis=-1)][..., None]
    return replace(added(1.0, votes, parsed & used), used=used)


def is_decided(samples: Samples, options: Options) -> Bools:
    """[...]: whether `adaptive` stops within the samples so far; to be called after each round of sampling."""
    looks = np.arange(options.round_size, samples.scores.shape[-2] + 1, options.round_size)
    return np.asarray(_decisive(winners(samples.scores), looks, options.error_rate).any(axis=-1))


def _decisive(votes: Floats, looks: NDArray[np.int64], error_rate: float) -> Bools:
    """[..., looks]: whether the first `looks` of the votes [..., k, n] are decisive for any response."""
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
