"""Many resamples at once, against plain loops over the published rules; and the clusters behind an interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.data.records import Record
from rlsys.evaluation.benchmarks import Benchmark, Cluster, Item, interval, score
from rlsys.evaluation.benchmarks.formats import BOTH
from rlsys.evaluation.benchmarks.outcomes import both_orders, judgebench, pandalm, pandalm_macro, ties_value
from rlsys.evaluation.benchmarks.schemes import Means, RocAuc
from rlsys.evaluation.benchmarks.verdicts import verdicts
from rlsys.evaluation.statistics import mean_ci

SECTIONS = {"a": "A", "b": "A", "c": "C"}


def benchmark_of(scheme, rewards: list[tuple[float, ...]], subsets: list[str], items_each: int = 1) -> Benchmark:
    """Clusters of `items_each` items with the given rewards."""
    items, clusters = [], []
    for number, (row, subset) in enumerate(zip(rewards, subsets, strict=True)):
        record = Record(str(number), "test", ({"role": "user", "content": "?"},), tuple(map(str, range(len(row)))), row)
        orders = BOTH if items_each == 2 else (None,) * items_each
        items += [Item(f"{number}#{i}", record, number, subset, order) for i, order in enumerate(orders)]
        clusters.append(Cluster(str(number), subset, SECTIONS[subset]))
    return Benchmark("test", tuple(items), tuple(clusters), scheme)


def random_totals(rng: np.random.Generator, benchmark: Benchmark, resamples: int, high: int = 6) -> list[np.ndarray]:
    """Small integers, so that ties are frequent, and one in eight without a verdict."""
    totals = [rng.integers(1, high, (resamples, item.record.n)).astype(float) for item in benchmark.items]
    for array in totals:
        array[rng.random(resamples) < 1 / 8] = math.nan
    return totals


def without_ties(totals: list[np.ndarray]) -> list[np.ndarray]:
    return [array + np.arange(array.shape[1]) / 100 for array in totals]


def area(labels, scores) -> float:
    """Of all pairs of a right and a wrong one, the share that is in order, ties half."""
    pairs = [(s > t) + (s == t) / 2 for s, right in zip(scores, labels) if right for t, other in zip(scores, labels) if not other]
    return sum(pairs) / len(pairs)


def precision_recall_f1(truth: list[int], said: list[int], label: int) -> tuple[float, float, float]:
    """Of one label; nought where there is nothing to divide by."""
    both = sum(t == s == label for t, s in zip(truth, said))
    precision, recall = (both / count if count else 0.0 for count in (said.count(label), truth.count(label)))
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["clusters", "subsets", "sections"]))
def test_weighted_means_equal_a_loop(seed, overall):
    rng = np.random.default_rng(seed)
    subsets = ["a", "b", "c", *rng.choice(list("abc"), 9)]
    rewards = [(1.0, *[0.0] * int(n)) for n in rng.integers(1, 4, 12)]
    benchmark = benchmark_of(Means(overall=overall, weights={"a": 7.0}), rewards, subsets)
    totals = without_ties(random_totals(rng, benchmark, resamples=5))
    result = score(benchmark, totals)
    for resample in range(5):
        right: dict[str, list[bool]] = {"a": [], "b": [], "c": []}
        for cluster in range(12):
            row = totals[cluster][resample]
            right[subsets[cluster]].append(not any(math.isnan(value) for value in row) and all(row[0] > value for value in row[1:]))
        mean = {name: sum(values) / len(values) for name, values in right.items()}
        in_a = 7.0 * mean["a"] + len(right["b"]) * mean["b"]
        sections = {"A": in_a / (7.0 + len(right["b"])), "C": mean["c"]}
        everything = [value for values in right.values() for value in values]
        expected = {"clusters": np.mean(everything), "subsets": np.mean(list(mean.values())), "sections": np.mean(list(sections.values()))}
        assert result.overall[resample] == pytest.approx(expected[overall])
        for name, value in (mean | sections).items():
            assert result.groups[name][resample] == pytest.approx(value)
    assert result.n == {"overall": 12, "A": len(right["a"]) + len(right["b"]), "C": len(right["c"])} | {k: len(v) for k, v in right.items()}


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_ties_equal_the_published_loop_over_prompts(seed):
    """Means of each part over prompts, as the published code has them; ours adds the parts up prompt by prompt."""
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(4):
        shapes = (1, int(rng.integers(1, 4))), (int(rng.integers(2, 4)), int(rng.integers(1, 4)))
        prompts.append([(rng.integers(1, 8, (3, a + b)).astype(float), np.arange(a + b) < a) for a, b in shapes])
    ours = np.mean([ties_value(*prompt) for prompt in prompts], axis=0)
    for resample in range(3):
        accurate: dict[str, list[bool]] = {"ref": [], "tied": []}
        preferred, hard, terms = [], [], []
        for prompt in prompts:
            gaps = []
            for kind, (totals, right) in zip(("ref", "tied"), prompt, strict=True):
                good = [float(value) for value, is_right in zip(totals[resample], right, strict=True) if is_right]
                bad = [float(value) for value, is_right in zip(totals[resample], right, strict=True) if not is_right]
                gaps.append(min(good) - max(bad))
                accurate[kind].append(gaps[-1] > 0)
            spread = max(good) - min(good)
            preferred.append(gaps[1] > spread)
            hard.append(min(gaps) > spread)
            terms.append(math.tanh(min(gaps) / spread - 1) if spread else float(np.sign(min(gaps))))
        expected = 0.3 * np.mean(accurate["tied"]) + 0.3 * np.mean(accurate["ref"]) + 0.2 * np.mean(preferred)
        assert ours[resample] == pytest.approx(expected + 0.2 * np.mean(hard) + 0.01 * np.mean(terms))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_area_under_the_roc_curve_equals_a_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    rewards = [(1.0,), (0.0,)] * 3 + [(float(value),) for value in rng.integers(0, 2, 14)]
    subsets = ["a", "a", "b", "b", "c", "c", *rng.choice(list("abc"), 14)]
    benchmark = benchmark_of(RocAuc(), rewards, subsets)
    totals = random_totals(rng, benchmark, resamples=4)
    result = score(benchmark, totals)
    labels = np.array(rewards)[:, 0]
    for resample in range(4):
        scores = np.array([array[resample, 0] for array in totals])
        scores = np.where(np.isnan(scores), np.where(labels == 1, 0, 99), scores)  # below and above all others
        assert result.overall[resample] == pytest.approx(area(labels, scores))
        for name in "abc":
            members = np.array(subsets) == name
            assert result.groups[name][resample] == pytest.approx(area(labels[members], scores[members]))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_pandalm_equals_plain_counts(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 15)
    rewards = [((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))[label] for label in truth]
    benchmark = benchmark_of(Means(pandalm, extras=pandalm_macro), rewards, ["a"] * 15)
    totals = random_totals(rng, benchmark, resamples=4, high=4)
    result = score(benchmark, totals)
    for resample in range(4):
        said = [-1 if math.isnan(x) else 0 if x == y else 1 if x > y else 2 for x, y in (array[resample] for array in totals)]
        assert result.overall[resample] == pytest.approx(np.mean(truth == said))
        by_label = [precision_recall_f1(list(truth), said, label) for label in (0, 1, 2)]
        expected = [sum(each) / 3 for each in zip(*by_label)]
        assert [result.others[name][resample] for name in ("precision", "recall", "f1")] == pytest.approx(expected)


DECISIONS = {"A": (9.0, 4.0), "B": (4.0, 9.0), "tie": (5.0, 5.0), None: (math.nan, math.nan)}


@pytest.mark.parametrize("label", ["A", "B"])
def test_judgebench_equals_the_published_counter_on_every_pair_of_decisions(label):
    pairs = list(itertools.product(DECISIONS, DECISIONS))
    benchmark = benchmark_of(Means(judgebench), [(float(label == "A"), float(label == "B"))] * len(pairs), ["a"] * len(pairs), items_each=2)
    judged = verdicts(benchmark, [np.array([DECISIONS[decision]]) for pair in pairs for decision in pair])
    values = judgebench(judged)
    for index, pair in enumerate(pairs):
        counter = sum((decision == label) - (decision in ("A", "B") and decision != label) for decision in pair)
        assert values["overall"][0, index] == (counter > 0)
        assert values["both_right"][0, index] == (pair == (label, label))
        assert values["agreement"][0, index] == (pair[0] == pair[1] is not None)


@pytest.mark.parametrize(
    "scheme",
    [
        Means(overall="clusters"),
        Means(overall="subsets", weights={"a": 3.0}),
        Means(overall="sections", weights={"a": 3.0}),
        Means(both_orders),
    ],
)
def test_the_weights_behind_an_interval_give_the_figure(scheme):
    rng = np.random.default_rng(5)
    subsets = list("aabbbbccc" * 4)
    labels = [float(value) for value in rng.integers(0, 2, len(subsets))]
    benchmark = benchmark_of(scheme, [(label, 1 - label) for label in labels], subsets, items_each=2 if scheme == Means(both_orders) else 1)
    totals = random_totals(rng, benchmark, resamples=6)
    found, values = score(benchmark, totals), scheme.outcomes(verdicts(benchmark, totals))["overall"].mean(axis=0)
    for name, members in {"overall": np.arange(len(subsets)), **benchmark.groups}.items():
        weights = scheme._weights(benchmark, members, name == "overall")
        expected = found.overall if name == "overall" else found.groups[name]
        assert np.average(values[members], weights=weights) == pytest.approx(expected.mean())
    # Two subsets in one section, so the macro averages are stratified: no wider than if the subsets' means were chance, too.
    low, high = interval(benchmark, totals)["overall"]
    assert low < found.overall.mean() < high


def test_the_interval_of_an_area_is_its_own():
    rng = np.random.default_rng(5)
    labels = [float(number % 2) for number in range(80)]
    benchmark = benchmark_of(RocAuc(), [(label,) for label in labels], list("ab" * 20 + "aabb" * 10))
    totals = random_totals(rng, benchmark, resamples=6)
    low, high = interval(benchmark, totals)["overall"]
    assert low < score(benchmark, totals).overall.mean() < high


def test_interval_of_one_subset_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    benchmark = benchmark_of(Means(), [(1.0, 0.0)] * 200, ["a"] * 200)
    # Clusters of different difficulty, and many resamples: what varies between clusters is their mean over resamples.
    chances = rng.random(200)
    totals = [np.where((rng.random((50, 1)) < chance), [[9.0, 4.0]], [[4.0, 9.0]]) for chance in chances]
    shares = [float((array[:, 0] > array[:, 1]).mean()) for array in totals]
    assert interval(benchmark, totals)["overall"] == pytest.approx(mean_ci(shares))


def test_few_units_have_no_interval_and_more_have_one_with_width_where_nothing_varies():
    few = benchmark_of(Means(), [(1.0, 0.0)] * 9, list("aaabbbccc"))
    same = [np.array([[9.0, 4.0]])] * 90
    assert interval(few, same[:9]) == dict.fromkeys(("overall", "A", "C", "a", "b", "c"))
    many = benchmark_of(Means(), [(1.0, 0.0)] * 90, list("abc" * 30))
    found = interval(many, same)
    assert [bounds[1] for bounds in found.values()] == pytest.approx([1.0] * 6)
    # Of 30 right ones of 30 no more than 0.886 is sure (Wilson: 30 / (30 + 3.84)).
    assert found["a"][0] == pytest.approx(30 / (30 + 1.959964**2)) and found["overall"][0] > found["A"][0] > found["a"][0]
