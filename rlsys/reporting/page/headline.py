"""The page's first answer: what each stage of training and each way of judging reaches, and what is on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlsys.documents.evaluation import BenchmarkBaselines, BenchmarkReport
from rlsys.documents.runs import RunBaselines
from rlsys.reporting.page import calibration
from rlsys.reporting.page.collect import Evaluation, Ladder, ScalarRun, Source, TrainingRun
from rlsys.reporting.page.content import Cell, Headline, Section, Table
from rlsys.reporting.page.evaluations import averaged, baselines_named, metric_of
from rlsys.reporting.page.ladder import kind
from rlsys.reporting.page.plots import Categories, Series
from rlsys.reporting.page.runs import baselines_of, seconds_of, stage_name

Figure = tuple[str, Cell, str]
VOTES = ("vote", "meta")
"""Strategies in a headline, if there are such."""
RUNGS = (("base@1", "base"), ("rft@1", "rft"), ("vote@1", "rl"), ("vote",), ("meta",))
"""Rungs in a headline: the first of these names that there is, or of a vote the one with the largest k."""


def section(sources: Sequence[Source]) -> Section:
    """Return the section with a headline of each source and a table of all sources."""
    runs = [one for one in sources if isinstance(one, TrainingRun)]
    judged = [one for one in sources if isinstance(one, Evaluation)]
    votes = {run.path: [one for one in judged if _is_of(one, run)] for run in runs}
    placed = {one.path for own in votes.values() for one in own}
    headlines = [_of_run(run, votes[run.path]) for run in runs]
    headlines += [_of_ladder(one) for one in sources if isinstance(one, Ladder)]
    headlines += [_of_evaluation(one) for one in judged if one.path not in placed]
    rows: list[list[str]] = [[source.name, *_described(source)] for source in sources]
    table = Table("Sources", ["name", "kind", "model", "details"], rows, folded=True)
    return Section("Overview", headlines=[one for one in headlines if one.figures], tables=[table], plots=_by_stage(runs, votes))


def _is_of(evaluation: Evaluation, run: TrainingRun) -> bool:
    """Return whether an evaluation is of a model of the run, or in its folder."""
    places = [Path(evaluation.report.model).resolve(), evaluation.path.resolve()]
    return any(run.path.resolve() in (place, *place.parents) for place in places)


def _of_run(run: TrainingRun, votes: Sequence[Evaluation]) -> Headline:
    steps = run.metrics[-1]["step"] if run.metrics else 0
    rows = max((stage.n for stage in run.stages.values()), default=0)
    measured = f"{rows:,} held-out rows: {'answers that pass their checks' if run.is_policy else 'accuracy'}"
    facts = _baselines(baselines_of(run))
    facts += [("steps", Cell(steps, "count")), ("minutes", Cell(sum(seconds_of(run).values()) / 60, "minutes")), ("model", run.model)]
    facts += [] if run.summary else [("state", "in progress")]
    judged = [(f"{name} ({one.name})" if len(votes) > 1 else name, cell, remark) for one in votes for name, cell, remark in _votes(one)]
    return Headline(run.name, measured, [*_stages(run), *judged], facts)


def _stages(run: TrainingRun) -> Iterator[Figure]:
    before = ""
    for stage, result in run.stages.items():
        pair = run.summary.paired.get(f"{stage}_minus_{before}") if run.summary else None
        # The reward is +1 or -1: a difference of accuracies is half that of rewards.
        gain = Cell(pair.mean / 2, "signed_percent", pair.ci95 and (pair.ci95[0] / 2, pair.ci95[1] / 2)) if pair else None
        yield stage_name(stage), Cell(result.accuracy, "percent", result.accuracy_ci95), f"{gain} on the same rows" if gain else ""
        before = stage


def _votes(evaluation: Evaluation) -> Iterator[Figure]:
    """Yield the votes with most samples, over the mean of the benchmarks or the only one."""
    found = averaged(evaluation)
    name, benchmark = ("the mean of the benchmarks", found) if found else next(iter(evaluation.report.benchmarks.items()), ("", None))
    if benchmark is None:
        return
    remark = f"{name}, {benchmark.items:,} rows"
    for strategy in VOTES:
        if points := benchmark.strategies.get(strategy):
            k = max(points)
            yield f"{strategy}@{k}", _estimate(benchmark, points[k].overall.value, points[k].overall.ci95), remark


def _estimate(benchmark: BenchmarkReport, value: float | None, interval: tuple[float, float] | None) -> Cell:
    return Cell(value, metric_of(benchmark)[1], interval)


def _of_evaluation(evaluation: Evaluation) -> Headline:
    found = averaged(evaluation) or next(iter(evaluation.report.benchmarks.values()), None)
    figures = list(_votes(evaluation))
    facts: list[tuple[str, Cell | str]] = []
    if found and found.greedy:
        figures.insert(0, ("greedy", _estimate(found, found.greedy.overall.value, found.greedy.overall.ci95), ""))
    facts += _baselines(found.baselines) if found else []
    if evaluation.report.seconds is not None:
        facts.append(("minutes", Cell(evaluation.report.seconds / 60, "minutes")))
    single = next(iter(evaluation.report.benchmarks), "")
    measured = "mean of the benchmarks" if averaged(evaluation) else single
    return Headline(evaluation.name, measured, figures, [*facts, ("model", evaluation.report.model)])


def _of_ladder(ladder: Ladder) -> Headline:
    rungs = [rung for rung in ladder.report.rungs if not rung.ablation]
    named = {rung.name: rung for rung in rungs} | {kind(rung): rung for rung in rungs if kind(rung) in VOTES}
    chosen = [next((named[name] for name in names if name in named), None) for names in RUNGS]
    figures = [(rung.title, Cell(rung.value, "percent", rung.ci95), "") for rung in dict.fromkeys(chosen) if rung]
    others: list[tuple[str, Cell | str]] = [(rung.title, Cell(rung.value, "percent", rung.ci95)) for rung in rungs if rung.name == "bt"]
    return Headline(ladder.name, f"{ladder.report.n:,} rows: accuracy", figures, [*others, *_baselines(ladder.report.baselines)])


def _baselines(found: RunBaselines | BenchmarkBaselines) -> list[tuple[str, Cell | str]]:
    return [(words, Cell(value)) for words, value in baselines_named(found).items()]


def _by_stage(runs: Sequence[TrainingRun], votes: dict[Path, list[Evaluation]]) -> list[Categories]:
    """Plot the headlines of the runs that train a judge, with their baselines."""
    judges = [run for run in runs if not run.is_policy]
    figures = {
        run.name: {name: cell for name, cell, _ in _of_run(run, votes[run.path]).figures if cell.form == "percent"} for run in judges
    }
    names = list(dict.fromkeys(name for own in figures.values() for name in own))
    if len(names) < 2:
        return []
    series = []
    for style, (run_name, own) in enumerate(figures.items()):
        cells = [own.get(name) for name in names]
        intervals = [cell.ci95 if cell and cell.ci95 else None for cell in cells]
        series.append(Series(run_name, [cell.value if cell else None for cell in cells], ci95=intervals, style=style))  # type: ignore[arg-type]
    known = {run.name: baselines_named(baselines_of(run)) for run in judges}
    levels = known[judges[0].name]
    if any(own != levels for own in known.values()):
        # Of different rows: one line for each run.
        levels = {f"chance ({name})": own["chance"] for name, own in known.items() if "chance" in own}
    return [Categories("Accuracy by stage", "Bars are 95% intervals.", True, "accuracy", names, series, levels)]


def _described(source: Source) -> list[str]:
    match source:
        case Ladder(report=report):
            return ["ladder", "", f"{len(report.rungs)} rungs on {report.n:,} rows of {report.benchmark}"]
        case Evaluation(report=report):
            sampling = f"k up to {max(report.k, default=0)}, temperature {report.temperature:g}, {report.draws} draws, seed {report.seed}"
            guide = f", meta RM {report.meta_rm}" if report.meta_rm else ""
            took = f"; {report.seconds:,.0f} seconds" if report.seconds is not None else ""
            return ["evaluation", report.model, f"{len(report.benchmarks)} benchmark(s), {sampling}{guide}{took}"]
        case ScalarRun(report=report):
            kind_of = calibration.OBJECTIVES.get(report.objective, (report.objective, ""))[0]
            return [kind_of, report.model, f"evaluated on {report.heldout.n:,} held-out texts of {report.heldout.rows:,} rows"]
        case TrainingRun():
            steps = source.metrics[-1]["step"] if source.metrics else 0
            state = f"complete, {steps} steps" if source.summary else f"incomplete, {steps} steps so far"
            return ["policy" if source.is_policy else "training run", source.model, state]
