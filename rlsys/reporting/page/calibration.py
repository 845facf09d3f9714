"""Scalar reward models: their measures and the calibration of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.documents.core import Estimate
from rlsys.documents.scalar import ExpectedError, ScalarReport
from rlsys.reporting.page.collect import ScalarRun
from rlsys.reporting.page.content import Cell, Section, Table
from rlsys.reporting.page.plots import Reliability

OBJECTIVES = {
    "bce": ("meta reward model", "the critique is correct"),
    "bt": ("Bradley-Terry reward model", "the first response is the better one"),
}
"""Objective -> (kind of model, event that its probabilities predict)."""
MEASURES = {
    "auc": "ROC-AUC",
    "auc_within_row": "ROC-AUC within a row",
    "pairwise_accuracy": "pairwise accuracy",
    "accuracy": "accuracy at 0",
    "brier": "Brier score",
    "log_loss": "log loss, nats",
    "rms_calibration_error": "calibration error, root mean square, debiased",
    "ece": "expected calibration error",
    "base_rate": "share of label 1",
}


def section(runs: Sequence[ScalarRun]) -> Section:
    """Return the section with a reliability diagram of each scalar reward model and a table comparing their measures."""
    rows: list[list[Cell | str]] = []
    for key, words in MEASURES.items():
        cells: list[Cell | str] = [_measure(getattr(run.report.heldout, key)) for run in runs]
        if any(cells):
            rows.append([words, *cells])
    columns = ["measure", *(f"{run.name}: {_objective(run.report)[0]}" for run in runs)]
    tables = [Table("Measures on held-out rows, 95% intervals", columns, rows)] if runs else []
    plots = [reliability(run.report, f"Calibration: {run.name}") for run in runs]
    lead = "How well the probabilities of the scalar reward models match observed frequencies." if runs else ""
    return Section("Calibration of the reward models", lead, tables, plots)


def reliability(report: ScalarReport, title: str) -> Reliability:
    """Return the reliability diagram of a scalar reward model's held-out probabilities."""
    note = "On the diagonal, events predicted with probability 70% occur 70% of the time. Bars are 95% intervals."
    bins = [one.model_dump() for one in report.heldout.table]
    return Reliability(title, note, True, _objective(report)[1], bins, report.heldout.base_rate)


def _objective(report: ScalarReport) -> tuple[str, str]:
    return OBJECTIVES.get(report.objective, (report.objective, "label 1"))


def _measure(found: Estimate | ExpectedError | float | None) -> Cell | str:
    if isinstance(found, float):
        return Cell(found, "figure")
    if isinstance(found, ExpectedError):
        chance = f" (calibrated: {found.calibrated.mean:.3f}, up to {found.calibrated.high:.3f})" if found.calibrated else ""
        return f"{found.value:.3f}{chance}"
    return "" if found is None else Cell(found.value, "figure", found.ci95)
