"""summary.json of a training run, and ladder.json."""

from __future__ import annotations

from typing import ClassVar

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from rlsys.documents.core import Difference, Document, Interval, Result, Share


class Family(Document):
    n: PositiveInt
    """Samples."""
    accuracy: FiniteFloat
    parsed: Share = None


class Stage(Document):
    """Held-out results of a model (`rlsys.evaluation.heldout.summarise`).

    `accuracy` counts a parse failure as wrong; `accuracy_parsed` is that of the parsed samples, equally weighted. Intervals are clustered
    by row (samples of a row are not independent), None if there are too few rows.
    """

    n: PositiveInt
    """Rows."""
    samples: PositiveInt
    reward: FiniteFloat
    """Mean, in [-1, 1]."""
    reward_ci95: Interval | None
    accuracy: FiniteFloat
    accuracy_ci95: Interval | None
    accuracy_parsed: Share = None
    accuracy_parsed_ci95: Interval | None = None
    parse_failures: dict[str, NonNegativeInt]
    """By reason."""
    cut_off: NonNegativeInt = 0
    """Parse failures that ended at the token limit."""
    families: dict[str, Family]
    mean_tokens: FiniteFloat | None = None
    """Generated tokens per sample."""


class ParsedDifference(Difference):
    n: NonNegativeInt = 0
    """Rows that parsed in both stages."""


class Paired(Difference):
    """Paired difference between two stages in mean reward, and in accuracy over the rows parsed in both (None: there are none)."""

    accuracy_parsed: ParsedDifference | None = None


class RunBaselines(Document):
    """Accuracy of trivial judges on the held-out rows; `first` and `longer` over the `pairs_n` rows of two or more responses."""

    chance: FiniteFloat | None = None
    first: FiniteFloat | None = None
    longer: FiniteFloat | None = None
    pairs_n: NonNegativeInt = 0


class SourceRows(Document):
    """What became of a source's rows (`rlsys.data.accounts.RowCounts`)."""

    rows_in_source: NonNegativeInt | None = None
    rows: NonNegativeInt
    used: NonNegativeInt
    set_aside: dict[str, NonNegativeInt]
    """By reason."""


class TeacherUse(Document):
    """What the teacher of a round of rejective fine-tuning used, as its endpoint reports it."""

    model: str
    prompt_tokens: NonNegativeInt
    """Of every request."""
    tokens: NonNegativeInt
    """Generated."""
    cost: FiniteFloat | None = None
    """By the prices of rft.teacher."""

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        return f"{self.model} read {self.prompt_tokens:,} tokens and wrote {self.tokens:,}{cost}"


class RftRound(Document):
    """A round of rejective fine-tuning: samples, those kept, and samples by reason for keeping or rejecting, without and with a hint."""

    samples: NonNegativeInt
    kept: NonNegativeInt
    non_hinted: dict[str, NonNegativeInt]
    hinted: dict[str, NonNegativeInt]
    teacher: TeacherUse | None = None
    """None: the model itself was sampled."""


class RunSummary(Result):
    """summary.json of a run of `rlsys train` or `rlsys rft`."""

    FILE: ClassVar[str] = "summary.json"

    heldout: dict[str, Stage]
    """By stage: base, cold_start, rl; base, rft."""
    baselines: RunBaselines = RunBaselines()
    paired: dict[str, Paired] = {}
    """By AFTER_minus_BEFORE, both stages."""
    rounds: list[RftRound] = []
    """Of `rlsys rft`."""
    seconds: dict[str, FiniteFloat]
    """Wall time by phase."""
    rl_steps: NonNegativeInt = 0
    """Of `rlsys train`."""
    teacher: str | None = None
    """Source of the cold start's trajectories."""
    rows: dict[str, dict[str, SourceRows]] = {}
    """By side (train, heldout) and source."""
    model: str = ""
    run_dir: str = ""


class Rung(Document):
    name: str
    title: str
    value: FiniteFloat
    """Accuracy in [0, 1], the mean over rows."""
    ci95: Interval | None
    seed: int | None = None
    minus_previous: Difference | None = None
    tokens_per_item: FiniteFloat | None = None
    ablation: bool = False
    """Shown next to the ladder, not as a rung of it."""


class LadderReport(Document):
    """ladder.json."""

    benchmark: str
    n: PositiveInt
    """Rows."""
    rungs: list[Rung]
    """Lowest first."""
    baselines: RunBaselines = RunBaselines()
    """Of the same rows."""
    notes: list[str] = []
