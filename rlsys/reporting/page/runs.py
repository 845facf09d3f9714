"""Training runs: curves over steps, held-out results by stage and family, parse failures, time by phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlsys.documents.core import Interval
from rlsys.documents.evaluation import Figures
from rlsys.documents.runs import Family, RunBaselines
from rlsys.evaluation.breakdown import baselines
from rlsys.evaluation.heldout import chance
from rlsys.evaluation.statistics import proportion_ci
from rlsys.monitoring.definitions import STEP_PHASES
from rlsys.reporting.page.collect import Evaluation, ScalarRun, TrainingRun, step_of
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.evaluations import BASELINES, baselines_named, benchmarks, metric_of
from rlsys.reporting.page.plots import Categories, Curves, Panels, Plot, Series, common_range
from rlsys.reporting.summary import STAGES

SMOOTH = 5
"""Minimum window of the moving mean, in steps; long runs use 1/20 of their steps, runs shorter than three windows none."""


def stage_name(stage: str) -> str:
    step = step_of(stage)
    return STAGES.get(stage, stage) if step is None else f"after step {step}"


# --- training -------------------------------------------------------------------------------------------------------


def training(runs: Sequence[TrainingRun]) -> Section:
    """Return the section on the judges: reward, held-out accuracy, KL and entropy over steps, and held-out results by stage."""
    judges = [run for run in runs if not run.is_policy]
    plots = [
        _over_steps("Reward of the training samples", "mean reward, from -1 to +1", "reward", judges),
        _heldout_curve("Accuracy on held-out rows", "accuracy", judges),
        _over_steps("KL divergence from the reference policy", "KL, nats per token", "kl", judges),
        _over_steps("Entropy of the policy", "entropy, nats per token", "entropy", judges),
    ]
    tables = [_stage_table("Held-out results by stage, 95% intervals", "accuracy", judges), _paired_table(judges)]
    lead = "The reward is +1 for a correct judgement and -1 otherwise. Held-out rows are never trained on." if judges else ""
    return Section("Training", lead, [table for table in tables if table.rows], [plot for plot in plots if plot is not None])


PANELS = (
    ("judge_score", "judge's score", False),
    ("gold", "gold: pass\ntheir checks", True),
    ("bt", "Bradley-Terry\nscore", False),
    ("kl", "KL, nats\nper token", False),
)
"""(metric, axis label, whether it is a fraction) of what a policy is rewarded by or measured with."""


def policies(runs: Sequence[TrainingRun]) -> Section:
    """Return the section on trained policies: all that was measured over the same steps, so that over-optimisation shows."""
    trained = [run for run in runs if run.is_policy]
    panels = [_over_steps("", label, key, trained, percent) for key, label, percent in PANELS]
    found = [panel for panel in panels if panel is not None]
    both = panels[0] is not None and panels[1] is not None
    note = "Where the judge's score rises and gold does not, the policy pleases the judge without getting better. " if both else ""
    plots: list[Plot] = [Panels("Rewards and KL divergence over steps", note + found[0].note, panels=found)] if found else []
    curves = [
        _over_steps("Reward that was trained on", "mean reward", "reward", trained),
        _heldout_curve("Held-out answers that pass their checks (gold)", "share", trained),
        _over_steps("Pairs of which the judge prefers the right one", "share", "judge_agreement", trained, True),
        _over_steps("Entropy of the trained policy", "entropy, nats per token", "entropy", trained),
    ]
    tables = [_stage_table("Held-out answers by stage, 95% intervals", "pass their checks", trained), _paired_table(trained)]
    lead = "Means over the training samples of each step. Gold is the verdict of the rows' own checks: the yardstick."
    shown = [table for table in tables if table.rows], [*plots, *(plot for plot in curves if plot is not None)]
    return Section("Policies trained by a reward", lead if trained else "", *shown)


CUT_OFF = "cut_off_share"
"""Not in metrics.jsonl: `truncated` over `samples`."""


def sampling(runs: Sequence[TrainingRun]) -> Section:
    """Return the section with length, cut-off share, share of equal groups and speed over steps."""
    plots = [
        _over_steps("Length of the training samples", "generated tokens per sample", "tokens_per_sample", runs),
        _over_steps("Samples cut off at the token limit", "share of samples", CUT_OFF, runs, True),
        _over_steps("Groups of equal rewards", "share of groups", "groups_equal_share", runs, True),
        _over_steps("Generated tokens per second", "tokens per second, all engines", "generated_tokens_per_s", runs),
    ]
    lead = "A group of equal rewards teaches nothing. The speed is that of the generate phase."
    found = [plot for plot in plots if plot is not None]
    return Section("Samples and speed", lead if found else "", plots=found)


def _over_steps(title: str, label: str, key: str, runs: Sequence[TrainingRun], percent: bool = False) -> Curves | None:
    series = [_metric(run, key, style) for style, run in enumerate(runs)]
    series = [one for one in series if len(one.y) > 1]
    smooth = _smooth(series)
    return Curves(title, _smoothing(smooth), percent, "step", label, series, smooth=smooth) if series else None


def _smooth(series: Sequence[Series]) -> int:
    points = max((len(one.y) for one in series), default=0)
    return max(SMOOTH, points // 20) if points >= 3 * SMOOTH else 1


def _smoothing(smooth: int) -> str:
    return f"Dots are steps; lines are moving means over {smooth} steps." if smooth > 1 else ""


def _metric(run: TrainingRun, key: str, style: int) -> Series:
    rows = [(row["step"], value) for row in run.metrics if _is_number(value := _cut_off(row) if key == CUT_OFF else row.get(key))]
    return Series(run.name, [value for _, value in rows], [step for step, _ in rows], style=style)


def _cut_off(row: dict[str, Any]) -> float | None:
    truncated, samples = row.get("truncated"), row.get("samples")
    return truncated / samples if _is_number(truncated) and samples else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _heldout_curve(title: str, label: str, runs: Sequence[TrainingRun]) -> Curves | None:
    series = []
    for style, run in enumerate(runs):
        by_step = [(step, result) for stage, result in run.heldout.items() if (step := _plot_step(stage, run)) is not None]
        values, intervals = [result.accuracy for _, result in by_step], [result.accuracy_ci95 for _, result in by_step]
        series.append(Series(run.name, values, [step for step, _ in by_step], intervals, style))
    series = [one for one in series if len(one.y) > 1]
    note = "Bars are 95% intervals. Step 0 is the policy before RL."
    known = [baselines_of(run) for run in runs]
    # Of several runs, only what they have in common.
    levels = baselines_named(known[0]) if known and all(one == known[0] for one in known) else {}
    return Curves(title, note, True, "step", label, series, levels) if series else None


def baselines_of(run: TrainingRun) -> RunBaselines:
    """Return the accuracy of trivial judges on the held-out rows, as far as it is known."""
    return run.summary.baselines if run.summary else baselines(next(iter(run.judged.values()), []))


def _plot_step(stage: str, run: TrainingRun) -> int | None:
    """Return the RL step at which to plot a stage, or None if it is not part of RL."""
    begin = "cold_start" if "cold_start" in run.heldout else "base"
    last = run.metrics[-1]["step"] if run.metrics else None
    return {begin: 0, "rl": last}.get(stage, step_of(stage))


def _stage_table(title: str, measured: str, runs: Sequence[TrainingRun]) -> Table:
    rows: list[list[Cell | str]] = []
    for run in runs:
        for stage, result in run.heldout.items():
            parsed = Cell(result.accuracy_parsed, "percent", result.accuracy_parsed_ci95)
            reward, accuracy = Cell(result.reward, "signed", result.reward_ci95), Cell(result.accuracy, "percent", result.accuracy_ci95)
            rows.append([run.name, stage_name(stage), Cell(result.n, "count"), reward, accuracy, *([] if run.is_policy else [parsed])])
        base = baselines_of(run)
        for words, value in baselines_named(base).items():
            of = base.pairs_n if words != BASELINES["chance"] else max((stage.n for stage in run.heldout.values()), default=0)
            rows.append([run.name, f"baseline: {words}", Cell(of, "count"), "", Cell(value), ""])
    # The answers of a policy need not parse.
    columns = ["run", "stage", "rows", "reward", measured, f"{measured} where parsed"]
    return Table(title, columns[: max((len(row) for row in rows), default=0)], rows)


def _paired_table(runs: Sequence[TrainingRun]) -> Table:
    rows: list[list[Cell | str]] = []
    for run in runs:
        for name, pair in (run.summary.paired if run.summary else {}).items():
            after, _, before = name.partition("_minus_")
            both = pair.accuracy_parsed
            parsed = Cell(both.mean, "signed_percent", both.ci95) if both else ""
            rows.append([run.name, f"{stage_name(after)} minus {stage_name(before)}", Cell(pair.mean, "signed", pair.ci95), parsed])
    return Table("Paired differences over the same rows", ["run", "stages", "reward", "accuracy where both parsed"], rows)


# --- parse failures -------------------------------------------------------------------------------------------------


def parse_failures(runs: Sequence[TrainingRun], evaluations: Sequence[Evaluation]) -> Section:
    """Return the section with parse failures by reason: fractions of training samples over steps, counts per evaluation."""
    plots: list[Curves] = []
    runs = [run for run in runs if not run.is_policy]
    reasons = sorted({key for run in runs for row in run.metrics for key in row if key.startswith(REASON)})
    for run in runs:
        steps = [row for row in run.metrics if _is_number(row.get("parse_failure_share")) and row.get("samples")]
        of = f" ({run.name})" if len(runs) > 1 else ""
        if len(steps) > 1 and any(row["parse_failure_share"] for row in steps):
            plots.append(_failure_curves(f"Parse failures by reason{of}", steps, reasons))
    rows: list[list[Cell | str]] = []
    for run in runs:
        for stage, result in run.heldout.items():
            rows.append([run.name, stage_name(stage), *_failures(result.samples, result.parse_failures, result.cut_off)])
    for evaluation in evaluations:
        for name, benchmark in evaluation.report.benchmarks.items():
            if failures := benchmark.parse_failures:
                rows.append([evaluation.name, name, *_failures(failures.samples, failures.reasons, failures.cut_off)])
    columns = ["source", "of", "samples", "not parsed", "reasons"]
    tables = [Table("Parse failures by evaluation", columns, rows, folded=bool(plots))] if rows else []
    lead = "An output without well-formed scores counts as wrong." if rows else ""
    lead += (
        " Runs without a plot had no parse failures in training, or a single step."
        if len(plots) < sum(bool(run.metrics) for run in runs)
        else ""
    )
    return Section("Parse failures", lead, tables, common_range(plots))


REASON = "parse_failures/"


def _failure_curves(title: str, steps: Sequence[dict[str, Any]], reasons: Sequence[str]) -> Curves:
    places = [row["step"] for row in steps]
    series = [Series("all reasons", [row["parse_failure_share"] for row in steps], places, style=6)]
    for style, reason in enumerate(reasons):
        shares = [row.get(reason, 0) / row["samples"] for row in steps]
        if any(shares):
            series.append(Series(reason.removeprefix(REASON), shares, places, style=style if style < 6 else style + 1))
    smooth = _smooth(series)
    return Curves(title, _smoothing(smooth), True, "step", "share of training samples", series, smooth=smooth)


def _failures(samples: int, reasons: dict[str, int], cut_off: int) -> list[Cell | str]:
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    counts += f"; {cut_off} cut off" if cut_off else ""
    return [Cell(samples, "count"), Cell(sum(reasons.values()) / samples if samples else None), counts or "none"]


# --- families and seconds -------------------------------------------------------------------------------------------

COMPARED = 2
"""Number of strategies shown by subset besides the greedy judge; vote and meta come first."""


def families(runs: Sequence[TrainingRun], evaluations: Sequence[Evaluation]) -> Section:
    """Return the section with accuracy by family for each run's stages, and by subset for each benchmark."""
    plots = [plot for run in runs for plot in _family_plots(run, f" ({run.name})" if len(runs) > 1 else "")]
    for name, found in benchmarks(evaluations):
        for evaluation, benchmark in found:
            judged: dict[str, Figures] = {"greedy": benchmark.greedy} if benchmark.greedy else {}
            for strategy in sorted(benchmark.strategies, key=lambda one: one not in ("vote", "meta"))[:COMPARED]:
                points = benchmark.strategies[strategy]
                judged |= {f"{strategy}@{k}": points[k] for k in sorted(points)[-1:]}
            metric, form = metric_of(benchmark)
            of = f" ({evaluation.name})" if len(evaluations) > 1 else ""
            plots += _group_plot(f"{name}: {metric} by subset{of}", metric, form == "percent", judged)
    return Section("By family and subset", "Bars are the 95% intervals of each subset." if plots else "", plots=plots)


def _family_plots(run: TrainingRun, of: str) -> list[Plot]:
    stages = run.stages
    names = list(dict.fromkeys(family for result in stages.values() for family in result.families))
    if len(names) < 2:
        return []
    series = []
    for style, (stage, result) in enumerate(stages.items()):
        entries = [result.families.get(name) for name in names]
        values = [entry.accuracy if entry else None for entry in entries]
        # Samples of a row are not independent, so the Wilson interval would be too narrow with several per row.
        single = result.samples == result.n
        intervals = [_wilson(entry) if entry and single else None for entry in entries]
        series.append(Series(stage_name(stage), values, ci95=intervals, style=style))
    if rows := next(iter(run.judged.values()), []):
        random = {name: [chance(len(row["order"])) for row in rows if row["family"] == name] for name in names}
        series.append(Series("chance", [sum(own) / len(own) if (own := random[name]) else None for name in names], expected=True))
    title, label = (
        ("Held-out answers that pass their checks by family", "share") if run.is_policy else ("Held-out accuracy by family", "accuracy")
    )
    return [Categories(f"{title}{of}", x_label=label, categories=names, series=series)]


def _wilson(family: Family) -> Interval | None:
    return proportion_ci(round(family.accuracy * family.n), family.n)


def _group_plot(title: str, metric: str, percent: bool, judged: dict[str, Figures]) -> list[Plot]:
    names = list(dict.fromkeys(name for figures in judged.values() for name in figures.groups))
    if len(names) < 2:
        return []
    series = []
    for style, (name, figures) in enumerate(judged.items()):
        entries = [figures.groups.get(group) for group in names]
        values = [entry.value if entry else None for entry in entries]
        series.append(Series(name, values, ci95=[entry.ci95 if entry else None for entry in entries], style=style))
    return [Categories(title, "", percent, metric, names, series)]


def seconds(runs: Sequence[TrainingRun | ScalarRun]) -> Section:
    """Return the section with wall time by phase; for incomplete runs, the sum over their steps."""
    spent = {run.name: by_phase for run in runs if (by_phase := seconds_of(run))}
    phases = list(dict.fromkeys(phase for by_phase in spent.values() for phase in by_phase))
    series = [Series(name, [by_phase.get(phase) for phase in phases], style=style) for style, (name, by_phase) in enumerate(spent.items())]
    if not phases:
        return Section("Seconds by phase")
    rows: list[list[Cell | str]] = [
        [phase, *(Cell(by_phase[phase], "count") if phase in by_phase else "" for by_phase in spent.values())] for phase in phases
    ]
    rows.append(["all", *(Cell(sum(by_phase.values()), "count") for by_phase in spent.values())])
    table = Table("Seconds by phase", ["phase", *spent], rows, folded=True)
    plot = Categories("Seconds by phase", "", False, "seconds", phases, series, bars=True)
    return Section("Seconds by phase", "Wall time of each run by phase.", [table], [plot])


def seconds_of(run: TrainingRun | ScalarRun) -> dict[str, float]:
    """Return the wall time by phase, as far as the run has come."""
    if isinstance(run, ScalarRun):
        return dict(run.report.seconds)
    if run.summary:
        return dict(run.summary.seconds)
    if run.progress and run.progress.seconds:
        return dict(run.progress.seconds)
    totals: dict[str, float] = {}
    for row in run.metrics:
        for phase in STEP_PHASES:
            value = row.get(f"seconds/{phase}")
            if value is not None and _is_number(value):
                name = phase.replace("_", " ")
                totals[name] = totals.get(name, 0.0) + value
    return totals
