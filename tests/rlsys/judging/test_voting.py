"""Strategies: each against its definition as slow loops, and properties of all of them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlsys.judging import voting
from rlsys.judging.voting import STRATEGIES, Options, Samples, subsets, take, tied
from rlsys.judging.voting.strategies import _low

NAN = float("nan")
BUILT_IN = tuple(STRATEGIES)
ORDER_FREE = [name for name in BUILT_IN if name not in ("adaptive", "synthesis")]


SCORES, FIFTHS, EXPONENTS = st.integers(1, 10), st.integers(0, 4), st.integers(0, 6)
EIGHTHS, HALVES, CERTAINTIES = st.integers(0, 20), st.integers(-10, 10), st.integers(0, 4)


@st.composite
def rows(draw, count: int = 1, min_k: int = 1, parsed: bool = False) -> Samples:
    """Generate samples [count, k, n] with all fields known and frequent ties. Powers of two keep logprob / tokens exact."""
    k, n = draw(st.integers(min_k, 5)), draw(st.integers(1, 4))

    def each(values: st.SearchStrategy, *shape: int) -> np.ndarray:
        size = math.prod(shape)
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=float).reshape(shape)

    scores = each(SCORES, count, k, n)
    if not parsed:
        scores[each(FIFTHS, count, k) == 0] = NAN
    tokens = 2.0 ** each(EXPONENTS, count, k)
    per_token = -each(EIGHTHS, count, k) / 8
    return Samples(scores, each(HALVES, count, k) / 2, per_token * tokens, each(CERTAINTIES, count, k), tokens)


def at(samples: Samples, row: int) -> Samples:
    """Select a single row."""
    return Samples(samples.scores[row], *(getattr(samples, name)[row] for name in voting.samples.OPTIONAL))


def permuted(samples: Samples, order: list[int]) -> Samples:
    return take(samples, np.array(order))


# --- reference definitions -----------------------------------------------------------------------------------------


def slow_winners(scores: list[float]) -> list[float]:
    top = [i for i, score in enumerate(scores) if score == max(scores)]
    return [1 / len(top) if i in top else 0.0 for i in range(len(scores))]


def weighted_sum(weights: list[float], vectors: list[list[float]]) -> list[float]:
    return [sum(weight * vector[i] for weight, vector in zip(weights, vectors)) for i in range(len(vectors[0]))]


def average(vectors: list[list[float]]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors)]


def slow_meta(scores, rewards, keep):
    """The mean, over every choice of `keep` samples that leaves out none better than one it keeps, of the sum of their scores."""
    everyone, keep = range(len(scores)), min(keep, len(scores))
    valid = []
    for kept in combinations(everyone, keep):
        left_out = [rewards[i] for i in everyone if i not in kept]
        if not left_out or max(left_out) <= min(rewards[i] for i in kept):
            valid.append(weighted_sum([1.0] * keep, [scores[i] for i in kept]))
    return average(valid)


def slow_rpc(scores, logprobs, tokens):
    p = [math.exp(logprob / count) for logprob, count in zip(logprobs, tokens)]
    split, variance = None, 0.0
    for threshold in sorted(set(p)):
        low, high = [x for x in p if x < threshold], [x for x in p if x >= threshold]
        if low:
            between = len(low) * len(high) * (sum(high) / len(high) - sum(low) / len(low)) ** 2
            if between > variance:
                split, variance = threshold, between
    pruned = [split is not None and x < split and x < sum(p) / len(p) for x in p]
    kept = [0.0 if out else x for x, out in zip(p, pruned)]
    return [total / sum(kept) for total in weighted_sum(kept, [slow_winners(row) for row in scores])]


def slow_borda(scores, certainty, power):
    """The mean over every ranking by certainty, best first, that the ties allow."""
    number, valid = len(scores), []
    for ranking in permutations(range(number)):
        if all(certainty[a] >= certainty[b] for a, b in zip(ranking, ranking[1:])):
            votes = [(number - (ranking.index(i) + 1) + 1) ** power for i in range(number)]
            valid.append(weighted_sum(votes, [slow_winners(row) for row in scores]))
    return average(valid)


def slow(name: str, samples: Samples, options: Options) -> list[float] | None:
    """Totals of one row by the definition; None where nothing parsed."""
    parsed = [i for i, row in enumerate(samples.scores.tolist()) if not math.isnan(row[0])]
    scores = [samples.scores[i].tolist() for i in parsed]
    if not scores:
        return None
    rewards, logprobs, certainty, tokens = (getattr(samples, field)[parsed].tolist() for field in voting.samples.OPTIONAL)
    if name in ("vote", "abstain"):
        return weighted_sum([1.0] * len(scores), scores)
    if name == "mean":
        return average(scores)
    if name == "majority":
        return weighted_sum([1.0] * len(scores), [slow_winners(row) for row in scores])
    if name == "meta":
        return slow_meta(scores, rewards, options.k_meta or max(1, len(samples.scores) // 2))
    if name == "meta_weighted":
        weights = [1 / (1 + math.exp(-reward)) for reward in rewards]
        return [total / sum(weights) for total in weighted_sum(weights, scores)]
    if name == "rpc":
        return slow_rpc(scores, logprobs, tokens)
    if name == "borda":
        return slow_borda(scores, certainty, options.power)
    raise AssertionError(f"{name} has no reference")


@pytest.mark.parametrize("name", ORDER_FREE)
@given(data=st.data())
def test_equals_its_definition(name: str, data: st.DataObject) -> None:
    samples = at(data.draw(rows()), 0)
    k_meta = data.draw(st.none() | st.integers(1, samples.scores.shape[0]))
    options = Options(k_meta=k_meta, power=data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])))
    expected = slow(name, samples, options)
    totals = STRATEGIES[name](samples, options).totals
    if expected is None:
        assert np.isnan(totals).all()
    else:
        assert totals == pytest.approx(expected, rel=1e-12)


@given(rows(), st.integers(0, 16))
def test_abstain_gives_no_verdict_where_the_mean_leads_by_less_than_the_margin(samples: Samples, quarters: int) -> None:
    outcome = voting.abstain(samples, Options(margin=quarters / 4))
    means = slow("mean", at(samples, 0), Options())
    if means is None:
        assert not outcome.abstained[0]  # a parse failure, which is another outcome
    elif len(means) == 1:
        assert not outcome.abstained[0]
    else:
        second, first = sorted(means)[-2:]
        if abs(first - second - quarters / 4) > 1e-9:
            assert outcome.abstained[0] == (first - second < quarters / 4)


@given(st.data(), st.sampled_from([1, 2, 4]), st.integers(0, 36))
def test_a_lead_of_exactly_the_margin_is_a_verdict(data: st.DataObject, k: int, quarters: int) -> None:
    """Sums of integers over 1, 2 or 4 samples: every lead is a number of quarters, and exact."""
    scores = np.array(data.draw(st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=k, max_size=k)))
    second, first = sorted(scores.sum(axis=0).tolist())[-2:]
    lead = (first - second) * 4 // k
    for margin in {quarters, lead, lead + 1, max(lead - 1, 0)}:
        assert bool(voting.abstain(Samples(scores.astype(float)), Options(margin=margin / 4)).abstained) == (lead < margin)


def test_synthesis_replaces_the_vote() -> None:
    scores = np.array([[[9.0, 1.0], [9.0, 1.0], [2.0, 7.0]], [[9.0, 1.0], [9.0, 1.0], [NAN, NAN]]])
    outcome = voting.synthesis(Samples(scores))
    np.testing.assert_array_equal(outcome.totals, [[2.0, 7.0], [NAN, NAN]])
    assert outcome.used.all()  # the samples that it read had to be drawn too


# --- the paper ------------------------------------------------------------------------------------------------------

# A case study of arXiv 2504.02495: boxes (8, 8), (9, 5) and (10, 7), the last two with the responses in reverse.
PAPER = Samples(np.array([[8.0, 8.0], [5.0, 9.0], [7.0, 10.0]]), meta_reward=np.array([-15.7781, 1.3126, 1.6739]))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [("vote", Options(), [20, 27]), ("meta", Options(k_meta=2), [12, 19]), ("meta", Options(k_meta=3), [20, 27])],
)
def test_the_papers_case_study(name: str, options: Options, expected: list[float]) -> None:
    assert STRATEGIES[name](PAPER, options).totals.tolist() == expected


# --- computed by hand -----------------------------------------------------------------------------------------------


def test_meta_keeps_half_of_the_samples_but_no_parse_failures() -> None:
    scores = np.array([[9.0, 1.0], [NAN, NAN], [4.0, 6.0], [NAN, NAN]])
    rewards = np.array([-3.0, 9.0, 2.0, NAN])  # of k = 4 the best 2 are kept: of the parsed ones, that is both
    assert voting.meta(Samples(scores, rewards)).totals.tolist() == [13.0, 7.0]
    assert voting.meta(Samples(scores, rewards), Options(k_meta=1)).totals.tolist() == [4.0, 6.0]


def test_meta_weighted_is_stable_for_extreme_meta_rewards() -> None:
    samples = Samples(np.array([[9.0, 1.0], [3.0, 5.0]]), np.array([-1000.0, -2000.0]))
    assert voting.meta_weighted(samples).totals.tolist() == [9.0, 1.0]  # the odds against the second are e^1000 to one


def test_rpc_prunes_the_improbable() -> None:
    """Per-token probabilities 0.9, 0.8, 0.2, 0.1: the low class is the last two. Two votes of 0.9 and 0.8 are left: 9/17 and 8/17."""
    probability, tokens = np.array([0.9, 0.8, 0.2, 0.1]), np.array([10.0, 700.0, 10.0, 3.0])
    scores = np.array([[9.0, 1.0], [2.0, 3.0], [1.0, 9.0], [1.0, 9.0]])
    totals = voting.rpc(Samples(scores, logprob=np.log(probability) * tokens, tokens=tokens)).totals
    assert totals == pytest.approx([9 / 17, 8 / 17])


def test_rpc_splits_where_the_variance_between_the_classes_is_greatest() -> None:
    """.9, .9, .9, .45, .01. Low alone .01: 1 x 4 x (3.15 / 4 - .01)^2 = 2.4; .45 as well: 2 x 3 x (.9 - .23)^2 = 2.7, so both go."""
    scores = np.array([[9.0, 1.0], [9.0, 1.0], [1.0, 9.0], [1.0, 9.0], [1.0, 9.0]])
    samples = Samples(scores, logprob=np.log([0.9, 0.9, 0.9, 0.45, 0.01]), tokens=np.ones(5))
    assert voting.rpc(samples).totals == pytest.approx([2 / 3, 1 / 3])


def test_rpc_keeps_what_is_not_below_the_mean() -> None:
    """.1 four times, .3, 1: the low class holds the first five (5 x 1 x .86^2 = 3.7), but .3 lies above the mean of .28 and stays."""
    scores = np.array([[1.0, 9.0, 1.0]] * 4 + [[1.0, 1.0, 9.0], [9.0, 1.0, 1.0]])
    samples = Samples(scores, logprob=np.log([0.1, 0.1, 0.1, 0.1, 0.3, 1.0]), tokens=np.ones(6))
    assert voting.rpc(samples).totals == pytest.approx([1 / 1.3, 0, 0.3 / 1.3])


@given(st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=7))
def test_low_is_in_the_lower_class_and_below_the_mean(eighths: list[int | None]) -> None:
    """In fractions. A value that equals the mean is not below it."""
    known = sorted(Fraction(value, 8) for value in eighths if value is not None)
    between = {Fraction(0): Fraction(0)}
    for cut in sorted(set(known))[1:]:
        low, high = [x for x in known if x < cut], [x for x in known if x >= cut]
        between[cut] = len(low) * len(high) * (sum(high) / len(high) - sum(low) / len(low)) ** 2
    first, *others = sorted(between.values(), reverse=True)
    assume(not others or first - others[0] > Fraction(1, 10**6))  # rounding may choose between equals
    cut = max(between, key=between.get)
    expected = [value is not None and Fraction(value, 8) < min(cut, sum(known) / len(known)) for value in eighths]
    parsed = np.array([value is not None for value in eighths])
    values = np.array([0.0 if value is None else value / 8 for value in eighths])
    assert _low(values, parsed).tolist() == expected


def test_a_value_at_the_mean_is_not_low() -> None:
    """1/4, 1/4, 1/2, 1: the lower class is the first three (3 x 1 x (2/3)^2 = 1.3, against 2 x 2 x (1/2)^2 = 1), the mean 1/2."""
    assert _low(np.array([0.5, 1.0, 0.25, 0.25]), np.ones(4, bool)).tolist() == [False, False, True, True]


def test_borda_by_hand() -> None:
    """Certainty ranks 1, 2, 3 of N = 3 have 3^2, 2^2 and 1^2 votes; the third sample's winners share theirs."""
    samples = Samples(np.array([[5.0, 5.0], [9.0, 1.0], [1.0, 9.0]]), certainty=np.array([0.1, 0.5, 0.9]))
    assert voting.borda(samples, Options(power=2)).totals.tolist() == [4.5, 9.5]


# --- properties of all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
@given(samples=rows(count=3))
def test_vectorised_equals_row_by_row(name: str, samples: Samples) -> None:
    together = STRATEGIES[name](samples)
    for row in range(3):
        alone = STRATEGIES[name](at(samples, row))
        np.testing.assert_allclose(together.totals[row], alone.totals, rtol=1e-13)
        np.testing.assert_array_equal(together.used[row], alone.used)
        np.testing.assert_array_equal(together.abstained[row], alone.abstained)


@pytest.mark.parametrize("name", ORDER_FREE)
@given(data=st.data())
def test_the_order_of_the_samples_does_not_matter(name: str, data: st.DataObject) -> None:
    samples = data.draw(rows())
    order = data.draw(st.permutations(range(samples.scores.shape[1])))
    np.testing.assert_allclose(STRATEGIES[name](permuted(samples, order)).totals, STRATEGIES[name](samples).totals, rtol=1e-12)


@pytest.mark.parametrize("name", BUILT_IN)
@given(data=st.data())
def test_the_names_of_the_responses_do_not_matter(name: str, data: st.DataObject) -> None:
    samples = data.draw(rows())
    order = data.draw(st.permutations(range(samples.scores.shape[-1])))
    known = {field: getattr(samples, field) for field in voting.samples.OPTIONAL}
    renamed = STRATEGIES[name](Samples(samples.scores[..., order], **known))
    np.testing.assert_allclose(renamed.totals, STRATEGIES[name](samples).totals[..., order], rtol=1e-13)


@pytest.mark.parametrize("name", BUILT_IN)
@given(data=st.data())
def test_one_sample_decides_alone(name: str, data: st.DataObject) -> None:
    samples = take(data.draw(rows(parsed=True)), np.array([0]))
    scores = samples.scores[0, 0]
    np.testing.assert_array_equal(tied(STRATEGIES[name](samples).totals)[0], scores == scores.max())


@pytest.mark.parametrize("name", BUILT_IN)
@given(samples=rows(), constant=st.integers(-20, 20))
def test_an_equal_constant_on_all_scores_changes_no_winner(name: str, samples: Samples, constant: int) -> None:
    known = {field: getattr(samples, field) for field in voting.samples.OPTIONAL}
    before, after = STRATEGIES[name](samples), STRATEGIES[name](Samples(samples.scores + constant, **known))
    np.testing.assert_array_equal(tied(after.totals), tied(before.totals))
    if not abs(voting.margin(STRATEGIES["mean"](samples).totals) - 1.0) < 1e-9:  # abstention at the margin itself is a matter of rounding
        np.testing.assert_array_equal(after.abstained, before.abstained)


@pytest.mark.parametrize("name", [name for name in ORDER_FREE if name != "meta"])  # of which half of k is kept
@given(samples=rows())
def test_a_parse_failure_does_not_change_the_result(name: str, samples: Samples) -> None:
    def more(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.full_like(values[:, :1], NAN)], axis=1)

    longer = Samples(more(samples.scores), *(more(getattr(samples, field)) for field in voting.samples.OPTIONAL))
    np.testing.assert_allclose(STRATEGIES[name](longer).totals, STRATEGIES[name](samples).totals, rtol=1e-13)


@pytest.mark.parametrize("name", BUILT_IN)
@given(samples=rows(count=2), score=st.integers(1, 10))
def test_levels_do_not_depend_on_how_many_samples_parsed(name: str, samples: Samples, score: int) -> None:
    """Of scores they are scores: within those that were given, and the score itself where all gave it. Of winners they are shares."""
    outcome = STRATEGIES[name](samples)
    levels, known = outcome.levels, ~np.isnan(outcome.totals[..., 0])
    assert (np.isnan(levels).all(axis=-1) == ~known).all()
    np.testing.assert_array_equal(tied(levels), tied(outcome.totals))
    if STRATEGIES[name].counts == "winners":
        np.testing.assert_allclose(levels[known].sum(axis=-1), 1.0, rtol=1e-12)
        return
    low, high = np.nanmin(samples.scores[known], axis=-2), np.nanmax(samples.scores[known], axis=-2)
    assert (levels[known] >= low - 1e-9).all() and (levels[known] <= high + 1e-9).all()
    same = Samples(np.where(np.isnan(samples.scores), NAN, score), *(getattr(samples, field) for field in voting.samples.OPTIONAL))
    np.testing.assert_allclose(STRATEGIES[name](same).levels[known], score, rtol=1e-12)


@given(rows(count=2), st.data())
def test_take_with_draws_equals_taking_each_draw(samples: Samples, data: st.DataObject) -> None:
    k = samples.scores.shape[1]
    index = subsets(k, data.draw(st.integers(1, k)), draws=4, seed=data.draw(st.integers(0, 9)))
    together = voting.vote(take(samples, index)).totals
    for row in range(2):
        for draw in range(4):
            alone = [samples.scores[row, i] for i in index[draw]]
            np.testing.assert_array_equal(together[row, draw], voting.vote(Samples(np.array(alone))).totals)


# --- subsets --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_subsets_are_nested_and_without_repetition(k_max: int, draws: int, seed: int) -> None:
    for k in range(1, k_max + 1):
        index = subsets(k_max, k, draws, seed)
        np.testing.assert_array_equal(index, subsets(k_max, k_max, draws, seed)[:, :k])
        assert all(len(set(draw)) == k and set(draw) <= set(range(k_max)) for draw in index.tolist())


def test_subsets_are_uniform() -> None:
    found = [tuple(draw) for draw in subsets(4, 2, draws=12_000, seed=0).tolist()]
    counts = [found.count(pair) for pair in permutations(range(4), 2)]
    assert sum(counts) == 12_000
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in counts)


@pytest.mark.parametrize("k", [0, 5])
def test_subsets_of_impossible_size(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}.*k_max = 4"):
        subsets(4, k, 1, 0)
