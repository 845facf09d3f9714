"""AUC, Brier score and calibration against loops and figures worked out by hand; intervals against what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.evaluation import calibration
from rlsys.evaluation.statistics import auc_ci


def summarise(*arguments) -> dict:
    """The part of report.json."""
    return calibration.summarise(*arguments).to_json()


def summarise_pairs(*arguments) -> dict:
    return calibration.summarise_pairs(*arguments).to_json()


def slow_auc(scores, labels) -> float:
    """The chance that a right one is above a wrong one, ties half (Mann and Whitney)."""
    pairs = [(s > t) + (s == t) / 2 for s, a in zip(scores, labels) if a for t, b in zip(scores, labels) if not b]
    return sum(pairs) / len(pairs)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_figures_worked_out_by_hand():
    scores = [logit(0.95), logit(0.95), logit(0.65), logit(0.15), logit(0.15)]
    told = summarise(scores, [1, 0, 1, 0, 0], ["a", "b", "c", "d", "e"])
    # six pairs: .95 over .95 is half, over .15 twice; .65 loses to .95, wins twice
    assert told["auc"]["value"] == pytest.approx((2.5 + 2) / 6)
    assert told["accuracy"]["value"] == pytest.approx(4 / 5)
    assert told["brier"]["value"] == pytest.approx((0.05**2 + 0.95**2 + 0.35**2 + 2 * 0.15**2) / 5)
    assert told["log_loss"]["value"] == pytest.approx(-(math.log(0.95) + math.log(0.05) + math.log(0.65) + 2 * math.log(0.85)) / 5)
    # bins: two at .95 of which half right, one at .65 right, two at .15 wrong
    assert told["ece"]["value"] == pytest.approx((2 * 0.45 + 0.35 + 2 * 0.15) / 5)
    assert told["base_rate"] == pytest.approx(2 / 5)
    assert [entry["n"] for entry in told["table"]] == [0, 2, 0, 0, 0, 0, 1, 0, 0, 2]
    assert told["table"][9]["predicted"] == pytest.approx(0.95) and told["table"][9]["observed"] == 0.5
    assert told["table"][0]["observed"] is None
    assert told["auc_within_row"] is None


def test_within_a_row_only_its_own_texts_are_compared():
    """Row a is easy and row b hard, so the overall AUC is high though the scores within each row are the wrong way round."""
    told = summarise([5.0, 5.1, 5.2, -5.0, -5.1, -5.2], [1, 1, 0, 1, 0, 0], list("aaabbb"))
    assert told["auc_within_row"]["value"] == pytest.approx((0 + 1) / 2)
    assert told["auc_within_row"]["rows"] == 2
    assert summarise([1.0, 0.0, 3.0], [1, 0, 1], list("aab"))["auc_within_row"]["rows"] == 1


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 3)), min_size=1, max_size=12))
def test_weights_count_as_repetitions_do(texts):
    scores, labels, weights = (np.array([text[i] for text in texts], float) for i in range(3))
    found, _ = auc_ci(scores, labels > 0.5, None, weights)
    repeated = [(score, label) for score, label, weight in texts for _ in range(weight)]
    if len({label for _, label in repeated}) == 2:
        assert found == pytest.approx(slow_auc(*zip(*repeated)))
    else:
        assert found is None


labelled = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=1, max_size=60)


@given(labelled)
@settings(deadline=None, max_examples=20)
def test_measures_equal_slow_loops_and_lie_within_their_intervals(pairs):
    scores, labels = [s / 2 for s, _ in pairs], [float(label) for _, label in pairs]
    told = summarise(scores, labels, [str(i) for i in range(len(pairs))])
    p = [1 / (1 + math.exp(-s)) for s in scores]
    assert told["brier"]["value"] == pytest.approx(sum((a - b) ** 2 for a, b in zip(p, labels)) / len(p))
    gaps = [sum(a - b for a, b in zip(p, labels) if k / 10 <= a < (k + 1) / 10) for k in range(10)]
    assert told["ece"]["value"] == pytest.approx(sum(map(abs, gaps)) / len(p))
    right = [0.5 if s == 0 else float((s > 0) == label) for s, label in zip(scores, labels)]
    assert told["accuracy"]["value"] == pytest.approx(sum(right) / len(p))
    if 0 < sum(labels) < len(labels):
        assert told["auc"]["value"] == pytest.approx(slow_auc(scores, labels))
    else:
        assert told["auc"] is None
    for name in ("accuracy", "brier", "log_loss"):
        if len(pairs) < 5:
            assert told[name]["ci95"] is None
        elif told[name]["ci95"] is not None:
            low, high = told[name]["ci95"]
            assert low - 1e-9 <= told[name]["value"] <= high + 1e-9
    assert sum(entry["n"] for entry in told["table"]) == len(p)


@pytest.mark.parametrize("size", [40.0, 800.0, 1e6])
@pytest.mark.filterwarnings("error")
def test_a_probability_of_exactly_0_or_1_is_in_the_first_or_last_bin(size):
    """Right, wrong, right, wrong. At 40, a probability is 1 to the last bit; from 710, exp overflows."""
    scores, labels = [size, size, -size, -size], [1, 0, 0, 1]
    told = summarise(scores, labels, list("abcd"))
    assert [entry["n"] for entry in told["table"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert [told["table"][i]["predicted"] for i in (0, 9)] == [pytest.approx(0.0, abs=1e-15), 1.0]
    assert [told["table"][i]["observed"] for i in (0, 9)] == [0.5, 0.5]
    assert (told["accuracy"]["value"], told["brier"]["value"], told["auc"]["value"]) == (0.5, 0.5, 0.5)
    assert told["ece"]["value"] == pytest.approx(0.5) and told["log_loss"]["value"] == pytest.approx(size / 2)
    # a bin's two rows miss by 0 and by 1: the product of the two, which is all that is not chance, is 0
    assert told["rms_calibration_error"]["value"] == pytest.approx(0.0)
    assert told["ece"]["calibrated"] == {"mean": pytest.approx(0.0), "high": pytest.approx(0.0)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, 1.0)])
def test_a_model_that_is_always_sure(right, expected):
    rows, labels = [str(i) for i in range(150)], [float(i % 2) for i in range(150)]
    told = summarise([1e4 if (label > 0.5) == right else -1e4 for label in labels], labels, rows)
    assert told["ece"]["value"] == told["brier"]["value"] == told["rms_calibration_error"]["value"] == expected
    assert told["accuracy"]["value"] == 1 - expected and told["auc"]["value"] == pytest.approx(1 - expected)
    assert [told["table"][i]["observed"] for i in (0, 9)] == [expected, 1 - expected]


@pytest.mark.filterwarnings("error")
def test_pairs_that_lie_far_apart():
    told = summarise_pairs([1e4, -1e4, 0.0, 1e4, 1e4], [1, 0, 0, 0, 1], list("aaabb"))
    # row a: 2e4 and 1e4 ahead; row b: level, 0.5
    assert told["pairwise_accuracy"]["value"] == pytest.approx((1 + 0.5) / 2)
    assert [entry["n"] for entry in told["table"]] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 2]


def test_repeating_a_rows_texts_does_not_narrow_an_interval():
    """Samples of one row are not independent: ten copies of each say no more than one."""
    generator = np.random.default_rng(0)
    scores, labels, rows = generator.normal(size=60), generator.integers(0, 2, 60), [f"{i:02d}" for i in range(60)]
    once = summarise(scores, labels, rows)
    tenfold = summarise(np.repeat(scores, 10), np.repeat(labels, 10), np.repeat(rows, 10))
    for name in ("auc", "accuracy", "brier", "log_loss", "rms_calibration_error"):
        assert tenfold[name]["ci95"] == pytest.approx(once[name]["ci95"])
    pretended = summarise(np.repeat(scores, 10), np.repeat(labels, 10), [str(i) for i in range(600)])
    assert np.ptp(pretended["auc"]["ci95"]) < 0.5 * np.ptp(once["auc"]["ci95"])


def test_probabilities_that_are_true_are_calibrated():
    generator = np.random.default_rng(1)
    scores = generator.normal(0, 2, 20_000)
    labels = generator.random(20_000) < 1 / (1 + np.exp(-scores))
    told = summarise(scores, labels, [str(i) for i in range(len(scores))])
    assert told["ece"]["value"] < 0.015
    overconfident = summarise(3 * scores, labels, [str(i) for i in range(len(scores))])
    assert overconfident["ece"]["value"] > 0.1
    assert overconfident["auc"]["value"] == pytest.approx(told["auc"]["value"])


def test_pairs_of_a_row_count_as_one_row():
    told = summarise_pairs([2.0, 1.0, 2.0, 1.0, 0.0, 5.0, 5.0, 1.0], [1, 0, 0, 0, 1, 0, 1, 0], list("aaabbbcc"))
    assert told["base_rate"] == 0.5 and told["rows"] == 3 and told["n"] == 2 * 5
    # row a wins one and ties one, row b loses both, row c wins its only one
    assert told["pairwise_accuracy"]["value"] == pytest.approx((0.75 + 0 + 1) / 3)
    loss = [math.log1p(math.exp(-margin)) for margin in (1.0, 0.0, -1.0, -5.0, 4.0)]
    assert told["log_loss"]["value"] == pytest.approx(((loss[0] + loss[1]) / 2 + (loss[2] + loss[3]) / 2 + loss[4]) / 3)
    assert "auc" not in told and "accuracy" not in told


def test_a_bins_interval_counts_rows_and_not_texts():
    few = summarise([logit(0.55)] * 20, [1] * 10 + [0] * 10, ["a"] * 10 + ["b"] * 10)
    (entry,) = (entry for entry in few["table"] if entry["n"])
    assert entry["observed"] == 0.5 and entry["ci95"] is None, "two rows"
    many = summarise([logit(0.55)] * 200, ([1] * 10 + [0] * 10) * 10, np.repeat([str(i) for i in range(20)], 10))
    (entry,) = (entry for entry in many["table"] if entry["n"])
    # Wilson, ten successes of twenty: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96
    z, n = 1.959964, 20
    half = z * math.sqrt(0.25 / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert entry["ci95"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-6)


def slow_square(scores, labels, rows) -> float:
    """Mean over bins, by their texts, of the mean product of the gaps of two texts of different rows."""
    p = [1 / (1 + math.exp(-s)) for s in scores]
    total = count = 0.0
    for k in range(10):
        inside = [i for i in range(len(p)) if k / 10 <= p[i] < (k + 1) / 10]
        products = [(p[i] - labels[i]) * (p[j] - labels[j]) for i in inside for j in inside if rows[i] != rows[j]]
        if products:
            total += len(inside) * sum(products) / len(products)
            count += len(inside)
    return total / count


def test_the_calibration_error_without_chance_is_zero_on_average_for_a_calibrated_model():
    """What is usually told is above 0 then, and by as much as its `calibrated` says."""
    rng = np.random.default_rng(3)
    squares, usual, level = [], [], []
    for _ in range(100):
        scores = rng.normal(0, 1.5, 200)
        labels = (rng.random(200) < 1 / (1 + np.exp(-scores))).astype(float)
        squares.append(slow_square(scores.tolist(), labels.tolist(), [i // 2 for i in range(200)]))
        if len(usual) < 20:
            told = summarise(scores, labels, [str(i // 2) for i in range(200)])
            assert told["rms_calibration_error"]["value"] == pytest.approx(math.sqrt(max(squares[-1], 0)))
            usual.append(told["ece"]["value"])
            level.append(told["ece"]["calibrated"]["mean"])
    assert abs(np.mean(squares)) < 4 * np.std(squares) / 10
    assert np.mean(usual) == pytest.approx(np.mean(level), abs=0.02) and np.mean(level) > 0.05


def test_an_overconfident_models_calibration_error_leaves_zero_out():
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, 2000)
    labels = rng.random(2000) < 1 / (1 + np.exp(-scores))
    low, high = summarise(3 * scores, labels, [str(i) for i in range(2000)])["rms_calibration_error"]["ci95"]
    assert 0.05 < low < high < 0.3
    assert summarise(scores, labels, [str(i) for i in range(2000)])["rms_calibration_error"]["ci95"][0] < 0.02


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [([], [], "at least 1"), ([1.0], [1, 0], "equally many"), ([float("nan"), 1.0], [0, 1], "1 of 2 scores are not finite")],
)
def test_what_cannot_be_judged_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        summarise(scores, labels, ["a"] * len(scores))


def test_the_table():
    from rich.console import Console

    generator = np.random.default_rng(0)
    told = calibration.summarise(generator.normal(size=50), generator.integers(0, 2, 50), [str(i) for i in range(50)])
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    one_label = calibration.summarise([1.0, 2.0], [1, 1], ["a", "b"])
    for one in (told, one_label):
        console.print(calibration.table(one, "title"))
    text = console.export_text()
    assert f"{told.auc.value:.3f}" in text and "one label only" in text
