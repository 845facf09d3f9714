"""Simulated coverage of every 95% confidence interval that is printed.

A case is a kind of interval and a setting. The true value is sampled anew in each trial, uniformly within one standard error of the
setting's: the coverage for discrete data oscillates with the true value, so it is averaged over neighbouring values (Brown, Cai and
DasGupta 2001, doi 10.1214/ss/1009213286). Trials without an interval ("too few rows") are counted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group

from rlsys.documents.core import Estimate, Interval
from rlsys.system.terminal import Table

Trial = tuple[float, Interval | None]
"""(the true value, the interval)."""
HOLDS = (0.93, 0.97)
"""Acceptable range of a coverage."""
OFTEN = 0.05
"""Settings that print an interval in a smaller fraction of trials are not evaluated."""


@dataclass(frozen=True)
class Case:
    kind: str
    setting: str
    trial: Callable[[np.random.Generator], Trial]


def measure(trials: int, kind: str = "", seed: int = 0) -> dict[str, Any]:
    """{"trials", "cases": [{kind, setting, printed (share of the trials), coverage (of those printed, or null)}]}."""
    found = []
    for number, case in enumerate(cases()):
        if kind not in case.kind:
            continue
        rng = np.random.default_rng((seed, number))
        results = [case.trial(rng) for _ in range(trials)]
        held = [ci[0] <= truth <= ci[1] for truth, ci in results if ci is not None]
        coverage = sum(held) / len(held) if held else None
        found.append({"kind": case.kind, "setting": case.setting, "printed": len(held) / trials, "coverage": coverage})
    return {"trials": trials, "cases": found}


def judged(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the settings of a kind that print intervals often enough."""
    return [case for case in document["cases"] if case["kind"] == kind and case["printed"] >= OFTEN]


def render(document: dict[str, Any], every: bool) -> Group:
    table = Table(title=f"Coverage of 95% intervals, {document['trials']:,} trials a setting")
    for column in ("interval", "settings", "mean", "lowest", "highest"):
        table.add_column(column, justify="left" if column == "interval" else "right")
    for kind in dict.fromkeys(case["kind"] for case in document["cases"]):
        found = [case["coverage"] for case in judged(document, kind)]
        if found:
            table.add_row(kind, str(len(found)), f"{np.mean(found):.1%}", f"{min(found):.1%}", f"{max(found):.1%}")
    parts: list[Table] = [table]
    if every:
        lines = Table(title="Every setting")
        for column in ("interval", "setting", "printed", "coverage"):
            lines.add_column(column, justify="right" if column in ("printed", "coverage") else "left")
        for case in document["cases"]:
            coverage = "none" if case["coverage"] is None else f"{case['coverage']:.1%}"
            lines.add_row(case["kind"], case["setting"], f"{case['printed']:.0%}", coverage)
        parts.append(lines)
    return Group(*parts)


def cases() -> Iterator[Case]:
    """Yield all cases, in the order of docs/statistics.md."""
    for family in (_proportions, _means, _parsed, _votes, _macro, _areas, _paired, _paired_means, _calibration, _benchmarks):
        yield from family()


# --- sampling -------------------------------------------------------------------------------------------------------


def _near(rng: np.random.Generator, p: float, n: float) -> float:
    """Sample a true proportion within one standard error (for n rows) of p."""
    error = np.sqrt(p * (1 - p) / n)
    low = max(p - error, 1e-4)
    return rng.uniform(low, max(min(p + error, 1 - 1e-4), low))


def _chances(rng: np.random.Generator, p: float, alike: float, n: int) -> np.ndarray:
    """Sample [n] success probabilities with mean p; samples of a row have correlation `alike` in [0, 1] (beta-distributed)."""
    if alike in (0, 1):
        return np.full(n, p) if alike == 0 else (rng.random(n) < p).astype(float)
    spread = 1 / alike - 1
    return rng.beta(p * spread, (1 - p) * spread, n)


SHARES = (0.02, 0.1, 0.3, 0.5, 0.8, 0.98)
SAMPLES = ((2, 0.5), (4, 0.0), (4, 0.3), (4, 0.7), (16, 0.0), (16, 0.3), (16, 0.7), (16, 1.0))
"""(samples per row, their correlation)."""


def _proportions() -> Iterator[Case]:
    from rlsys.evaluation.statistics import proportion_ci

    def trial(n: int, p: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            true = _near(rng, p, n)
            return true, proportion_ci(int(rng.binomial(n, true)), n)

        return one

    for n in (5, 10, 20, 50, 200, 1000):
        for p in SHARES:
            yield Case("accuracy, one sample a row", f"{n} rows, {p:.0%}", trial(n, p))


def _means() -> Iterator[Case]:
    from rlsys.evaluation.statistics import mean_ci

    def trial(n: int, k: int, alike: float, p: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            true = _near(rng, p, n)
            return true, mean_ci(rng.binomial(k, _chances(rng, true, alike, n)) / k)

        return one

    for n in (5, 20, 50, 200, 1000):
        for k, alike in SAMPLES:
            for p in SHARES[:5]:
                yield Case("accuracy, k samples a row", f"{n} rows, k {k}, correlation {alike}, {p:.0%}", trial(n, k, alike, p))


def _parsed() -> Iterator[Case]:
    from rlsys.evaluation.statistics import mean_ci

    def trial(n: int, k: int, alike: float, p: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            true = _near(rng, p, n)
            chances = _chances(rng, true, alike, n)
            parsed = rng.binomial(k, 0.9, n)
            right = rng.binomial(parsed, chances)
            some = parsed > 0
            return true, mean_ci(right[some] / parsed[some], parsed[some])

        return one

    for n in (5, 20, 50, 200, 1000):
        for k, alike in ((1, 1.0), *SAMPLES):
            for p in SHARES[1:5]:
                yield Case("accuracy where parsed, 10% not", f"{n} rows, k {k}, correlation {alike}, {p:.0%}", trial(n, k, alike, p))


def _votes() -> Iterator[Case]:
    """Cases of vote@k: whether the majority of k samples is correct, averaged over random subsets of a row's samples; ties count half."""
    from scipy.stats import binom

    from rlsys.evaluation.statistics import mean_ci

    nodes, node_weights = np.polynomial.legendre.leggauss(200)
    nodes, node_weights = (nodes + 1) / 2, node_weights / 2

    def majority(k: int, chances: np.ndarray) -> np.ndarray:
        return binom.sf(k // 2, k, chances) + (0.5 * binom.pmf(k // 2, k, chances) if k % 2 == 0 else 0.0)

    def trial(n: int, k: int, most: int, a: float, b: float) -> Callable[[np.random.Generator], Trial]:
        from scipy.stats import beta

        true = float(node_weights @ (beta.pdf(nodes, a, b) * majority(k, nodes)))

        def one(rng: np.random.Generator) -> Trial:
            right = rng.random((n, most)) < rng.beta(a, b, n)[:, None]
            places = np.argsort(rng.random((50, most)), axis=1)[:, :k]
            sums = right[:, places].sum(axis=2)
            return true, mean_ci(((sums > k / 2) + 0.5 * (sums == k / 2)).mean(axis=1))

        return one

    for n in (20, 100, 400):
        for k, most in ((1, 8), (4, 8), (8, 8), (8, 32), (32, 32)):
            for a, b in ((2.0, 2.0), (3.0, 1.5), (8.0, 2.0)):
                yield Case("vote@k over subset draws", f"{n} rows, k {k} of {most}, beta({a:g}, {b:g})", trial(n, k, most, a, b))


def _macro() -> Iterator[Case]:
    """Cases of the unweighted mean over subset means, with different true means assigned to subsets at random."""
    from rlsys.evaluation.statistics import mean_ci

    def trial(sizes: tuple[int, ...], k: int, middle: float, apart: float) -> Callable[[np.random.Generator], Trial]:
        strata = np.repeat(np.arange(len(sizes)), sizes)
        weights = 1 / np.repeat(sizes, sizes)

        def one(rng: np.random.Generator) -> Trial:
            shift = _near(rng, middle, len(strata)) - middle
            true = rng.permutation(np.clip(np.linspace(middle - apart, middle + apart, len(sizes)) + shift, 0.005, 0.995))
            return float(true.mean()), mean_ci(rng.binomial(k, true[strata]) / k, weights, strata)

        return one

    for name, sizes in (
        ("20 of 1", (1,) * 20),
        ("60 of 1", (1,) * 60),
        ("23 of 2", (2,) * 23),
        ("5 of 5", (5,) * 5),
        ("4 of 100", (100,) * 4),
        ("1, 2, 5, 10, 20, 50", (1, 2, 5, 10, 20, 50)),
        ("20, 100, 100", (20, 100, 100)),
        ("10, 30, 100, 300", (10, 30, 100, 300)),
    ):
        for k in (1, 4):
            for middle, apart in ((0.5, 0.1), (0.7, 0.2), (0.85, 0.1), (0.95, 0.03)):
                setting = f"subsets {name}, k {k}, {middle - apart:.0%} to {middle + apart:.0%}"
                yield Case("mean of subsets", setting, trial(sizes, k, middle, apart))


def _areas() -> Iterator[Case]:
    from scipy.stats import norm

    from rlsys.evaluation.statistics import auc_ci

    def trial(ones: int, zeros: int, area: float, each: int, alike: float) -> Callable[[np.random.Generator], Trial]:
        positive = np.repeat([True, False], [ones, zeros])

        def one(rng: np.random.Generator) -> Trial:
            true = _near(rng, area, min(ones, zeros) // each)
            rows = np.arange(len(positive)) // each if each == 1 else rng.permutation(len(positive)) // each
            own = rng.normal(size=rows.max() + 1)[rows]
            scores = np.sqrt(alike) * own + np.sqrt(1 - alike) * rng.normal(size=len(rows)) + np.sqrt(2) * norm.ppf(true) * positive
            return true, auc_ci(scores, positive, rows)[1]

        return one

    for ones, zeros in ((10, 10), (20, 20), (30, 100), (100, 100), (400, 200)):
        for area in (0.55, 0.75, 0.9, 0.98):
            setting = f"{ones} against {zeros}, {area}"
            yield Case("ROC-AUC, one text a row", setting, trial(ones, zeros, area, 1, 0.0))
    for ones, zeros in ((100, 100), (240, 240), (800, 400)):
        for area in (0.6, 0.8, 0.95):
            for alike in (0.2, 0.7):
                setting = f"{ones} against {zeros} in rows of 4, correlation {alike}, {area}"
                yield Case("ROC-AUC, several texts a row", setting, trial(ones, zeros, area, 4, alike))


def _paired() -> Iterator[Case]:
    from rlsys.evaluation.statistics import paired_difference

    def trial(n: int, changed: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            # Also average over all ways to split the changes into gains and losses.
            gains = rng.uniform(0, 1)
            up, down = (_near(rng, max(changed / n * part, 1e-9), n) for part in (gains, 1 - gains))
            up, down = up / max(1.0, up + down), down / max(1.0, up + down)
            uniform = rng.random(n)
            after, before = (uniform < up).astype(float), ((uniform >= up) & (uniform < up + down)).astype(float)
            return up - down, paired_difference(after, before).ci95

        return one

    for n in (5, 10, 20, 50, 200, 1000):
        for changed in (1, 3, 6, 12, 25, 100):
            if changed <= 0.7 * n:
                yield Case("paired difference, one sample a row", f"{n} rows, {changed} changed", trial(n, changed))


def _paired_means() -> Iterator[Case]:
    from rlsys.evaluation.statistics import paired_difference

    def trial(n: int, k: int, alike: float, p: float, gain: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            base = _near(rng, p, n)
            before = _chances(rng, base, alike, n)
            anew = rng.random(n) < 0.3
            after = np.where(anew, _chances(rng, base, alike, n), before)
            after = after + (1 - after) * gain
            return (1 - base) * gain, paired_difference(rng.binomial(k, after) / k, rng.binomial(k, before) / k).ci95

        return one

    for n in (20, 50, 200, 1000):
        for k, alike in SAMPLES[:-1]:
            for p, gain in ((0.5, 0.0), (0.5, 0.1), (0.8, 0.05), (0.95, 0.0), (0.95, 0.5)):
                setting = f"{n} rows, k {k}, correlation {alike}, {p:.0%}, {gain:.0%} of the wrong mended"
                yield Case("paired difference, k samples a row", setting, trial(n, k, alike, p, gain))


def _calibration() -> Iterator[Case]:
    """Cases of calibration measures: calibrated, overconfident and underconfident, in rows of one or several texts."""
    from rlsys.evaluation import calibration

    measures = {
        "brier": "Brier score",
        "log_loss": "log loss",
        "accuracy": "accuracy at 0",
        "rms_calibration_error": "calibration error, root mean square",
        "bin": "observed share of a bin",
    }

    def sample(rng: np.random.Generator, rows: int, each: int, sharp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample (logits, labels, rows); rows differ in difficulty, and true logits are the predicted ones divided by `sharp`."""
        true = np.repeat(rng.normal(0, 1, rows), each) + rng.normal(0, 1.2, rows * each)
        labels = rng.random(rows * each) < 1 / (1 + np.exp(-true))
        return true * sharp, labels.astype(float), np.repeat(np.arange(rows), each)

    def trial(key: str, rows: int, each: int, sharp: float, truth: float) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            scores, labels, row = sample(rng, rows, each, sharp)
            if key != "bin":
                return truth, calibration.measures(scores, labels, row, np.ones(len(row)))[key].ci95
            probability = 1 / (1 + np.exp(-scores))
            inside = (probability >= 0.7) & (probability < 0.8)
            return truth, calibration.summarise(scores[inside], labels[inside], row[inside]).table[7].ci95 if inside.any() else None

        return one

    for sharp in (1.0, 2.0, 0.5):
        scores, labels, _ = sample(np.random.default_rng(1), 2_000_000, 1, sharp)
        truths = true_measures(scores, labels)
        for key, words in measures.items():
            for rows, each in ((40, 1), (100, 4), (300, 1), (300, 4), (2000, 1)):
                about = {1.0: "calibrated", 2.0: "overconfident", 0.5: "underconfident"}[sharp]
                yield Case(words, f"{rows} rows of {each}, {about}", trial(key, rows, each, sharp, truths[key]))


def true_measures(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the measures directly from very many texts."""
    probability = 1 / (1 + np.exp(-scores))
    bins = np.minimum((probability * 10).astype(int), 9)
    gaps = np.bincount(bins, probability - labels, 10) / np.bincount(bins, minlength=10)
    return {
        "brier": float(((probability - labels) ** 2).mean()),
        "log_loss": float((np.logaddexp(0, scores) - labels * scores).mean()),
        "accuracy": float(((scores > 0) == (labels > 0.5)).mean()),
        "rms_calibration_error": float(np.sqrt((np.bincount(bins, minlength=10) / len(bins)) @ gaps**2)),
        "bin": float(labels[bins == 7].mean()),
    }


def _benchmarks() -> Iterator[Case]:
    """Cases of the mean of independent benchmarks, derived from their intervals."""
    from rlsys.evaluation.statistics import proportion_ci
    from rlsys.reporting.page.evaluations import mean

    def estimate(right: int, n: int) -> Estimate:
        return Estimate(value=right / n, ci95=proportion_ci(right, n))

    def trial(sizes: tuple[int, ...], shares: tuple[float, ...]) -> Callable[[np.random.Generator], Trial]:
        def one(rng: np.random.Generator) -> Trial:
            true = [_near(rng, p, n) for n, p in zip(sizes, shares)]
            right = [int(rng.binomial(n, p)) for n, p in zip(sizes, true)]
            average = mean([estimate(r, n) for r, n in zip(right, sizes)])
            return sum(true) / len(true), None if average is None else average.ci95

        return one

    for sizes in ((20, 20), (50, 200), (30, 100, 400), (100, 100, 100, 100, 100)):
        for p in (0.1, 0.5, 0.7, 0.95):
            shares = tuple(np.clip(p + 0.1 * np.linspace(-1, 1, len(sizes)), 0.02, 0.98))
            yield Case("mean of the benchmarks", f"benchmarks of {sizes} rows, about {p:.0%}", trial(sizes, shares))
