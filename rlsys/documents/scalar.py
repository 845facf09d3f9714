"""report.json: a scalar reward model's quality on held-out rows."""

from __future__ import annotations

from typing import ClassVar

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from rlsys.documents.core import Document, Estimate, Interval, Result, Share


class Bin(Document):
    """A bin of a reliability table; the last three are None if n is 0, the interval also if there are too few rows."""

    low: FiniteFloat
    high: FiniteFloat
    n: NonNegativeInt
    predicted: Share
    """Mean probability."""
    observed: Share
    """Fraction of label 1."""
    ci95: Interval | None

    @model_validator(mode="after")
    def _filled(self) -> Bin:
        if self.n and None in (self.predicted, self.observed):
            raise ValueError("predicted and observed must be numbers if n is above 0")
        return self


class Level(Document):
    mean: FiniteFloat
    high: FiniteFloat
    """95% quantile."""


class ExpectedError(Document):
    """Expected calibration error; `calibrated`: that of a calibrated model with as many texts."""

    value: FiniteFloat
    calibrated: Level | None = None


class Heldout(Document):
    """Quality of the probabilities on held-out rows (`rlsys.evaluation.calibration.summarise` and `summarise_pairs`)."""

    n: PositiveInt
    rows: PositiveInt
    base_rate: FiniteFloat
    """Fraction of label 1."""
    auc: Estimate | None = None
    """None if only one label occurs; not set for pairs."""
    pairwise_accuracy: Estimate | None = None
    """Of pairs; ties count half."""
    accuracy: Estimate | None = None
    """At a threshold of 0; a score of 0 counts half."""
    brier: Estimate | None = None
    log_loss: Estimate | None = None
    """Nats."""
    rms_calibration_error: Estimate | None = None
    ece: ExpectedError | None = None
    auc_within_row: Estimate | None = None
    """Mean AUC over the `rows` with both labels, on which a guided vote depends; None if there are none."""
    table: list[Bin]


class Texts(Document):
    """Texts of a scalar model (`rlsys.data.scalar_data.describe`)."""

    rows: NonNegativeInt
    groups: NonNegativeInt
    texts: NonNegativeInt
    positive: Share
    """Fraction of label 1."""
    tokens: NonNegativeInt
    """With prompts repeated."""


class DataCounts(Document):
    train: Texts
    heldout: Texts
    account: dict[str, NonNegativeInt]
    """Rows by outcome."""


class ScalarReport(Result):
    """report.json of a scalar reward model."""

    FILE: ClassVar[str] = "report.json"

    objective: str
    heldout: Heldout
    data: DataCounts | None = None
    steps: NonNegativeInt = 0
    encoded_share: FiniteFloat | None = None
    """Encoded tokens / tokens with prompts repeated."""
    seconds: dict[str, FiniteFloat] = {}
    """Wall time by phase."""
    model: str
    run_dir: str = ""
