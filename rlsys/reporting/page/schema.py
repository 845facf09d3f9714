"""Schemas of eval.json, ladder.json, a run's summary.json and a scalar reward model's report.json, limited to what the page shows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, model_validator


class Loose(BaseModel):
    """Base model that ignores unknown keys."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


Interval = tuple[FiniteFloat, FiniteFloat]
Share = FiniteFloat | None
"""In [0, 1]; None if undefined."""


class Estimate(Loose):
    """A figure with its 95% interval. The value is None if undefined, the interval if there are too few rows."""

    value: FiniteFloat | None
    ci95: Interval | None = None
    n: NonNegativeInt | None = None


class Figures(Loose):
    """A benchmark's figures for one strategy."""

    overall: Estimate
    groups: dict[str, Estimate] = {}
    others: dict[str, FiniteFloat | None] = {}


class Point(Figures):
    """Figures of a strategy at one k, with its cost per item and the fraction of items with a verdict."""

    samples_per_item: FiniteFloat | None = None
    tokens_per_item: FiniteFloat | None = None
    coverage: Share = None


class Baseline(Loose):
    value: FiniteFloat | None


class Position(Loose):
    """rlsys.evaluation.biases.position_bias and order_consistency, of the greedy samples in both orders or of the k samples."""

    first: Share = None
    first_expected: Share = None
    other_order: Share = None
    same_order: Share = None
    samples: Position | None = None
    """The same for the k samples."""


class Length(Loose):
    """rlsys.evaluation.biases.length_bias."""

    longest_wins: Share = None
    longest_is_best: Share = None
    correlation: FiniteFloat | None = None


class ParseFailures(Loose):
    """rlsys.evaluation.biases.parse_failures."""

    samples: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    cut_off: NonNegativeInt = 0
    reasons: dict[str, NonNegativeInt] = {}


class Example(Loose):
    """A judged item: responses, gold and best in the record's own order, scores as shown."""

    id: str | int
    query: str
    responses: list[str]
    gold: int | FiniteFloat | None = None
    best: int | None = None
    correct: bool | None = None
    text: str | None = None
    order: list[NonNegativeInt] | None = None
    scores: list[int | FiniteFloat] | None = None

    @model_validator(mode="after")
    def _one_place_per_response(self) -> Example:
        if self.order is not None and sorted(self.order) != list(range(len(self.responses))):
            raise ValueError(f"order {self.order} is not a permutation of {len(self.responses)} responses")
        return self


class Benchmark(Loose):
    units: NonNegativeInt
    items: NonNegativeInt
    metric: str
    skipped: NonNegativeInt = 0
    baselines: dict[str, Baseline | None] = {}
    greedy: Point | None = None
    strategies: dict[str, dict[PositiveInt, Point]] = {}
    position: Position | None = None
    length: Length | None = None
    parse_failures: ParseFailures | None = None
    examples: list[Example] = []


class EvalReport(Loose):
    """eval.json."""

    model: str
    meta_rm: str | None = None
    k: list[PositiveInt]
    draws: PositiveInt
    temperature: FiniteFloat
    seed: int
    seconds: FiniteFloat | None = None
    benchmarks: dict[str, Benchmark]


class Difference(Loose):
    """Paired difference between a rung and the previous one, over the same rows."""

    mean: FiniteFloat
    ci95: Interval | None


class Rung(Loose):
    name: str
    title: str
    value: FiniteFloat
    ci95: Interval | None
    seed: int | None = None
    minus_previous: Difference | None = None
    tokens_per_item: FiniteFloat | None = None
    ablation: bool = False
    """Shown next to the ladder, not as a rung of it."""


class LadderReport(Loose):
    """ladder.json."""

    benchmark: str
    n: PositiveInt
    rungs: list[Rung]
    """Lowest first."""
    notes: list[str] = []


class Family(Loose):
    n: PositiveInt
    accuracy: FiniteFloat


class Stage(Loose):
    """rlsys.evaluation.heldout.summarise."""

    n: PositiveInt
    """Rows."""
    samples: PositiveInt
    reward: FiniteFloat
    reward_ci95: Interval | None
    accuracy: FiniteFloat
    accuracy_ci95: Interval | None
    accuracy_parsed: Share = None
    accuracy_parsed_ci95: Interval | None = None
    parse_failures: dict[str, NonNegativeInt]
    cut_off: NonNegativeInt = 0
    families: dict[str, Family]


class Paired(Difference):
    """Paired difference between two stages in mean reward, and in accuracy over rows parsed in both."""

    accuracy_parsed: Difference | None = None


class RunSummary(Loose):
    """A training run's summary.json."""

    heldout: dict[str, Stage]
    baselines: dict[str, FiniteFloat | None] = {}
    paired: dict[str, Paired] = {}
    seconds: dict[str, FiniteFloat]


class Bin(Loose):
    """A bin of a reliability table; the last three are None if n is 0, the interval also if there are too few rows."""

    low: FiniteFloat
    high: FiniteFloat
    n: NonNegativeInt
    predicted: Share
    observed: Share
    ci95: Interval | None

    @model_validator(mode="after")
    def _filled(self) -> Bin:
        if self.n and None in (self.predicted, self.observed):
            raise ValueError("predicted and observed must be numbers if n is above 0")
        return self


class Level(Loose):
    mean: FiniteFloat
    high: FiniteFloat


class ExpectedError(Loose):
    """Expected calibration error; `calibrated`: its mean and 95% quantile for a calibrated model with as many texts."""

    value: FiniteFloat
    calibrated: Level | None = None


class Heldout(Loose):
    """rlsys.evaluation.calibration.summarise and summarise_pairs."""

    n: PositiveInt
    rows: PositiveInt
    base_rate: FiniteFloat
    table: list[Bin]
    auc: Estimate | None = None
    auc_within_row: Estimate | None = None
    pairwise_accuracy: Estimate | None = None
    accuracy: Estimate | None = None
    brier: Estimate | None = None
    log_loss: Estimate | None = None
    rms_calibration_error: Estimate | None = None
    ece: ExpectedError | None = None


class ScalarReport(Loose):
    """A scalar reward model's report.json."""

    objective: str
    model: str
    heldout: Heldout
    seconds: dict[str, FiniteFloat] = {}
