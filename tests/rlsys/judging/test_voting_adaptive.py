"""Adaptive sampling: e-values by numerical integration, the stopping rule by slow loops, error rates exactly and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from rlsys.judging import voting
from rlsys.judging.voting import Options, Samples, e_value

NAN = float("nan")


def integrated(wins: float, losses: float) -> float:
    """The capital of the mixture, by quadrature. With q = sin(t)^2, Jeffreys' prior of q cut to [1/2, 1] is uniform in t."""

    def capital(t: float) -> float:
        return (2 * math.sin(t) ** 2) ** wins * (2 * math.cos(t) ** 2) ** losses

    return quad(capital, math.pi / 4, math.pi / 2, epsabs=0, epsrel=1e-10)[0] / (math.pi / 4)


@given(st.integers(0, 80), st.integers(0, 80))
def test_e_value_is_the_mixtures_capital(quarter_wins: int, quarter_losses: int) -> None:
    wins, losses = quarter_wins / 4, quarter_losses / 4
    assert e_value(wins, losses) == pytest.approx(math.log(integrated(wins, losses)), rel=1e-8, abs=1e-8)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_capital_is_a_supermartingale(wins: int, losses: int) -> None:
    """The step of a supermartingale: at odds of 1/2 the expected capital after one more sample is what it was."""
    after = (math.exp(e_value(wins + 1, losses)) + math.exp(e_value(wins, losses + 1))) / 2
    assert after == pytest.approx(math.exp(e_value(wins, losses)), rel=1e-9)


@given(st.floats(0, 1), st.floats(-1, 1))
def test_fractions_of_a_vote_are_worth_no_more_than_the_bet_on_them(share: float, d: float) -> None:
    assert (1 + share) ** max(d, 0) * (1 - share) ** max(-d, 0) <= 1 + share * d + 1e-12


def test_many_losses_are_no_evidence() -> None:
    assert e_value(0.0, 5000.0) < -100  # and no warning of an underflow: those are errors here


# --- when it stops --------------------------------------------------------------------------------------------------


def slow_spent(scores: list[list[float]], options: Options) -> int:
    """Compute the number of samples used, round by round and response by response."""
    k, n = len(scores), len(scores[0])
    for look in range(options.round_size, k, options.round_size):
        shares = []
        for row in scores[:look]:
            top = [i for i in range(n) if row[i] == max(row)] if not math.isnan(row[0]) else []
            shares.append([1 / len(top) if i in top else 0.0 for i in range(n)])
        for i in range(n):
            against = []
            for j in range(n):
                if j != i:
                    d = [share[i] - share[j] for share in shares]
                    against.append(integrated(sum(x for x in d if x > 0), -sum(x for x in d if x < 0)))
            if sum(share[i] for share in shares) > 0 and all(e >= (n - 1) / options.error_rate for e in against):
                return look
    return k


@given(st.data())
def test_adaptive_uses_as_many_samples_as_the_definition(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 14))
    vector = st.lists(st.sampled_from([1.0, 1.0, 2.0]), min_size=n, max_size=n) | st.just([2.0] + [1.0] * (n - 1)) | st.just([NAN] * n)
    scores = data.draw(st.lists(vector, min_size=k, max_size=k))
    options = Options(error_rate=data.draw(st.sampled_from([0.05, 0.3])), round_size=data.draw(st.integers(1, 5)))
    outcome = voting.adaptive(Samples(np.array(scores)), options)
    spent = slow_spent(scores, options)
    assert outcome.used.tolist() == [sample < spent for sample in range(k)]
    np.testing.assert_array_equal(outcome.totals, voting.majority(Samples(np.array(scores[:spent]))).totals)


@given(st.data())
def test_checking_after_each_round_uses_the_same_samples_as_adaptive(data: st.DataObject) -> None:
    votes = data.draw(st.lists(st.sampled_from([[9.0, 2.0], [9.0, 2.0], [2.0, 9.0], [5.0, 5.0], [NAN, NAN]]), min_size=1, max_size=20))
    samples, options = Samples(np.array(votes)), Options(error_rate=0.2, round_size=data.draw(st.integers(1, 4)))
    drawn = 0
    while drawn < len(votes):
        drawn = min(drawn + options.round_size, len(votes))
        if voting.is_decided(voting.take(samples, np.arange(drawn)), options):
            break
    assert voting.adaptive(samples, options).used.sum() == drawn


def test_unanimous_samples_stop_after_six() -> None:
    """Worth 2^(1 + m) B(m + 1/2, 1/2) / pi less a little: 64 x 63/256 = 15.75 after five, 128 x 231/1024 = 28.9 after six; 20 is asked."""
    scores = np.tile([9.0, 2.0], (32, 1))
    assert voting.adaptive(Samples(scores), Options(error_rate=0.05, round_size=1)).used.sum() == 6
    assert voting.adaptive(Samples(scores), Options(error_rate=0.05, round_size=4)).used.sum() == 8


def test_more_rivals_require_more_evidence() -> None:
    """3 / 0.05 = 60 against each of three rivals: 256 x 429/2048 = 53.6 after seven samples, 512 x 6435/32768 = 100.5 after eight."""
    scores = np.tile([2.0, 9.0, 2.0, 2.0], (32, 1))
    assert voting.adaptive(Samples(scores), Options(error_rate=0.05, round_size=1)).used.sum() == 8


def test_parse_failures_count_as_used_and_do_not_vote() -> None:
    scores = np.tile([9.0, 2.0], (12, 1))
    scores[[0, 2, 4]] = NAN
    outcome = voting.adaptive(Samples(scores), Options(round_size=1))
    assert outcome.used.sum() == 9 and outcome.totals.tolist() == [6.0, 0.0]
    nothing = voting.adaptive(Samples(np.full((6, 2), NAN)))
    assert nothing.used.all() and np.isnan(nothing.totals).all()


# --- the stated error rate ------------------------------------------------------------------------------------------


def stopping_probabilities(p: float, error_rate: float, horizon: int) -> tuple[float, float, float]:
    """Exactly, looking after every sample: probability of stopping for the first of two responses, for the second, mean samples spent.

    p is the probability that a sample's winner is the first.
    """
    alive = np.zeros(horizon + 1)  # by wins of the first
    alive[0] = 1.0
    first = second = spent = 0.0
    for look in range(1, horizon + 1):
        spent += alive.sum()
        alive = np.concatenate([[0.0], alive[:-1]]) * p + alive * (1 - p)
        wins = np.arange(horizon + 1)
        reached = [e_value(a, np.maximum(look - a, 0)) >= np.log(1 / error_rate) for a in (wins, np.maximum(look - wins, 0))]
        first += alive[reached[0]].sum()
        second += alive[reached[1]].sum()
        alive[reached[0] | reached[1]] = 0.0
    return first, second, spent


@pytest.mark.parametrize("error_rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("p", [0.5, 0.49, 0.4, 0.2])
def test_the_error_rate_for_two_responses_is_bounded(p: float, error_rate: float) -> None:
    wrong, right, _ = stopping_probabilities(p, error_rate, horizon=1000)
    assert 0 < wrong <= error_rate
    assert right > wrong or p == 0.5


def test_the_error_bound_is_not_vacuous() -> None:
    """With equal chances and a thousand looks a good part of the permitted errors is used, where a test made for one look breaks."""
    wrong, _, _ = stopping_probabilities(0.5, 0.2, horizon=1000)
    assert wrong > 0.06


def test_a_clear_winner_costs_few_samples() -> None:
    wrong, right, spent = stopping_probabilities(0.9, 0.05, horizon=32)
    assert wrong > 0.9 and right < 0.001  # the first is the right one here
    assert spent < 12


def simulate(probabilities: list[float], ties: float, rows: int, k: int, seed: int) -> Samples:
    """Samples whose winner is drawn by `probabilities`; in a share of them, the winner and another response tie."""
    rng = np.random.default_rng(seed)
    n = len(probabilities)
    scores = np.ones((rows, k, n))
    winner = rng.choice(n, size=(rows, k), p=probabilities)
    np.put_along_axis(scores, winner[..., None], 2.0, axis=-1)
    partner = (winner + rng.integers(1, n, size=(rows, k))) % n
    tie = rng.random((rows, k)) < ties
    scores[tie, partner[tie]] = 2.0
    return Samples(scores)


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_the_error_rate_for_four_responses_is_bounded(ties: float) -> None:
    """The hardest case: the three others are almost as good as the winner."""
    outcome = voting.adaptive(simulate([0.2506, 0.2498, 0.2498, 0.2498], ties, 4000, 128, seed=1), Options(error_rate=0.2))
    stopped = ~outcome.used[:, -1]
    wrong = stopped & (outcome.totals.argmax(axis=-1) != 0)
    assert 0 < wrong.mean() <= 0.2


@pytest.mark.parametrize(("probabilities", "most"), [([0.9, 0.1], 0.4), ([0.85, 0.05, 0.05, 0.05], 0.55), ([0.6, 0.4], 0.97)])
def test_samples_are_saved_at_equal_accuracy(probabilities: list[float], most: float) -> None:
    samples = simulate(probabilities, 0.1, 4000, 32, seed=2)
    outcome, full = voting.adaptive(samples), voting.majority(samples)
    right, right_with_all = (result.totals.argmax(axis=-1) == 0 for result in (outcome, full))
    assert outcome.used.mean() < most
    assert right.mean() > right_with_all.mean() - 0.01
