"""Turn sources into the sections of a page, in order; empty sections are left out."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.reporting.page import biases, calibration, critiques, evaluations, ladder, runs
from rlsys.reporting.page.collect import Evaluation, Ladder, ScalarRun, Source, TrainingRun
from rlsys.reporting.page.content import Section, Table


def outline(sources: Sequence[Source]) -> list[Section]:
    """Return all sections; each compares the sources of one kind."""
    ladders = [one for one in sources if isinstance(one, Ladder)]
    judged = [one for one in sources if isinstance(one, Evaluation)]
    scalars = [one for one in sources if isinstance(one, ScalarRun)]
    trained = [one for one in sources if isinstance(one, TrainingRun)]
    sections = [
        _contents(sources),
        ladder.section(ladders),
        evaluations.by_strategy(judged),
        evaluations.by_k(judged),
        evaluations.by_tokens(judged),
        runs.training(trained),
        runs.parse_failures(trained, judged),
        calibration.section(scalars),
        biases.section(judged),
        runs.families(trained, judged),
        runs.seconds([*trained, *scalars]),
        critiques.section(trained, judged),
    ]
    return [section for section in sections if not section.empty]


def _contents(sources: Sequence[Source]) -> Section:
    rows: list[list[str]] = [[source.name, *_described(source)] for source in sources]
    return Section("Overview", tables=[Table("Sources", ["name", "kind", "model", "details"], rows)])


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
            kind = calibration.OBJECTIVES.get(report.objective, (report.objective, ""))[0]
            return [kind, report.model, f"evaluated on {report.heldout.n:,} held-out texts of {report.heldout.rows:,} rows"]
        case TrainingRun():
            steps = source.metrics[-1]["step"] if source.metrics else 0
            state = f"complete, {steps} steps" if source.summary else f"incomplete, {steps} steps so far"
            return ["training run", source.model, state]
